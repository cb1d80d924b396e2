"""Adapters as PEFT loads them, against the vector that they were made of."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from damage import split
from peft import PeftModel
from peft.helpers import rescale_adapter_scale
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from tiny import ARCHITECTURES, make_model
from transformers import AutoModelForCausalLM

from mergekit_av import AlignmentVector, Knobs, export_lora, extract, load_domain, load_records
from mergekit_av.export.peft import CONFIG, WEIGHTS
from mergekit_av.io.checkpoint import SINGLE, Checkpoint
from mergekit_av.models.load import layout_of, load_model, load_shape, load_tokenizer
from mergekit_av.models.scoring import mean_log_probs
from mergekit_av.vectors.layers import carried_layers

IDS = torch.tensor([[5, 17, 301, 42, 7, 599, 23, 88]])
FULL = 32


def logits(model) -> torch.Tensor:
    """Log-probabilities of every token after each of `IDS`."""
    with torch.inference_mode():
        return model(IDS).logits.log_softmax(-1)


def load(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def at(model: torch.nn.Module, scale: float) -> torch.nn.Module:
    """A model with an adapter, λ set as its README says."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.set_scale("default", scale)
    return model


def linear_only(base: Path, folder: Path, dtype: str = "float32", seed: int = 1) -> AlignmentVector:
    """A vector that moves linear layers alone, so that an adapter can be all of it."""
    carried = {
        f"{layer}.weight" for layer in carried_layers(load_shape(base), layout_of(Checkpoint(base)))
    }
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: value.float()
        + (name in carried) * 0.02 * torch.randn(value.shape, generator=generator)
        for name, value in load_file(base / SINGLE).items()
    }
    aligned = shutil.copytree(base, folder / "aligned")
    save_file(tensors, aligned / SINGLE, metadata={"format": "pt"})
    return extract(base, aligned, folder / "av", name="mine", dtype=dtype)


@pytest.fixture(scope="module")
def linear(base, tmp_path_factory) -> AlignmentVector:
    """A float32 vector of `base` that moves linear layers alone. Read only."""
    return linear_only(base, tmp_path_factory.mktemp("linear"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_at_full_rank_the_adapter_is_the_vector_at_every_lambda(tmp_path, architecture, tied):
    base = make_model(tmp_path / "base", architecture, tied=tied)
    vector = linear_only(base, tmp_path)
    export = export_lora(vector, tmp_path / "lora", FULL, dtype="float32")
    assert export.kept == pytest.approx(1)
    assert ("output layer" in {part.kind for part in export.parts}) != tied
    model = load(base)
    adapted = PeftModel.from_pretrained(load(base), tmp_path / "lora").eval()
    for value in (1.0, -0.7):
        expected = logits((value * vector).apply_to(model))
        assert (expected - logits(model)).abs().max() > 0.01
        assert torch.allclose(logits(at(adapted, value)), expected, atol=2e-5)
    assert torch.equal(logits(at(adapted, 0)), logits(model))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi"])
def test_what_the_adapter_leaves_out_is_the_only_difference(tmp_path, architecture):
    """Of a vector that moves everything: embeddings, norms and biases as well."""
    base = make_model(tmp_path / "base", architecture)
    generator = torch.Generator().manual_seed(3)
    aligned = shutil.copytree(base, tmp_path / "aligned")
    tensors = {
        name: value.float() + 0.02 * torch.randn(value.shape, generator=generator)
        for name, value in load_file(base / SINGLE).items()
    }
    save_file(tensors, aligned / SINGLE, metadata={"format": "pt"})
    vector = extract(base, aligned, tmp_path / "av", dtype="float32")
    export = export_lora(vector, tmp_path / "lora", FULL, dtype="float32")

    model = load(base)
    layers = carried_layers(model, layout_of(Checkpoint(base)))
    with torch.no_grad():
        for layer in layers:
            model.get_submodule(layer).weight += vector.delta.dense(f"{layer}.weight")
    adapted = PeftModel.from_pretrained(load(base), tmp_path / "lora").eval()
    assert torch.allclose(logits(adapted), logits(model), atol=2e-5)

    squares = {n: vector.delta.dense(n).double().square().sum().item() for n in tensors}
    carried = sum(squares[f"{layer}.weight"] for layer in layers)
    assert export.kept == pytest.approx(carried / sum(squares.values()))
    parts = {part.kind: part for part in export.parts}
    assert sum(part.share for part in export.parts) == pytest.approx(1)
    assert sum(part.tensors for part in export.parts) == len(squares)
    assert parts["embeddings"].share == pytest.approx(
        squares["model.embed_tokens.weight"] / sum(squares.values())
    )
    assert all(parts[kind].kept == 0 for kind in {"embeddings", "norms", "biases"} & parts.keys())
    assert ("biases" in parts) == (architecture != "llama")


def test_log_probabilities_come_nearer_with_the_rank(base, linear, tmp_path):
    records = [r for r in load_records(load_domain("medical")) if r.split == "test"][:2]
    tokenizer, model = load_tokenizer(base), load_model(base)
    with Knobs(model, {"av": linear}).at(av=-0.5):
        expected = mean_log_probs(model, tokenizer, records)
    distances, exports = [], {}
    for rank in (1, 8, FULL):
        exports[rank] = export_lora(linear, tmp_path / str(rank), rank, dtype="float32")
        adapted = at(PeftModel.from_pretrained(load_model(base), tmp_path / str(rank)), -0.5)
        found = mean_log_probs(adapted.get_base_model().eval(), tokenizer, records)
        distances.append((found - expected).abs().mean().item())
    assert distances == sorted(distances, reverse=True) and distances[-1] < 1e-5 < distances[-2]
    # Each export says what the others keep.
    assert exports[1].kept < 0.5 < exports[8].kept < exports[FULL].kept
    for export in exports.values():
        assert export.kept_at[8] == pytest.approx(exports[8].kept)
        assert export.kept_at[FULL] == pytest.approx(1)


def test_a_rounded_adapter_is_near_the_vector(base, linear, tmp_path):
    """bfloat16 is the default, for the factors as for the vector."""
    export = export_lora(linear, tmp_path / "lora", FULL)
    assert {t.dtype for t in load_file(tmp_path / "lora" / WEIGHTS).values()} == {torch.bfloat16}
    assert export.nbytes == (tmp_path / "lora" / WEIGHTS).stat().st_size
    adapted = PeftModel.from_pretrained(load(base), tmp_path / "lora").eval()
    expected = logits(linear.apply_to(load(base)))
    change = (expected - logits(load(base))).norm()
    assert (logits(adapted) - expected).norm() < 0.01 * change


@pytest.mark.parametrize("scale", [-1.2, 2.0])
def test_the_scale_that_it_was_given_is_the_one_it_acts_at(base, linear, tmp_path, scale):
    export_lora(linear, tmp_path / "lora", FULL, scale=scale, dtype="float32")
    config = json.loads((tmp_path / "lora" / CONFIG).read_text("utf-8"))
    assert config["lora_alpha"] == pytest.approx(scale * FULL)
    adapted = PeftModel.from_pretrained(load(base), tmp_path / "lora").eval()
    expected = logits((scale * linear).apply_to(load(base)))
    assert torch.allclose(logits(adapted), expected, atol=2e-5)
    # Other λ are relative to it.
    with rescale_adapter_scale(adapted, 0.5 / scale):
        assert torch.allclose(
            logits(adapted), logits((0.5 * linear).apply_to(load(base))), atol=2e-5
        )


def test_the_program_in_the_readme_works(base, linear, tmp_path):
    """λ of one adapter, and a sum of two, as of vectors."""
    vectors = {"medical": linear, "legal": linear_only(base, tmp_path, seed=2)}
    for name, vector in vectors.items():
        export_lora(vector, tmp_path / f"{name}-lora", FULL, dtype="float32")
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    (program,) = re.findall("```python\n(from peft import .*?)```", readme, re.DOTALL)
    program = program.replace("avs/", f"{tmp_path}/")
    program = program.replace("model.generate(...)", "alone = logits(model.eval())")
    found = {"base": load(base), "logits": logits}
    exec(program, found)
    medical, legal = vectors.values()
    for seen, combination in (
        (found["alone"], -1.2 * medical),
        (logits(found["model"].eval()), 0.6 * legal - 1.2 * medical),
    ):
        assert torch.allclose(seen, logits(combination.apply_to(load(base))), atol=2e-5)


def test_its_form_is_what_every_reader_takes(linear, tmp_path):
    """vLLM: one rank for all, no bias, no modules saved whole; llama.cpp: nothing but factors."""
    export = export_lora(linear, tmp_path / "lora", 24)
    config = json.loads((export.folder / CONFIG).read_text("utf-8"))
    assert (config["peft_type"], config["task_type"]) == ("LORA", "CAUSAL_LM")
    assert (config["r"], config["lora_alpha"]) == (24, 24) and type(config["lora_alpha"]) is int
    assert config["bias"] == "none" and not config["modules_to_save"]
    assert not config["rank_pattern"] and not config["alpha_pattern"]
    assert not config["use_rslora"] and not config["use_dora"]
    assert config["base_model_name_or_path"] == linear.metadata.base.id
    assert config["target_modules"] == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj",
    ]  # fmt: skip
    assert sorted(file.name for file in export.folder.iterdir()) == sorted(
        ["README.md", CONFIG, WEIGHTS]
    )
    name = re.compile(r"base_model\.model\.model\.layers\.[01]\.\w+\.\w+_proj\.lora_([AB])\.weight")
    for key, tensor in load_file(export.folder / WEIGHTS).items():
        # k_proj is 16 × 32: filled up.
        assert tensor.shape[{"A": 0, "B": 1}[name.fullmatch(key)[1]]] == 24


def test_a_sharded_vector_of_bfloat16_gives_the_same_adapter_again(vectors, tmp_path):
    sharded = shutil.copytree(vectors["legal"], tmp_path / "sharded")
    split(sharded)
    one = export_lora(AlignmentVector.open(vectors["legal"]), tmp_path / "one", 4)
    two = export_lora(AlignmentVector.open(sharded), tmp_path / "two", 4)
    for file in one.folder.iterdir():
        assert file.read_bytes() == (two.folder / file.name).read_bytes()


def test_a_vector_that_moves_nothing_loses_nothing(base, tmp_path):
    vector = extract(base, base, tmp_path / "av")
    export = export_lora(vector, tmp_path / "lora", 2)
    assert all(part.share == 0 for part in export.parts)
    adapted = PeftModel.from_pretrained(load(base), tmp_path / "lora").eval()
    assert torch.equal(logits(adapted), logits(load(base)))


def test_the_program_on_its_card_works(base, linear, tmp_path):
    export = export_lora(linear, tmp_path / "lora", FULL, dtype="float32")
    card = (export.folder / "README.md").read_text("utf-8")
    program = re.search("```python\n(.*?)```", card, re.DOTALL)[1]
    assert str(base) in program
    program = program.replace("PATH-OR-ID-OF-THIS-ADAPTER", str(export.folder))
    found = {}
    program = program.replace(
        "model.generate(...)", "found['logits'] = logits(model.eval().float())"
    )
    exec(program, {"found": found, "logits": logits})
    expected = logits((-0.5 * linear).apply_to(load(base)))
    assert torch.allclose(found["logits"], expected, atol=2e-5)
