import json
import os
import shutil

import pytest
import torch
from damage import edit_json, edit_tensors, flip_bit, split, truncate
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import make_model
from transformers import AutoModelForCausalLM

from mergekit_av import AVError
from mergekit_av.io import checkpoint
from mergekit_av.io import writer as io_writer
from mergekit_av.io.checkpoint import INDEX, SINGLE, Checkpoint
from mergekit_av.io.fingerprint import combined_fingerprint, fingerprint, non_finite
from mergekit_av.io.writer import CheckpointWriter


@pytest.fixture
def model(base, tmp_path):
    """A copy of `base` that may be changed."""
    return shutil.copytree(base, tmp_path / "model")


def save(folder, tensors):
    """Save to a new folder; return the fingerprint."""
    folder.mkdir()
    save_file({name: value.clone() for name, value in tensors.items()}, folder / SINGLE)
    return fingerprint(Checkpoint(folder))


def test_a_checkpoint_tells_names_shapes_and_dtypes(base):
    tensors = load_file(base / SINGLE)
    opened = Checkpoint(base)
    assert {n: (i.shape, i.dtype, i.nbytes) for n, i in opened.items()} == {
        n: (tuple(t.shape), t.dtype, t.nbytes) for n, t in tensors.items()
    }
    assert all(torch.equal(opened.read(name), tensors[name]) for name in tensors)


@pytest.mark.parametrize("shape", [(), (0,), (7,), (64,), (65,), (5, 33), (3, 1000), (4, 5, 9)])
def test_blocks_put_together_are_the_tensor(tmp_path, monkeypatch, shape):
    monkeypatch.setattr(checkpoint, "BLOCK", 64)
    values = torch.randn(shape)
    save(tmp_path / "c", {"w": values})
    blocks = list(Checkpoint(tmp_path / "c").blocks("w"))
    assert torch.equal(torch.cat(blocks), values.reshape(-1))
    row = values[0].numel() if len(shape) > 1 else 1
    assert all(block.numel() <= max(64, row) for block in blocks)


def test_neither_dtype_nor_shards_change_the_fingerprint(model, tmp_path):
    tensors = load_file(model / SINGLE)
    tensors = {name: value.to(torch.bfloat16).clamp(-4, 4) for name, value in tensors.items()}
    # What all three formats hold: bfloat16's 8 bits at sizes that float16 reaches.
    tensors = {n: torch.where(v.abs() < 2.0**-10, 0, v) for n, v in tensors.items()}
    found = {
        save(tmp_path / str(dtype), {name: value.to(dtype) for name, value in tensors.items()})
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    }
    split(tmp_path / "torch.float16")
    found.add(fingerprint(Checkpoint(tmp_path / "torch.float16")))
    assert len(found) == 1
    assert len(found.pop()) == 32


def test_float16_values_that_bfloat16_cannot_hold_count_too(tmp_path):
    values = torch.tensor([1.0, 1 + 2.0**-10, 6e-8]).half()
    half = save(tmp_path / "half", {"w": values})
    assert half == save(tmp_path / "float", {"w": values.float()})
    assert half != save(tmp_path / "rounded", {"w": values.bfloat16()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_every_value_shape_and_name_counts_in_the_fingerprint(tmp_path, dtype):
    values = torch.arange(6).remainder(2).to(dtype)
    variants = [{"w": values}, {"v": values}, {"w": values, "v": values[:0]}]
    variants += [{"w": other} for other in (values.reshape(2, 3), values.reshape(3, 2), values[:5])]
    for place in range(6):
        changed = values.clone()
        changed[place] = 1 - changed[place].int()
        variants.append({"w": changed})
    seen = {save(tmp_path / str(i), tensors) for i, tensors in enumerate(variants)}
    assert len(seen) == len(variants)


def test_one_low_bit_at_the_end_of_a_long_tensor_counts(tmp_path):
    values = torch.ones(10_000)
    first = save(tmp_path / "first", {"w": values})
    values[-1] += 2.0**-23
    assert save(tmp_path / "second", {"w": values}) != first


def test_a_flipped_bit_on_disk_changes_the_fingerprint(base, model):
    assert fingerprint(Checkpoint(model)) == fingerprint(Checkpoint(base))
    flip_bit(model / SINGLE, -1)
    os.utime(model / SINGLE, (1, 1))  # the clock of files may be slower than this test
    assert fingerprint(Checkpoint(model)) != fingerprint(Checkpoint(base))


def test_fingerprints_stay_what_they_are(tmp_path):
    """Vectors that were published name them: a version that computes others cannot read those."""
    long = torch.arange(checkpoint.BLOCK + 9).remainder(1000) / 8
    tensors = {"a": long, "b": long.bfloat16().reshape(5, -1), "c": torch.tensor(3)}
    assert save(tmp_path / "c", tensors) == "950383dd93a3582d5189df217b07dbe1"


def test_swapped_tensors_change_the_fingerprint(tmp_path):
    left, right = torch.ones(4), torch.zeros(4)
    first = save(tmp_path / "first", {"a": left, "b": right})
    assert save(tmp_path / "second", {"a": right, "b": left}) != first


def test_the_fingerprint_does_not_depend_on_the_order_of_tensors():
    shapes, digests = {"a": (1,), "b": (2,)}, {"a": "1", "b": "2"}
    turned = {"b": "2", "a": "1"}
    assert combined_fingerprint(shapes, digests) == combined_fingerprint(shapes, turned)


def test_non_finite_names_the_tensors_with_nan(base, model):
    assert non_finite(Checkpoint(base)) == []
    edit_tensors(model, lambda tensors: tensors["model.norm.weight"][7:8].fill_(torch.nan))
    assert non_finite(Checkpoint(model)) == ["model.norm.weight"]


def test_a_sharded_checkpoint_reads_like_a_single_file(model):
    tensors = load_file(model / SINGLE)
    split(model)
    opened = Checkpoint(model)
    assert set(opened) == set(tensors)
    assert all(torch.equal(opened.read(name), tensors[name]) for name in tensors)


def test_the_index_decides_which_shard_a_tensor_is_read_from(model):
    """A stale copy of a tensor in another shard is not read; mergekit does not read it either."""
    name, stale = "model.norm.weight", torch.zeros(32)
    tensors = load_file(model / SINGLE)
    shards = split(model)
    where = json.loads((model / INDEX).read_text("utf-8"))["weight_map"][name]
    other = next(model / shard for shard in shards if shard != where)
    save_file({**load_file(other), name: stale, "stray": stale.clone()}, other)
    opened = Checkpoint(model)
    assert torch.equal(opened.read(name), tensors[name])
    assert set(opened) == set(tensors)


def _missing_shard(model):
    (model / split(model)[0]).unlink()


def _shard_elsewhere(model):
    (model / "sub").mkdir()
    shard = split(model)[0]
    (model / shard).rename(model / "sub" / shard)
    edit_json(
        model / INDEX,
        lambda index: index["weight_map"].update({"model.norm.weight": f"sub/{shard}"}),
    )


def _without_tensor(model):
    split(model)
    edit_json(
        model / INDEX,
        lambda index: index["weight_map"].update(ghost="model-00001-of-00002.safetensors"),
    )


def _index(text):
    def write(model):
        split(model)
        (model / INDEX).write_bytes(text)

    return write


def _pickles(model):
    (model / SINGLE).rename(model / "pytorch_model.bin")


def _single_and_index(model):
    content = (model / SINGLE).read_bytes()
    split(model)
    (model / SINGLE).write_bytes(content)


HARMS = {
    "missing shard": (_missing_shard, "shard model-00001-of-00002.safetensors is missing"),
    "a shard outside the folder": (_shard_elsewhere, "is no file beside it"),
    "truncated": (lambda model: truncate(model / SINGLE), "truncated or damaged"),
    "empty file": (lambda model: (model / SINGLE).write_bytes(b""), "truncated or damaged"),
    "flipped header length": (lambda model: flip_bit(model / SINGLE, 1), "truncated or damaged"),
    "flipped header": (lambda model: flip_bit(model / SINGLE, 8), "truncated or damaged"),
    "only pickles": (_pickles, "only pickle files"),
    "nothing": (lambda model: (model / SINGLE).unlink(), "holds no model.safetensors"),
    "index cut": (_index(b'{"weight_map": {'), "not a safetensors index"),
    "index binary": (_index(b"\xff\xfe"), "not a safetensors index"),
    "index list": (_index(b"[]"), "not a safetensors index"),
    "index without map": (_index(b"{}"), "not a safetensors index"),
    "index of numbers": (_index(b'{"weight_map": {"a": 5}}'), "not a safetensors index"),
    "index names a ghost": (_without_tensor, "says that ghost is in .* where it is not"),
    "single and index": (_single_and_index, "remove the stale one"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_checkpoint_is_refused_in_one_line(model, harm):
    damage, message = HARMS[harm]
    damage(model)
    with pytest.raises(AVError, match=message) as caught:
        Checkpoint(model)
    assert "\n" not in str(caught.value)


def test_a_place_that_is_no_folder_is_refused(base, tmp_path):
    for place in (base / SINGLE, tmp_path / "nowhere"):
        with pytest.raises(AVError, match="is not a folder"):
            Checkpoint(place)


@pytest.mark.parametrize("size", ["5GB", "20KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_the_writer_writes_others_read(tmp_path, monkeypatch, size, dtype):
    monkeypatch.setattr(io_writer, "MAX_SHARD_SIZE", size)
    monkeypatch.setattr(checkpoint, "BLOCK", 1000)
    source = make_model(tmp_path / "source", tied=False, dtype=dtype)
    opened = Checkpoint(source)
    out = tmp_path / "out"
    out.mkdir()
    writer = CheckpointWriter(out, {n: (info.shape, info.dtype) for n, info in opened.items()})
    for name in writer.names():
        for block in opened.blocks(name):
            writer.write(block)

    tensors = load_file(source / SINGLE)
    files = sorted(out.glob("*.safetensors"))
    assert (len(files) > 2) == (size == "20KB") == (out / INDEX).exists()
    read = {name: value for file in files for name, value in load_file(file).items()}
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert int.from_bytes(files[0].read_bytes()[:8], "little") % 8 == 0  # aligned values
    with safe_open(files[0], framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    if len(files) > 1:
        index = json.loads((out / INDEX).read_text("utf-8"))
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
        assert all(name in load_file(out / f) for name, f in index["weight_map"].items())
    assert fingerprint(Checkpoint(out)) == fingerprint(opened)

    shutil.copy(source / "config.json", out)
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())
