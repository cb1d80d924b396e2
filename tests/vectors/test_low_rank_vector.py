"""Vectors that are stored as factors: made of adapters, of whole models and of one another, and used like
any other."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from merging import make_recipe, merge, refusal
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import make_model, make_tokenizer, perturb
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from mergekit_av import AlignmentVector, AVError, Knobs, export_lora, extract
from mergekit_av.export.hub import prepare
from mergekit_av.io.checkpoint import SINGLE
from mergekit_av.vectors.low_rank_delta import ADAPTER, ADAPTER_CONFIG, FACTORS, WHOLE

IDS = torch.tensor([[5, 17, 301, 42, 7, 599, 23, 88]])


def load(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def make_adapter(base: Path, out: Path, seed: int = 1, dtype=torch.float32, **settings) -> Path:
    """A LoRA adapter as PEFT writes it, with random factors."""
    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **settings}
    model = get_peft_model(load(base), LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "lora_magnitude" in name:
                weight.add_(torch.randn_like(weight) * 0.05)
            elif "modules_to_save" in name:
                weight.add_(torch.randn_like(weight) * 0.01)
    model.save_pretrained(out)
    if dtype != torch.float32:
        tensors = {name: value.to(dtype) for name, value in load_file(out / ADAPTER).items()}
        save_file(tensors, out / ADAPTER, metadata={"format": "pt"})
    return out


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny float32 Llama, its embeddings not tied. Read only."""
    folder = make_model(tmp_path_factory.mktemp("low") / "base", tied=False, dtype=torch.float32)
    make_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def conv(tmp_path_factory) -> Path:
    """A tiny float32 GPT-2, whose weights lie the other way round. Read only."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=600, n_embd=32, n_layer=2, n_head=4, n_positions=256)
    folder = tmp_path_factory.mktemp("conv") / "base"
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vectors(base, tmp_path_factory) -> dict[str, Path]:
    """Two vectors of adapters, in bfloat16. Read only."""
    folder = tmp_path_factory.mktemp("vectors")
    made = {}
    for seed, name in enumerate(("tone", "law"), 1):
        adapter = make_adapter(base, folder / f"{name}-lora", seed, r=2 + seed)
        made[name] = extract(base, adapter, folder / name, dtype="bfloat16").folder
    return made


SETTINGS = {
    "plain": {},
    "rslora": {"use_rslora": True, "lora_alpha": 3},
    "patterns": {"rank_pattern": {"q_proj": 2, "down_proj": 7}, "alpha_pattern": {"k_proj": 5}},
    "some layers": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    "modules to save": {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_an_adapter_becomes_a_vector_of_its_own_factors(settings, base, tmp_path):
    adapter = make_adapter(base, tmp_path / "lora", **settings)
    wanted = logits(PeftModel.from_pretrained(load(base), adapter).merge_and_unload())

    vector = extract(base, adapter, tmp_path / "av")

    assert vector.metadata.low_rank and vector.metadata.precision["dtype"] == "float32"
    vector.check()
    vector.check_base(base)
    merge(make_recipe(base, {tmp_path / "av": 1.0}, dtype="float32"), tmp_path / "merged")
    model = load(base)
    Knobs(model, av=vector).set(av=1.0)
    for found in (load(tmp_path / "merged"), model, vector.apply_to(base)):
        torch.testing.assert_close(logits(found), wanted, rtol=0, atol=1e-5)
    assert (wanted - logits(load(base))).abs().max() > 1e-2


def test_layers_that_lie_the_other_way_round(conv, tmp_path):
    adapter = make_adapter(conv, tmp_path / "lora", target_modules=["c_attn", "c_fc"])
    wanted = logits(PeftModel.from_pretrained(load(conv), adapter))
    vector = extract(conv, adapter, tmp_path / "av")
    torch.testing.assert_close(logits(vector.apply_to(conv)), wanted, rtol=0, atol=1e-5)
    again = PeftModel.from_pretrained(load(conv), tmp_path / "av")
    torch.testing.assert_close(logits(again), wanted, rtol=0, atol=1e-5)


def test_factors_in_bfloat16_stay_as_they_are(base, tmp_path):
    adapter = make_adapter(base, tmp_path / "lora", dtype=torch.bfloat16)
    vector = extract(base, adapter, tmp_path / "av")
    assert vector.metadata.precision["dtype"] == "bfloat16"
    stored = load_file(tmp_path / "av" / ADAPTER)
    for name, value in load_file(adapter / ADAPTER).items():
        # lora_alpha / r = 2 is in B.
        assert torch.equal(stored[name], value * (2 if "lora_B" in name else 1)), name


@pytest.mark.parametrize("form", ["dora", "embeddings"])
def test_an_adapter_of_another_form_becomes_a_vector_of_whole_tensors(form, base, tmp_path, caplog):
    how = {
        "dora": {"use_dora": True},
        "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    }
    adapter = make_adapter(base, tmp_path / "lora", **how[form])
    wanted = logits(PeftModel.from_pretrained(load(base), adapter).merge_and_unload())
    with caplog.at_level("INFO", logger="mergekit_av"):
        vector = extract(base, adapter, tmp_path / "av", dtype="float32")
    assert "becomes a vector of whole tensors: " in caplog.text
    assert not vector.metadata.low_rank
    torch.testing.assert_close(logits(vector.apply_to(base)), wanted, rtol=0, atol=1e-5)


def test_the_folder_is_an_adapter_of_which_scale_1_is_lambda_1(vectors, base):
    folder = vectors["tone"]
    config = json.loads((folder / ADAPTER_CONFIG).read_text("utf-8"))
    assert config["lora_alpha"] == config["r"] == 3 and config["modules_to_save"] is None
    model = PeftModel.from_pretrained(load(base), folder)
    wanted = logits(AlignmentVector.open(folder).apply_to(base))
    torch.testing.assert_close(logits(model), wanted, rtol=0, atol=1e-5)


def test_where_tensors_are_whole_no_tool_loads_half_of_the_vector(base, tmp_path):
    adapter = make_adapter(base, tmp_path / "lora", **SETTINGS["modules to save"])
    folder = extract(base, adapter, tmp_path / "av").folder
    names = {path.name for path in folder.iterdir()}
    assert {FACTORS, WHOLE} <= names and not {ADAPTER, ADAPTER_CONFIG} & names
    assert set(load_file(folder / WHOLE)) == {"lm_head.weight"}


def test_it_is_small_and_known_by_its_files(vectors):
    folder = vectors["law"]
    upload = prepare(folder, "me/law")
    names = {ADAPTER, ADAPTER_CONFIG, "config.json", "alignment_vector.json", "README.md"}
    assert set(upload.contents()) == names
    assert "low rank" in (folder / "README.md").read_text("utf-8")


def as_whole(vector: Path, out: Path) -> Path:
    """The same vector, its tensors stored whole."""
    low = AlignmentVector.open(vector)
    aligned = out.parent / f"{out.name}-aligned"
    shutil.copytree(Path(low.metadata.base.id), aligned)
    tensors = load_file(aligned / SINGLE)
    save_file(
        {name: value + low.delta.dense(name) for name, value in tensors.items()},
        aligned / SINGLE,
        metadata={"format": "pt"},
    )
    return extract(low.metadata.base.id, aligned, out, dtype="float32").folder


RECIPES = {
    "one": {"tone": -0.7},
    "two": {"tone": 0.5, "law": -1.5},
    "a gradient": {"tone": [0.0, 1.0]},
    "a filter": {"law": [{"filter": "mlp", "value": 0.5}, {"value": -1.0}]},
}


@pytest.mark.parametrize("lambdas", RECIPES.values(), ids=RECIPES)
def test_a_merge_is_base_plus_products(lambdas, vectors, base, tmp_path):
    low = merge(
        make_recipe(base, {vectors[n]: value for n, value in lambdas.items()}, dtype="float32"),
        tmp_path / "low",
    )
    whole = {n: as_whole(vectors[n], tmp_path / n) for n in lambdas}
    high = merge(
        make_recipe(base, {whole[n]: value for n, value in lambdas.items()}, dtype="float32"),
        tmp_path / "high",
    )
    assert low.keys() == high.keys() == load_file(base / SINGLE).keys()
    for name, value in low.items():
        torch.testing.assert_close(value, high[name], rtol=0, atol=1e-6)
    assert torch.equal(
        low["model.embed_tokens.weight"], load_file(base / SINGLE)["model.embed_tokens.weight"]
    )


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_knobs_and_apply_to_give_the_bytes_of_a_merge(rounding, vectors, tmp_path):
    low = AlignmentVector.open(vectors["tone"])
    narrow = make_model(tmp_path / "narrow", tied=False)
    lambdas = {"tone": 0.75, "law": -0.4}
    models = {vectors[n]: value for n, value in lambdas.items()}
    recipe = make_recipe(
        narrow, models, dtype="bfloat16", parameters={"rounding": rounding, "seed": 3}
    )
    for model in recipe["models"]:
        model["parameters"]["transfer"] = True
    merged = merge(recipe, tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(narrow, dtype=torch.bfloat16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    knobs = Knobs(model, {n: vectors[n] for n in lambdas}, rounding=rounding, seed=3, transfer=True)
    knobs.set(lambdas)
    for name, value in model.state_dict().items():
        assert torch.equal(value, merged[name]), name
    knobs.reset()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert low.delta.is_zero("model.norm.weight")


def test_merge_bytes_do_not_depend_on_threads_or_instructions(vectors, base, tmp_path):
    recipe = make_recipe(base, {vectors["tone"]: -0.7, vectors["law"]: 1.3}, dtype="bfloat16")
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe), "utf-8")
    found = set()
    for threads, capability in (("1", "default"), ("2", None), ("4", "default")):
        out = tmp_path / f"out-{threads}"
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        environment |= {"ATEN_CPU_CAPABILITY": capability} if capability else {}
        command = ["-m", "mergekit.scripts.run_yaml", tmp_path / "recipe.yml", out, "--quiet"]
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr
        found.add((out / SINGLE).read_bytes())
    assert len(found) == 1


def test_a_sum_stays_of_low_rank(vectors, base, tmp_path):
    tone, law = (AlignmentVector.open(vectors[name]) for name in ("tone", "law"))
    total = 0.5 * tone - 2 * law
    saved = total.save(tmp_path / "sum", name="sum", dtype="float32")
    assert saved.metadata.low_rank["rank"] == 7
    saved.check()
    saved.check_base(base)
    for name in saved.delta.names():
        torch.testing.assert_close(saved.delta.dense(name), total.tensor(name), rtol=0, atol=1e-6)


def test_a_sum_with_a_whole_vector_is_whole(vectors, base, tmp_path):
    whole = extract(base, perturb(base, tmp_path / "aligned"), tmp_path / "whole")
    total = AlignmentVector.open(vectors["tone"]) + whole
    saved = total.save(tmp_path / "sum", name="sum", dtype="float32")
    assert not saved.metadata.low_rank
    for name in saved.delta.names():
        assert torch.equal(saved.delta.dense(name), total.tensor(name)), name


def test_a_sum_has_whole_what_one_of_its_vectors_has_whole(base, vectors, tmp_path):
    adapter = make_adapter(base, tmp_path / "lora", **SETTINGS["modules to save"])
    total = 2 * extract(base, adapter, tmp_path / "av") + AlignmentVector.open(vectors["law"])
    saved = total.save(tmp_path / "sum", name="sum", dtype="float32")
    assert saved.metadata.low_rank and (saved.folder / WHOLE).is_file()
    for name in saved.delta.names():
        torch.testing.assert_close(saved.delta.dense(name), total.tensor(name), rtol=0, atol=1e-6)


def test_an_export_has_the_factors_themselves(vectors, base, tmp_path):
    vector = AlignmentVector.open(vectors["tone"])
    export = export_lora(vector, tmp_path / "lora", scale=-0.5)
    assert export.rank == 3 and export.kept == pytest.approx(1)
    own = load_file(vectors["tone"] / ADAPTER)
    for name, value in load_file(tmp_path / "lora" / ADAPTER).items():
        assert torch.equal(value, own[name]), name
    found = logits(PeftModel.from_pretrained(load(base), tmp_path / "lora"))
    wanted = logits((-0.5 * vector).apply_to(base))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_an_export_of_a_lower_rank_is_the_nearest(vectors, tmp_path):
    export = export_lora(AlignmentVector.open(vectors["tone"]), tmp_path / "lora", 1)
    assert 0.3 < export.kept < 0.99


def test_an_export_of_whole_tensors_needs_a_rank(base, tmp_path):
    whole = extract(base, perturb(base, tmp_path / "aligned"), tmp_path / "whole")
    with pytest.raises(AVError, match="is stored whole: name the --rank"):
        export_lora(whole, tmp_path / "lora")


def test_a_whole_model_is_compressed_on_the_way(base, tmp_path):
    aligned = perturb(base, tmp_path / "aligned")
    whole = extract(base, aligned, tmp_path / "whole", dtype="float32")
    low = extract(base, aligned, tmp_path / "low", rank=32, dtype="float32")
    assert "rank 32 of the linear layers, " in low.metadata.precision["difference"]
    low.check_base(base)
    # 32 is the full rank of these layers; the other tensors are left out.
    for name in low.delta.names():
        carried = "proj" in name
        assert low.delta.is_zero(name) != carried
        if carried:
            torch.testing.assert_close(
                low.delta.dense(name), whole.delta.dense(name), rtol=0, atol=1e-7
            )
    kept = float(low.metadata.precision["difference"].rpartition("layers, ")[2].partition("%")[0])
    norms = {n: t["norm"] ** 2 for n, t in whole.metadata.statistics["tensors"].items()}
    share = sum(v for n, v in norms.items() if "proj" in n) / sum(norms.values())
    assert kept == pytest.approx(100 * share, abs=0.06)


@pytest.mark.parametrize("rank", [0, 33])
def test_a_rank_that_no_layer_has_is_refused(rank, base, tmp_path):
    aligned = perturb(base, tmp_path / "aligned")
    with pytest.raises(AVError, match=f"rank {rank} is impossible: .* have 1 to 32"):
        extract(base, aligned, tmp_path / "av", rank=rank)
    assert not (tmp_path / "av").exists()


def test_an_adapter_of_another_base_is_refused(conv, base, tmp_path):
    adapter = make_adapter(base, tmp_path / "lora", target_modules=["q_proj"])
    other = make_model(tmp_path / "other", "mistral", dtype=torch.float32)
    config = json.loads((other / "config.json").read_text("utf-8"))
    (other / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4}), "utf-8")
    tensors = load_file(adapter / ADAPTER)
    wide = {n: torch.cat([v, v], 1) if "lora_A" in n else v for n, v in tensors.items()}
    save_file(wide, adapter / ADAPTER, metadata={"format": "pt"})
    with pytest.raises(AVError, match=r"does not fit .*lora_A.* the base asks for"):
        extract(other, adapter, tmp_path / "av")


def edit_metadata(folder: Path, change) -> None:
    file = folder / "alignment_vector.json"
    content = json.loads(file.read_text("utf-8"))
    change(content)
    file.write_text(json.dumps(content), "utf-8")


QUERY = "model.layers.0.self_attn.q_proj.weight"
DAMAGE = {
    "a factor that is gone": (lambda f, t: t.popitem(), "is not as alignment_vector.json says"),
    "a factor too many": (lambda f, t: t.update(x=torch.zeros(1)), "x is not as"),
    "a factor of another rank": (
        lambda f, t: t.update({n: v[:1].clone() for n, v in t.items() if "q_proj.lora_A" in n}),
        "is not as alignment_vector.json says",
    ),
    "other values": (
        lambda f, t: t.update({n: -v for n, v in t.items() if "q_proj.lora_A" in n}),
        "not those that were written",
    ),
    "no list of tensors": (
        lambda f, t: edit_metadata(f, lambda m: m["low_rank"].pop("tensors")),
        "does not say what the factors are of",
    ),
    "a tensor in two forms": (
        lambda f, t: edit_metadata(f, lambda m: m["low_rank"]["tensors"][QUERY].update(whole=True)),
        "contradicts itself",
    ),
    "a shape that is none": (
        lambda f, t: edit_metadata(f, lambda m: m["low_rank"]["tensors"][QUERY].update(shape="x")),
        "does not say what the factors are of",
    ),
}


@pytest.mark.parametrize(("damage", "told"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_told_in_a_line(damage, told, vectors, base, tmp_path):
    folder = shutil.copytree(vectors["tone"], tmp_path / "av")
    tensors = load_file(folder / ADAPTER)
    damage(folder, tensors)
    save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})
    with pytest.raises(AVError, match=told):
        AlignmentVector.open(folder).check()
    assert refusal(make_recipe(base, {folder: 1.0}), tmp_path / "out")


def test_values_that_are_no_numbers_are_refused(base, tmp_path):
    adapter = make_adapter(base, tmp_path / "lora")
    tensors = load_file(adapter / ADAPTER)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, adapter / ADAPTER, metadata={"format": "pt"})
    with pytest.raises(AVError, match="NaN or infinite"):
        extract(base, adapter, tmp_path / "av")
    assert not (tmp_path / "av").exists()


def test_a_vector_of_another_base_is_refused(vectors, tmp_path):
    other = make_model(tmp_path / "other", tied=False, dtype=torch.float32, seed=9)
    assert "is a vector of" in refusal(make_recipe(other, {vectors["tone"]: 1.0}), tmp_path / "out")


def test_an_export_does_not_take_a_vector_for_one_of_its_own(vectors, tmp_path):
    folder = shutil.copytree(vectors["tone"], tmp_path / "av")
    with pytest.raises(AVError, match="is not an adapter of av-export"):
        export_lora(AlignmentVector.open(vectors["law"]), folder, overwrite=True)
    AlignmentVector.open(folder).check()
