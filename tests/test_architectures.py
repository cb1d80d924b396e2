"""Every way from a vector to a model, of many architectures, against the aligned model's own logits."""

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest
import torch
from architectures import SPECIAL, USUAL, Architecture
from click.testing import CliRunner
from merging import make_recipe, merge
from peft import PeftModel
from safetensors.torch import load_file, save_file

from mergekit_av import AlignmentVector, Knobs, export_lora, extract
from mergekit_av.cli.check import av_check
from mergekit_av.io.checkpoint import SINGLE, Checkpoint
from mergekit_av.models.load import layout_of, load_model, load_shape
from mergekit_av.vectors.layers import carried_layers

IDS = torch.arange(5, 25)[None]
EVERY = [
    *(pytest.param(name, id=name) for name in SPECIAL),
    *(pytest.param(name, id=name, marks=pytest.mark.slow) for name in USUAL),
]
architecture = pytest.mark.parametrize("name", EVERY)


def of(name: str) -> Architecture:
    return {**SPECIAL, **USUAL}[name]


@dataclass(frozen=True)
class Made:
    """A base, the model it was aligned to, and what the tests make of them. Read only.

    Attributes:
        vector: their difference in float32, which loses nothing.
        merged: what a merge of the vector at λ = 1 in float32 wrote; `tensors`, what it holds.
    """

    folder: Path
    base: Path
    aligned: Path

    @cached_property
    def vector(self) -> AlignmentVector:
        return extract(self.base, self.aligned, self.folder / "av", dtype="float32")

    @property
    def merged(self) -> Path:
        assert self.tensors
        return self.folder / "merged"

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        recipe = make_recipe(self.base, {self.vector.folder: 1.0}, dtype="float32")
        return merge(recipe, self.folder / "merged")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An architecture's name → what there is of it."""

    @cache
    def make(name: str) -> Made:
        folder = tmp_path_factory.mktemp("made")
        return Made(folder, *of(name).make(folder / "base", folder / "aligned"))

    return make


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=IDS).logits


def load(folder: Path, dtype: str = "auto") -> torch.nn.Module:
    return load_model(folder, dtype=dtype, device="cpu")


@architecture
def test_at_1_a_vector_gives_the_aligned_model_to_the_last_bit(name, made):
    base, vector = made(name).base, made(name).vector
    expected, start = logits(load(made(name).aligned)), logits(load(base))
    assert not torch.equal(expected, start)
    checked = CliRunner().invoke(av_check, [str(vector.folder), "--base", str(base)])
    assert checked.exit_code == 0, checked.output

    # All that the base has, under its own names, but for masks that are no numbers.
    kept = {n for n, value in load_file(base / SINGLE).items() if value.dtype != torch.bool}
    assert made(name).tensors.keys() == kept
    assert torch.equal(logits(load(made(name).merged)), expected)
    applied = vector.apply_to(base)
    assert torch.equal(logits(applied), expected)
    model = load(base)
    knobs = Knobs(model, it=vector)
    knobs.set(it=1)
    assert torch.equal(logits(model), expected)
    knobs.reset()
    assert torch.equal(logits(model), start)


@architecture
def test_knobs_and_apply_to_give_the_bytes_of_a_merge(name, made, tmp_path):
    """Stochastic rounding draws by the names on disk: a tensor of many experts is rounded in parts."""
    base = made(name).base
    vector = extract(base, made(name).aligned, tmp_path / "av")
    merge(make_recipe(base, {vector.folder: -0.3}, dtype="bfloat16"), tmp_path / "merged")
    expected = load(tmp_path / "merged", "bfloat16").state_dict()
    model = load(base, "bfloat16")
    applied = (-0.3 * vector).apply_to(model).state_dict()
    Knobs(model, it=vector).set(it=-0.3)
    for tensor, value in model.state_dict().items():
        assert torch.equal(value, expected[tensor]), tensor
        assert torch.equal(applied[tensor], expected[tensor]), tensor


@architecture
def test_a_vector_of_a_merge_is_the_vector(name, made, tmp_path):
    vector = made(name).vector
    again = extract(made(name).base, made(name).merged, tmp_path / "again", dtype="float32")
    for tensor in again.delta.names():
        value = again.delta.dense(tensor)
        wanted = vector.delta.dense(tensor) if tensor in vector.delta.names() else 0 * value
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-6)
    assert set(vector.delta.names()) <= set(again.delta.names())


@architecture
def test_at_full_rank_an_adapter_is_the_vector_of_its_linear_layers(name, made, tmp_path):
    shape = load_shape(made(name).base)
    layers = carried_layers(shape, layout_of(Checkpoint(made(name).base)))
    carried = {f"{layer}.weight" for layer in layers}
    base, aligned = of(name).make(tmp_path / "base", tmp_path / "aligned", carried.__contains__)
    vector = extract(base, aligned, tmp_path / "av", dtype="float32")
    rank = max(min(shape.get_parameter(tensor).shape) for tensor in carried)
    export = export_lora(vector, tmp_path / "lora", rank, dtype="float32")
    assert export.kept == pytest.approx(1)
    adapted = PeftModel.from_pretrained(load(base, "float32"), tmp_path / "lora")
    expected = logits(load(aligned, "float32"))
    assert not torch.allclose(logits(load(base, "float32")), expected, atol=1e-3)
    torch.testing.assert_close(logits(adapted), expected, rtol=0, atol=3e-5)


def test_experts_that_were_fused_are_compared_with_those_of_the_base(tmp_path):
    """As releases of mergekit save them that do not know alignment vectors."""
    base, aligned = SPECIAL["mixtral"].make(tmp_path / "base", tmp_path / "aligned")
    whole = extract(base, aligned, tmp_path / "av", dtype="float32")
    model = load(aligned)
    fused = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(fused, aligned / SINGLE, metadata={"format": "pt"})
    assert set(load_file(aligned / SINGLE)) != set(load_file(base / SINGLE))
    vector = extract(base, aligned, tmp_path / "other", dtype="float32")
    assert vector.metadata.fingerprint == whole.metadata.fingerprint
    assert vector.metadata.base.fingerprint == whole.metadata.base.fingerprint
    assert AlignmentVector.open(tmp_path / "other").metadata.base.id == str(base)
