"""What a base holds beside its weights, or instead of them: carried over, left out or refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from architectures import SIZES, SPECIAL, USUAL
from click.testing import CliRunner
from damage import edit_json, edit_tensors
from mergekit.architecture import arch_info_for_config
from mergekit.config import MergeConfiguration
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from merging import make_recipe, merge, refusal, run
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from mergekit_av import AlignmentVector, AVError, Knobs, export_lora, extract
from mergekit_av.cli.check import av_check
from mergekit_av.cli.extract import av_extract
from mergekit_av.cli.push import av_push
from mergekit_av.io.checkpoint import INDEX, SINGLE, Checkpoint
from mergekit_av.models.load import layout_of, load_model, load_shape

PROJECTION = "model.layers.0.self_attn.q_proj.weight"


def quantised(folder: Path, dtype: torch.dtype = torch.float8_e4m3fn) -> Path:
    """As FP8 checkpoints are: codes, with the scales that make weights of them beside."""

    def encode(tensors: dict) -> None:
        for name in [n for n in tensors if n.endswith("proj.weight")]:
            scale = tensors[name].abs().max().float() / 448
            tensors[f"{name}_scale_inv"] = scale.reshape(1, 1)
            tensors[name] = (tensors[name].float() / scale).to(dtype)

    edit_tensors(folder, encode)
    return folder


def says_so(folder: Path, key: str | None = None) -> Path:
    settings = {"quantization_config": {"quant_method": "fp8"}}
    edit_json(folder / "config.json", lambda c: c.update({key: settings} if key else settings))
    return folder


# --- codes that are no numbers -----------------------------------------------------------------


@pytest.mark.parametrize("which", ["base", "aligned"])
@pytest.mark.parametrize("told_by", ["the configuration", "one within it", "the dtype", "int8"])
def test_codes_are_not_taken_for_numbers(which, told_by, base, aligned, tmp_path):
    folders = {"base": shutil.copytree(base, tmp_path / "base")}
    folders["aligned"] = shutil.copytree(aligned, tmp_path / "aligned")
    if told_by in ("the configuration", "one within it"):
        says_so(folders[which], "text_config" if told_by == "one within it" else None)
        wanted = rf"{which} is quantised \(fp8\)"
    elif told_by == "the dtype":
        quantised(folders[which])
        wanted = f"{which}: .* is float8_e4m3fn, which is not supported"
    else:
        edit_tensors(
            folders["base"], lambda t: t.update({PROJECTION: t[PROJECTION].to(torch.int8)})
        )
        edit_tensors(folders["aligned"], lambda t: t.update({PROJECTION: t[PROJECTION].bfloat16()}))
        wanted = f"{PROJECTION} is int8, codes and not weights"
    with pytest.raises(AVError, match=wanted):
        extract(folders["base"], folders["aligned"], tmp_path / "av")
    assert not (tmp_path / "av").exists()


@pytest.mark.parametrize("part", ["a layer", "experts", "fused experts"])
def test_codes_of_an_aligned_model_are_not_taken_for_weights(part, tmp_path):
    """As LLM.int8 keeps them: under the weights' names, in their shapes."""
    name = "llama" if part == "a layer" else "mixtral"
    base, aligned = {**SPECIAL, **USUAL}[name].make(tmp_path / "base", tmp_path / "aligned")
    if part == "fused experts":
        fused = {name: value.clone() for name, value in load_model(aligned).state_dict().items()}
        save_file(fused, aligned / SINGLE, metadata={"format": "pt"})
    word = "self_attn.q_proj" if part == "a layer" else "experts"

    def encode(tensors: dict) -> None:
        for name in [n for n in tensors if word in n]:
            tensors[name] = (tensors[name] * 100).to(torch.int8)

    edit_tensors(aligned, encode)
    with pytest.raises(AVError, match=r"aligned: .* is int8, codes and not weights"):
        extract(base, aligned, tmp_path / "av")


def test_a_quantised_base_is_merged_with_nothing(base, vectors, tmp_path):
    codes = says_so(quantised(shutil.copytree(base, tmp_path / "codes")))
    assert "codes is quantised (fp8)" in refusal(
        make_recipe(codes, {vectors["legal"]: 1}), tmp_path / "out"
    )
    checked = CliRunner().invoke(av_check, [str(vectors["legal"]), "--base", str(codes)])
    assert checked.exit_code == 1 and "is quantised (fp8)" in checked.stderr
    with pytest.raises(AVError, match=r"is quantised \(fp8\)"):
        extract(base, codes, tmp_path / "av")


def test_float64_is_not_rounded_in_silence(base, aligned, tmp_path):
    wide = shutil.copytree(aligned, tmp_path / "wide")
    edit_tensors(wide, lambda tensors: tensors.update({PROJECTION: tensors[PROJECTION].double()}))
    with pytest.raises(AVError, match="is float64, which is not supported"):
        extract(base, wide, tmp_path / "av")


# --- tensors that nobody reads -----------------------------------------------------------------


def test_what_nothing_reads_is_known(tmp_path):
    base, _ = SPECIAL["pythia"].make(tmp_path / "base", tmp_path / "aligned")
    layout = layout_of(Checkpoint(base))
    assert {name.split(".", 3)[3] for name in layout.ignored} == {
        "attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq",
    }  # fmt: skip
    assert not layout.missing and not layout.misshapen


def test_heads_for_more_tokens_are_carried_over_as_they_are(tmp_path):
    base, aligned = SPECIAL["qwen3 with more heads"].make(tmp_path / "base", tmp_path / "aligned")
    vector = extract(base, aligned, tmp_path / "av")
    extra = {name for name in load_file(base / SINGLE) if "mtp." in name or "layers.2." in name}
    assert len(extra) > 2 and not extra & set(vector.delta.names())
    merged = merge(make_recipe(base, {vector.folder: 2.0}, dtype="bfloat16"), tmp_path / "out")
    before = load_file(base / SINGLE)
    assert all(torch.equal(merged[name], before[name]) for name in extra)
    assert {merged[name].dtype for name in set(merged) - extra} == {torch.bfloat16}


def test_a_gradient_goes_over_the_layers_that_the_model_has(tmp_path):
    """A multi-token head that is stored as one more layer is none of them."""
    base, aligned = SPECIAL["qwen3 with more heads"].make(tmp_path / "base", tmp_path / "aligned")
    vector = extract(base, aligned, tmp_path / "av", dtype="float32").folder
    merged = merge(make_recipe(base, {vector: [0.0, 1.0]}, dtype="float32"), tmp_path / "out")
    before, after = load_file(base / SINGLE), load_file(aligned / SINGLE)
    for layer, wanted in enumerate((before, after)):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        assert torch.equal(merged[name], wanted[name])


def test_heads_that_were_trained_are_merged_as_well(tmp_path):
    base, aligned = SPECIAL["qwen3 with more heads"].make(tmp_path / "base", tmp_path / "aligned")
    extra = {n: v + 1 for n, v in load_file(base / SINGLE).items() if "mtp." in n}
    edit_tensors(aligned, lambda tensors: tensors.update(extra))
    vector = extract(base, aligned, tmp_path / "av", dtype="float32")
    merged = merge(make_recipe(base, {vector.folder: 1.0}, dtype="float32"), tmp_path / "out")
    assert all(torch.equal(merged[name], value) for name, value in extra.items())


def test_a_value_head_of_the_aligned_model_is_said_to_have_no_part(base, aligned, tmp_path, caplog):
    with_head = shutil.copytree(aligned, tmp_path / "aligned")
    head = {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.zeros(1)}
    edit_tensors(with_head, lambda tensors: tensors.update(head))
    vector = extract(base, with_head, tmp_path / "av")
    assert (
        vector.metadata.fingerprint == extract(base, aligned, tmp_path / "x").metadata.fingerprint
    )
    assert "v_head.summary.bias (and 1 more) is not read by the architecture" in caplog.text


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}, "rope_parameters"),
        ({"rms_norm_eps": 0.5, "num_hidden_layers": 1}, "num_hidden_layers, rms_norm_eps"),
        ({"use_cache": False, "transformers_version": "4.40.0", "bos_token_id": 3}, None),
    ],
)
def test_settings_that_a_vector_cannot_have_are_named(
    change, named, base, aligned, tmp_path, caplog
):
    other = shutil.copytree(aligned, tmp_path / "aligned")
    edit_json(other / "config.json", lambda config: config.update(change))
    extract(base, other, tmp_path / "av")
    if named is None:
        assert not caplog.text
    else:
        assert f"aligned has another {named} in its config.json than" in caplog.text


def test_a_weight_that_the_base_lacks_is_not_left_out(tmp_path):
    """Biases are read: an aligned model that has some is no difference to a base that has none."""
    base, _ = SPECIAL["qwen3 with more heads"].make(tmp_path / "base", tmp_path / "unused")
    _, aligned = SPECIAL["qwen3 with biases"].make(tmp_path / "unused 2", tmp_path / "aligned")
    with pytest.raises(
        AVError, match=r"base has no tensor .*bias: the aligned model is not of this"
    ):
        extract(base, aligned, tmp_path / "av")


# --- merges ------------------------------------------------------------------------------------


def test_a_recipe_that_names_a_module_that_the_base_does_not_have(tmp_path):
    base, aligned = SPECIAL["gemma3 that sees"].make(tmp_path / "base", tmp_path / "aligned")
    vector = extract(base, aligned, tmp_path / "av").folder
    recipe = make_recipe(base, {vector: 1.0})
    models = recipe.pop("models")
    recipe["modules"] = {"text_decoder": {"models": models}}
    assert "has the module 'text_decoder', and" in refusal(recipe, tmp_path / "out")


def test_other_methods_are_asked_what_mergekit_asks(base, tmp_path):
    """A definition made of a base's checkpoint is for alignment vectors alone."""
    biased, aligned = SPECIAL["llama with biases"].make(tmp_path / "base", tmp_path / "aligned")
    vector = extract(biased, aligned, tmp_path / "av").folder
    whole = merge(make_recipe(biased, {vector: 1.0}), tmp_path / "ours")
    linear = {"merge_method": "linear", "models": [
        {"model": str(folder), "parameters": {"weight": 0.5}} for folder in (biased, aligned)
    ]}  # fmt: skip
    theirs = merge(linear, tmp_path / "theirs")
    assert whole.keys() == load_file(biased / SINGLE).keys()
    assert theirs.keys() < whole.keys()


def pushed(folder: Path):
    return CliRunner().invoke(av_push, [str(folder), "me/merge", "--dry-run"])


def test_a_merge_that_lost_tensors_is_not_pushed(tmp_path):
    base, aligned = SPECIAL["llama with biases"].make(tmp_path / "base", tmp_path / "aligned")
    vector = extract(base, aligned, tmp_path / "av").folder
    merge(make_recipe(base, {vector: 1.0}), tmp_path / "out", "--copy-tokenizer")
    assert pushed(tmp_path / "out").exit_code == 0
    lost = "model.layers.1.mlp.up_proj.bias"
    edit_tensors(tmp_path / "out", lambda tensors: tensors.pop(lost))
    result = pushed(tmp_path / "out")
    assert result.exit_code == 1 and f"has no tensor {lost}" in result.stderr


def test_a_merge_that_lost_what_only_its_base_has_is_not_pushed(tmp_path):
    base, aligned = SPECIAL["qwen3 with more heads"].make(tmp_path / "base", tmp_path / "aligned")
    vector = extract(base, aligned, tmp_path / "av").folder
    merge(make_recipe(base, {vector: 1.0}), tmp_path / "out", "--copy-tokenizer")
    assert pushed(tmp_path / "out").exit_code == 0
    edit_tensors(tmp_path / "out", lambda tensors: tensors.pop("mtp.fc.weight"))
    result = pushed(tmp_path / "out")
    assert result.exit_code == 1 and "no tensor mtp.fc.weight, which its base" in result.stderr


def in_two_files(folder: Path) -> None:
    """Cut a checkpoint within its second layer, as checkpoints of the Hub are cut."""
    tensors = load_file(folder / SINGLE)
    first = {n for n in tensors if ".1." in n and n.split(".1.")[1] > "m"}
    parts = {"a.safetensors": first, "b.safetensors": set(tensors) - first}
    for file, names in parts.items():
        save_file({n: tensors[n] for n in names}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, names in parts.items() for name in names}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / SINGLE).unlink()


def of_slices(base: Path, vector: Path, ranges: list[list[int]], lambdas: list[float]) -> dict:
    slices = [
        {"sources": [
            {"model": str(base), "layer_range": layers},
            {"model": str(vector), "layer_range": layers, "parameters": {"lambda": value}},
        ]}
        for layers, value in zip(ranges, lambdas, strict=True)
    ]  # fmt: skip
    recipe = make_recipe(base, {}, dtype="float32", slices=slices)
    del recipe["models"]
    return recipe


@pytest.mark.parametrize("name", ["mixtral", "llama with biases", "gpt2 of the Hub"])
@pytest.mark.parametrize("ranges", [[[1, 2]], [[1, 2], [0, 1]], [[0, 2], [1, 2]]])
def test_slices_take_each_tensor_to_its_own_place(name, ranges, tmp_path):
    """However the layers lie in the base's files, and where the merge has more layers than the base."""
    base, aligned = SPECIAL[name].make(tmp_path / "base", tmp_path / "aligned")
    after = {n.removeprefix("transformer."): v for n, v in load_file(aligned / SINGLE).items()}
    in_two_files(base)
    vector = extract(base, aligned, tmp_path / "av", dtype="float32").folder
    recipe = of_slices(base, vector, ranges, [1.0] * len(ranges))
    merged = merge(recipe, tmp_path / "out")
    prefix = "" if name.startswith("gpt2") else "model."
    prefix += "h." if name.startswith("gpt2") else "layers."
    layers = [layer for piece in ranges for layer in range(*piece)]
    for out, layer in enumerate(layers):
        of_layer = {n: v for n, v in after.items() if n.startswith(f"{prefix}{layer}.")}
        for tensor, value in of_layer.items():
            moved = merged[tensor.replace(f"{prefix}{layer}.", f"{prefix}{out}.")]
            torch.testing.assert_close(moved, value, rtol=0, atol=1e-6)
    assert load_shape(tmp_path / "out").config.num_hidden_layers == len(layers)
    assert not layout_of(Checkpoint(tmp_path / "out")).missing


@pytest.mark.parametrize("ranges", [[[1, 2]], [[1, 2], [0, 1]], [[0, 2], [1, 2]]])
@pytest.mark.parametrize("name", ["gemma3", "gpt-oss", "gemma3 that sees"])
def test_what_config_json_says_of_a_layer_follows_it(name, ranges, tmp_path):
    """Else transformers refuses the merge, or takes a layer for one of another kind."""
    kinds = ["sliding_attention", "full_attention"]
    architecture = {**SPECIAL, **USUAL}[name]
    settings = architecture.settings
    if sees := "text_config" in settings:
        settings = {**settings, "text_config": {**settings["text_config"], "layer_types": kinds}}
    else:
        settings = {**settings, "layer_types": kinds}
    architecture = dataclasses.replace(architecture, settings=settings)
    base, aligned = architecture.make(tmp_path / "base", tmp_path / "aligned")
    vector = extract(base, aligned, tmp_path / "av", dtype="float32").folder
    recipe = of_slices(base, vector, ranges, [1.0] * len(ranges))
    if sees:
        whole = {"models": make_recipe(base, {vector: 1.0})["models"]}
        text = {"slices": recipe.pop("slices")}
        modules = {"language_model.model.layers": text, "vision_tower.encoder.layers": whole}
        recipe["modules"] = modules
    merge(recipe, tmp_path / "out")
    config = load_model(tmp_path / "out").config.get_text_config()
    assert config.layer_types == [kinds[n] for piece in ranges for n in range(*piece)]
    assert config.num_hidden_layers == len(config.layer_types)


def test_what_follows_the_layers_is_merged_as_the_last_slice_says(tmp_path):
    """As mergekit's own definitions have it."""
    base, aligned = SPECIAL["llama with biases"].make(tmp_path / "base", tmp_path / "aligned")
    vector = extract(base, aligned, tmp_path / "av", dtype="float32").folder
    recipe = of_slices(base, vector, [[0, 1], [1, 2]], [0.0, 1.0])
    merged = merge(recipe, tmp_path / "out")
    before, after = load_file(base / SINGLE), load_file(aligned / SINGLE)
    embeddings, norm, head = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
    assert torch.equal(merged[embeddings], before[embeddings])
    assert torch.equal(merged[norm], after[norm]) and torch.equal(merged[head], after[head])


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe", "llama"])
def test_slices_of_layers_that_are_not_there_are_refused(name, tmp_path):
    base, aligned = {**SPECIAL, **USUAL}[name].make(tmp_path / "base", tmp_path / "aligned")
    vector = extract(base, aligned, tmp_path / "av").folder
    for layers in ([0, 3], [-1, 1]):
        said = refusal(of_slices(base, vector, [layers], [1.0]), tmp_path / "out")
        assert f"the layers {layers}" in said and "has the layers [0, 2]" in said


def test_a_layer_is_not_put_where_one_of_another_kind_is(tmp_path):
    base, aligned = USUAL["deepseek-v3"].make(tmp_path / "base", tmp_path / "aligned")
    vector = extract(base, aligned, tmp_path / "av").folder
    said = refusal(of_slices(base, vector, [[1, 2]], [1.0]), tmp_path / "out")
    assert "layer 1 has other tensors than layer 0" in said


@pytest.mark.parametrize("ranges", [[[0, 1]], [[0, 2], [0, 2]]])
def test_no_layer_is_put_where_a_head_for_more_tokens_is(ranges, tmp_path):
    """It is stored as one more layer, by the number that follows the last."""
    base, aligned = SPECIAL["qwen3 with more heads"].make(tmp_path / "base", tmp_path / "aligned")
    vector = extract(base, aligned, tmp_path / "av").folder
    said = refusal(of_slices(base, vector, ranges, [1.0] * len(ranges)), tmp_path / "out")
    assert "slices must keep its 2 layers, for it has something else as one more" in said
    merge(of_slices(base, vector, [[1, 2], [0, 1]], [1.0, 1.0]), tmp_path / "out")


def test_a_recipe_that_leaves_out_a_module_is_refused(tmp_path):
    """The merge would lack the eyes of its base."""
    base, aligned = SPECIAL["gemma3 that sees"].make(tmp_path / "base", tmp_path / "aligned")
    vector = extract(base, aligned, tmp_path / "av").folder
    recipe = make_recipe(base, {vector: 1.0})
    models = recipe.pop("models")
    recipe["modules"] = {"language_model.model.layers": {"models": models}}
    assert "the recipe leaves out the module" in refusal(recipe, tmp_path / "out")


def test_a_tied_weight_that_is_stored_twice_stays_tied(tmp_path):
    """Rounded each by its own name, the copies would differ, and transformers would tie them no more."""
    tied = dataclasses.replace(USUAL["llama"], settings={**SIZES, "tie_word_embeddings": True})
    base, aligned = tied.make(tmp_path / "base", tmp_path / "aligned")
    embeddings, head = "model.embed_tokens.weight", "lm_head.weight"
    for folder in (base, aligned):
        edit_tensors(folder, lambda tensors: tensors.update({head: tensors[embeddings].clone()}))
    vector = extract(base, aligned, tmp_path / "av")
    recipe = make_recipe(base, {vector.folder: 0.37}, dtype="bfloat16")
    merged = merge(recipe, tmp_path / "out")
    assert torch.equal(merged[head], merged[embeddings])
    assert not torch.equal(merged[head], load_file(base / SINGLE)[head].bfloat16())
    expected = load_model(tmp_path / "out", "bfloat16", "cpu").state_dict()
    model = load_model(base, "bfloat16", "cpu")
    Knobs(model, it=vector).set(it=0.37)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("which", ["base", "av"])
def test_a_merge_is_not_written_over_its_inputs(which, base, vectors, tmp_path):
    folders = {
        "base": shutil.copytree(base, tmp_path / "base"),
        "av": shutil.copytree(vectors["legal"], tmp_path / "av"),
    }
    before = {file.name: file.read_bytes() for file in folders[which].iterdir()}
    result = run(make_recipe(folders["base"], {folders["av"]: 1.0}), folders[which])
    assert result.exit_code == 1
    assert f"{which} is an input of the recipe" in result.output.splitlines()[-1]
    assert {file.name: file.read_bytes() for file in folders[which].iterdir()} == before


def test_an_adapter_in_place_of_a_vector_is_refused_with_the_remedy(base, vectors, tmp_path):
    lora = export_lora(AlignmentVector.open(vectors["legal"]), tmp_path / "lora", 4).folder
    assert f"`av-extract BASE {lora} OUT`" in refusal(make_recipe(base, {lora: 1}), tmp_path / "o")
    (tmp_path / "empty").mkdir()
    said = refusal(make_recipe(base, {tmp_path / "empty": 1}), tmp_path / "o")
    assert "empty has no config.json" in said


# --- aligned models of other kinds -------------------------------------------------------------


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_is_an_aligned_model(rslora, base, tmp_path):
    model = load_model(base, "float32", "cpu")
    adapter = get_peft_model(
        model,
        LoraConfig(
            r=4, lora_alpha=8, use_rslora=rslora, target_modules=["q_proj", "down_proj"],
            modules_to_save=["norm"], init_lora_weights=False, task_type="CAUSAL_LM",
        ),
    )  # fmt: skip
    with torch.no_grad():
        adapter.get_parameter("base_model.model.model.norm.modules_to_save.default.weight").add_(
            0.5
        )
    adapter.save_pretrained(tmp_path / "adapter")
    tokens = torch.arange(5, 25)[None]
    with torch.inference_mode():
        wanted = adapter.eval()(tokens).logits
    command = [str(base), str(tmp_path / "adapter"), str(tmp_path / "av"), "--dtype", "float32"]
    result = CliRunner().invoke(av_extract, command)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "av"]
    live = load_model(base, "float32", "cpu")
    Knobs(live, it=tmp_path / "av").set(it=1)
    with torch.inference_mode():
        torch.testing.assert_close(live(tokens).logits, wanted, rtol=0, atol=1e-5)
    said = json.loads((tmp_path / "av/alignment_vector.json").read_text("utf-8"))
    assert said["base"]["id"] == str(base)


def test_an_adapter_of_another_base_is_refused_in_a_line(base, tmp_path):
    other, _ = SPECIAL["cohere"].make(tmp_path / "other", tmp_path / "unused")
    model = get_peft_model(
        load_model(other), LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    )
    model.base_model.model.model.layers[0].self_attn.q_proj.lora_A.default.weight.data = torch.ones(
        4, 48
    )
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(AVError, match=r"does not fit .*, and the base asks for"):
        extract(base, tmp_path / "adapter", tmp_path / "av")
    assert not (tmp_path / "av").exists()


def test_tokens_that_were_added_are_named_with_the_remedy(base, aligned, tmp_path):
    model = load_model(aligned)
    model.resize_token_embeddings(604)
    model.save_pretrained(tmp_path / "larger")
    with pytest.raises(
        AVError, match=r"embeddings for 604 tokens and .*resize_token_embeddings\(604"
    ):
        extract(base, tmp_path / "larger", tmp_path / "av")
    start = load_model(base)
    start.resize_token_embeddings(604)
    start.save_pretrained(tmp_path / "base")
    extract(tmp_path / "base", tmp_path / "larger", tmp_path / "av")


# --- a head that has been untied ---------------------------------------------------------------


@pytest.mark.parametrize("how", ["its weight", "the layer"])
def test_a_head_that_was_untied_meanwhile_is_noticed(how, base, vectors):
    model = load_model(base)
    knobs = Knobs(model, legal=vectors["legal"])
    knobs.set(legal=0.5)
    own = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    if how == "its weight":
        model.lm_head.weight = own
    else:
        model.lm_head = torch.nn.Linear(*reversed(own.shape), bias=False)
        model.lm_head.weight = own
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(AVError, match=r"lm_head.weight was .* replaced"):
        knobs.set(legal=1.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_name_that_both_releases_use_for_other_things_is_not_mixed_up(base, aligned, tmp_path):
    """Tied weights: of a base that holds the head's name alone, and an aligned model that holds the
    embedding's."""
    head = shutil.copytree(base, tmp_path / "base")
    edit_tensors(head, lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))
    vector = extract(head, aligned, tmp_path / "av", dtype="float32")
    plain = extract(base, aligned, tmp_path / "plain", dtype="float32")
    name = "model.embed_tokens.weight"
    assert torch.equal(vector.delta.dense("lm_head.weight"), plain.delta.dense(name))


def test_a_merge_that_is_planned_by_an_insufficient_definition_is_refused(base, vectors, tmp_path):
    """As mergekit-evolve plans: it asks for no architecture but by the name in config.json."""
    biased, aligned = SPECIAL["llama with biases"].make(tmp_path / "base", tmp_path / "aligned")
    vector = extract(biased, aligned, tmp_path / "av").folder

    def plan(base: Path, vector: Path) -> None:
        config = MergeConfiguration.model_validate(make_recipe(base, {vector: 1.0}))
        own = config.base_model.config()
        planner = MergePlanner(config, arch_info_for_config(own), MergeOptions(), own)
        planner.plan_to_disk(str(tmp_path / "out"))

    with pytest.raises(AVError, match="has other tensors than it: merge with mergekit-yaml"):
        plan(biased, vector)
    plan(base, vectors["legal"])
