"""A vector whose tensors are stored in another way than as whole ones is used like any other."""

import json
import shutil
from functools import cached_property

import pytest
import torch
from merging import make_recipe, merge
from safetensors.torch import load_file, save_file
from tiny import make_model, perturb

from mergekit_av import AlignmentVector, Knobs, export_lora, extract
from mergekit_av.export.hub import prepare
from mergekit_av.io.checkpoint import SINGLE, blocks_of
from mergekit_av.io.fingerprint import Digest, combined_fingerprint
from mergekit_av.vectors import kinds
from mergekit_av.vectors.delta import Delta

SIGNS = "signs.safetensors"


class SignDelta(Delta):
    """The sign of each difference as int8, and one step for the whole tensor."""

    @staticmethod
    def is_in(folder):
        return (folder / SIGNS).is_file()

    @cached_property
    def _signs(self):
        return load_file(self.folder / SIGNS)

    @property
    def files(self):
        return [self.folder / SIGNS]

    def names(self):
        return [name for name in self._signs if not name.endswith("/step")]

    def shape(self, name):
        return tuple(self._signs[name].shape)

    def dense(self, name, device="cpu"):
        return (self._signs[name] * self._signs[f"{name}/step"]).to(device)

    def blocks(self, name):
        return blocks_of(self.dense(name))

    def dtypes(self):
        return {"float32"}

    def fingerprint(self):
        digests = {}
        for name in self.names():
            digest = Digest()
            for block in self.blocks(name):
                digest.update(block)
            digests[name] = digest.hexdigest()
        return combined_fingerprint(self.shapes(), digests)

    def non_finite(self):
        return [name for name in self.names() if not self.dense(name).isfinite().all()]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("delta") / "base"
    return make_model(folder, tied=False, dtype=torch.float32)


@pytest.fixture(scope="module")
def signs(base, tmp_path_factory):
    """A vector of signs."""
    folder = tmp_path_factory.mktemp("signs")
    dense = extract(base, perturb(base, folder / "aligned"), folder / "av", dtype="float32")
    tensors = {}
    for name in dense.delta.names():
        value = dense.delta.dense(name)
        tensors[name] = value.sign().to(torch.int8)
        tensors[f"{name}/step"] = value.abs().mean()
    dense.delta.release()
    (folder / "av" / SINGLE).unlink()
    save_file(tensors, folder / "av" / SIGNS)
    metadata = json.loads((folder / "av" / "alignment_vector.json").read_text("utf-8"))
    metadata["fingerprint"] = SignDelta(folder / "av").fingerprint()
    (folder / "av" / "alignment_vector.json").write_text(json.dumps(metadata), "utf-8")
    return folder / "av"


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(kinds, "KINDS", [SignDelta])


@pytest.fixture
def dense(signs, tmp_path):
    """The same vector, with whole tensors."""
    return (1.0 * AlignmentVector.open(signs)).save(tmp_path / "dense", name="av", dtype="float32")


def test_it_is_sound(signs, base):
    vector = AlignmentVector.open(signs)
    vector.check()
    vector.check_finite()
    vector.check_base(base)
    assert vector.limits() is None


def test_its_damage_is_noticed(signs, tmp_path):
    folder = shutil.copytree(signs, tmp_path / "av")
    tensors = load_file(folder / SIGNS)
    save_file({**tensors, "lm_head.weight": -tensors["lm_head.weight"]}, folder / SIGNS)
    with pytest.raises(Exception, match="the weights are not those that were written"):
        AlignmentVector.open(folder).check()


def test_a_merge_is_that_of_whole_tensors(signs, dense, base, tmp_path):
    merged = []
    for name, vector in (("signs", signs), ("whole", dense.folder)):
        merged.append(merge(make_recipe(base, {vector: -0.7}), tmp_path / name))
    whole = load_file(base / SINGLE)
    assert merged[0].keys() == merged[1].keys() == whole.keys()
    assert not any(torch.equal(value, whole[name]) for name, value in merged[0].items())
    for name, value in merged[0].items():
        assert torch.equal(value, merged[1][name]), name


def test_knobs_and_apply_to_are_those_of_whole_tensors(signs, dense, base):
    model = (-0.7 * dense).apply_to(base)
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    for resident in (True, False):
        turned = (0.0 * dense).apply_to(base)
        Knobs(turned, av=signs, resident=resident).set(av=-0.7)
        for name, value in turned.state_dict().items():
            assert torch.equal(value, wanted[name]), name
    for name, value in (-0.7 * AlignmentVector.open(signs)).apply_to(base).state_dict().items():
        assert torch.equal(value, wanted[name]), name


def test_an_adapter_is_that_of_whole_tensors(signs, dense, tmp_path):
    ways = {"signs": AlignmentVector.open(signs), "whole": dense}
    files = []
    for name, vector in ways.items():
        export_lora(vector, tmp_path / name, 4)
        files.append(load_file(tmp_path / name / "adapter_model.safetensors"))
    for name, value in files[0].items():
        assert torch.equal(value, files[1][name]), name


def test_what_goes_to_the_hub_are_its_own_files(signs):
    upload = prepare(signs, "me/av")
    assert set(upload.contents()) == {SIGNS, "config.json", "alignment_vector.json", "README.md"}
