"""The method as mergekit runs it: its command in this process, and twice a real one."""

import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from damage import DAMAGES, edit_tensors, flip_bit, split
from killing import run_python
from mergekit.config import MergeConfiguration
from mergekit.merge_methods import registry
from mergekit.scripts.multimerge import main as mergekit_multi
from merging import make_recipe, merge, refusal, run
from safetensors.torch import load_file
from tiny import ARCHITECTURES, make_model, make_tokenizer, perturb

from mergekit_av import AVError, extract
from mergekit_av.export.hub import prepare
from mergekit_av.io.checkpoint import SINGLE
from mergekit_av.merge.method import register
from mergekit_av.merge.recipe import METHOD
from mergekit_av.models.load import load_model

NEAREST = {"rounding": "nearest"}
# These die inside mergekit before the method is asked.
MERGEKIT_FAILS_FIRST = {"truncated", "a flipped header", "no weights", "a config that is no JSON"}


def command(name: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run an installed command."""
    words = [Path(sys.executable).with_name(name), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True)


def expected(base: Path, lambdas: dict[Path, float], coefficient=lambda name, value: value):
    """base + Σ λ·AV, the obvious way: float32, rounded once to nearest."""
    result = {}
    for name, value in load_file(base / SINGLE).items():
        total = value.float()
        for folder, factor in lambdas.items():
            total = total + coefficient(name, factor) * load_file(folder / SINGLE)[name].float()
        result[name] = total.to(value.dtype)
    return result


def assert_same(result: dict, tensors: dict) -> None:
    assert result.keys() == tensors.keys()
    for name, value in tensors.items():
        assert result[name].dtype == value.dtype
        assert torch.equal(result[name], value), name


def nearest(base, lambdas, **top) -> dict:
    parameters = {**NEAREST, **top.pop("parameters", {})}
    return make_recipe(base, lambdas, parameters=parameters, **top)


def merged_bytes(recipe: dict, out: Path) -> bytes:
    merge(recipe, out)
    return (out / SINGLE).read_bytes()


def test_a_folder_that_is_merged_into_twice_is_warned_of_and_never_read_as_one(
    base, vectors, tmp_path, caplog
):
    recipe, out = make_recipe(base, {vectors["legal"]: 1}), tmp_path / "out"
    assert run(recipe, out, "--quiet").exit_code == 0
    assert "holds weights already" not in caplog.text
    assert run(recipe, out, "--quiet", "--out-shard-size", "20K").exit_code == 0
    assert f"{out} holds weights already" in caplog.text
    assert len(list(out.glob("*.safetensors"))) > 2
    for use in (load_model, lambda folder: prepare(folder, "me/model")):
        with pytest.raises(
            AVError, match="remove the stale one, or make the model again in an empty"
        ):
            use(out)


def test_a_bare_name_of_a_folder_is_refused_before_the_merge_where_the_hub_is_not_there(
    base, vectors, tmp_path, monkeypatch
):
    """mergekit's card asks the Hub about it, after the merge."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(vectors["legal"], tmp_path / "avs" / "x")
    recipe = make_recipe(base, {Path("avs/x"): 1})
    assert "write ./avs/x" in refusal(recipe, tmp_path / "out")
    assert run(recipe, tmp_path / "out", "--no-write-model-card").exit_code == 0
    recipe["models"][0]["model"] = "./avs/x"
    assert run(recipe, tmp_path / "same").exit_code == 0


@pytest.fixture
def av(vectors, tmp_path):
    """A copy of the legal vector that may be changed."""
    return shutil.copytree(vectors["legal"], tmp_path / "av")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


# --- found by mergekit -------------------------------------------------------------------------


def test_the_mergekit_yaml_command_finds_the_method(base, vectors, out, tmp_path):
    recipe = nearest(base, {vectors["legal"]: -0.7})
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe), "utf-8")
    done = command("mergekit-yaml", tmp_path / "recipe.yml", out)
    assert done.returncode == 0, done.stderr
    assert_same(load_file(out / SINGLE), expected(base, {vectors["legal"]: -0.7}))


@pytest.mark.slow
def test_the_mergekit_multi_command_finds_the_method(base, vectors, tmp_path):
    first = {**nearest(base, {vectors["legal"]: 0.5}), "name": "first"}
    second = nearest("first", {vectors["medical"]: -1})
    second["models"][0]["parameters"]["transfer"] = True
    recipes = tmp_path / "recipes.yml"
    recipes.write_text(yaml.safe_dump_all([first, second]), "utf-8")
    done = command(
        "mergekit-multi", recipes, "--out-path", tmp_path / "out", "-I", tmp_path / "between"
    )
    assert done.returncode == 0, done.stderr
    between = tmp_path / "between" / "first"
    assert_same(load_file(between / SINGLE), expected(base, {vectors["legal"]: 0.5}))
    result = load_file(tmp_path / "out" / SINGLE)
    assert_same(result, expected(between, {vectors["medical"]: -1}))


def test_reading_a_recipe_registers_the_method(monkeypatch):
    models = [{"model": "av", "parameters": {"lambda": 1}}]
    recipe = {"merge_method": METHOD, "base_model": "base", "models": models}
    for read in (MergeConfiguration.model_validate, lambda content: MergeConfiguration(**content)):
        monkeypatch.delitem(registry._METHODS, METHOD, raising=False)
        for _ in range(2):
            read(recipe)
            assert [m.spec.name for m in registry.registered_methods()].count(METHOD) == 1


def test_registering_again_changes_nothing():
    register()
    before = registry.get(METHOD)
    register()
    assert registry.get(METHOD) is before


# --- what it computes --------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, -1, 0.37, -2.5, "1e-1"])
def test_one_vector(base, vectors, out, factor):
    result = merge(nearest(base, {vectors["legal"]: factor}), out)
    assert_same(result, expected(base, {vectors["legal"]: float(factor)}))


def test_the_sum_of_three(base, vectors, out):
    lambdas = dict(zip(vectors.values(), (-1.0, 0.5, 0.8), strict=True))
    assert_same(merge(nearest(base, lambdas), out), expected(base, lambdas))


def test_weight_means_lambda(base, vectors, out):
    recipe = nearest(base, {vectors["legal"]: 0.6})
    recipe["models"][0]["parameters"] = {"weight": 0.6}
    assert_same(merge(recipe, out), expected(base, {vectors["legal"]: 0.6}))


def test_a_global_lambda_is_every_vectors_unless_it_has_its_own(base, vectors, out):
    recipe = nearest(base, dict.fromkeys(vectors.values(), 0.6), parameters={"lambda": 0.6})
    del recipe["models"][0]["parameters"]
    recipe["models"][1]["parameters"] = {"lambda": -1}
    medical, financial, legal = vectors.values()
    assert_same(merge(recipe, out), expected(base, {medical: 0.6, financial: -1, legal: 0.6}))


def test_a_gradient_over_the_layers(base, vectors, out):
    def coefficient(name, factor):
        return 2.0 if ".layers.1." in name else -1.0

    recipe = nearest(base, {vectors["legal"]: [-1, 2]})
    assert_same(merge(recipe, out), expected(base, {vectors["legal"]: 1}, coefficient))


def test_filters_by_tensor_name(base, vectors, out):
    def coefficient(name, factor):
        return 1.5 if "mlp" in name else -0.5 if "self_attn" in name else 0.0

    setting = [
        {"filter": "mlp", "value": 1.5},
        {"filter": "self_attn", "value": -0.5},
        {"value": 0},
    ]
    recipe = nearest(base, {vectors["legal"]: setting})
    assert_same(merge(recipe, out), expected(base, {vectors["legal"]: 1}, coefficient))


def slices(base: Path, av: Path, *factors: float, **top) -> dict:
    """One slice per factor, of one layer each, or of both layers where there is one factor."""
    parts = [[0, 2]] if len(factors) == 1 else [[i, i + 1] for i in range(2)]
    recipe = make_recipe(base, {}, **top)
    del recipe["models"]
    recipe["slices"] = [
        {
            "sources": [
                {"model": str(base), "layer_range": part},
                {"model": str(av), "layer_range": part, "parameters": {"lambda": factor}},
            ]
        }
        for part, factor in zip(parts, factors, strict=True)
    ]
    return recipe


def test_one_slice_merges_as_models_do(base, vectors, tmp_path):
    av = vectors["legal"]
    for parameters in (NEAREST, {"seed": 3}):
        recipe = make_recipe(base, {av: 0.6}, parameters=parameters)
        whole = merge(recipe, tmp_path / "models")
        assert_same(merge(slices(base, av, 0.6, parameters=parameters), tmp_path / "slices"), whole)


def test_each_slice_has_its_lambda(base, vectors, out):
    def coefficient(name, factor):
        return -1.0 if ".layers.1." in name or name == "model.norm.weight" else 2.0

    result = merge(slices(base, vectors["legal"], 2.0, -1.0, parameters=NEAREST), out)
    assert_same(result, expected(base, {vectors["legal"]: 1}, coefficient))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lambda_0_gives_the_base_bit_for_bit(tmp_path, out, rounding, dtype):
    base = make_model(tmp_path / "base", dtype=dtype)
    av = extract(base, perturb(base, tmp_path / "aligned"), tmp_path / "av").folder
    name = str(dtype).removeprefix("torch.")
    recipe = make_recipe(base, {av: 0}, parameters={"rounding": rounding}, dtype=name)
    assert_same(merge(recipe, out), load_file(base / SINGLE))


def test_a_layer_is_added_to_another_only_where_the_transfer_is_meant(base, vectors, out):
    av = vectors["legal"]
    recipe = slices(base, av, 1.0, 1.0, parameters=NEAREST)
    crossed = recipe["slices"][1]["sources"][1]
    crossed["layer_range"] = [0, 1]
    assert "its layers [0, 1] would be added to the layers [1, 2] of" in refusal(recipe, out)

    crossed["parameters"]["transfer"] = True
    name = "model.layers.{}.mlp.up_proj.weight"
    moved = (
        load_file(base / SINGLE)[name.format(1)].float() + load_file(av / SINGLE)[name.format(0)]
    )
    assert torch.equal(merge(recipe, out)[name.format(1)], moved.bfloat16())


@pytest.mark.parametrize(("architecture", "tied"), list(product(ARCHITECTURES, (True, False))))
def test_any_architecture(tmp_path, out, architecture, tied):
    """mergekit's own definitions require a head of a tied Phi, and know none of an untied Gemma."""
    base = make_model(tmp_path / "base", architecture, tied=tied)
    av = extract(base, perturb(base, tmp_path / "aligned"), tmp_path / "av").folder
    assert_same(merge(nearest(base, {av: 1}), out), expected(base, {av: 1}))


@pytest.mark.parametrize("aligned_by", ["then", "now"])
def test_a_base_of_old_times_that_holds_float_buffers(base, tmp_path, out, aligned_by):
    old = shutil.copytree(base, tmp_path / "old")
    name = "model.layers.{}.self_attn.rotary_emb.inv_freq"
    buffers = {name.format(layer): torch.arange(1.0, 5) for layer in range(2)}
    edit_tensors(old, lambda tensors: tensors.update(buffers))
    if aligned_by == "then":
        aligned = perturb(old, tmp_path / "aligned")
    else:  # transformers writes them no more
        aligned = perturb(base, tmp_path / "aligned")
    av = extract(old, aligned, tmp_path / "av")
    assert (buffers.keys() < av.delta.names()) == (aligned_by == "then")

    wanted = load_file(old / SINGLE) | {
        name: value.float() + load_file(av.folder / SINGLE)[name].float()
        for name, value in load_file(old / SINGLE).items()
        if name in av.delta.names()
    }
    wanted = {n: v if n in buffers else v.bfloat16() for n, v in wanted.items()}
    # Nothing reads them, and what has no difference is carried over as it is.
    assert_same(merge(nearest(old, {av.folder: 1}), out), wanted)
    wanted = {name: value for name, value in wanted.items() if name not in buffers}
    for model in (old, load_model(old, dtype="auto", device="cpu")):
        applied = av.apply_to(model, rounding="nearest")
        assert_same(dict(applied.named_parameters()), wanted)


def test_an_aligned_model_may_hold_float_buffers_that_its_base_lacks(base, aligned, tmp_path):
    old = shutil.copytree(aligned, tmp_path / "aligned")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(old, lambda tensors: tensors.update({name: torch.arange(1.0, 5)}))
    new, plain = extract(base, old, tmp_path / "new"), extract(base, aligned, tmp_path / "plain")
    assert new.metadata.fingerprint == plain.metadata.fingerprint


def test_shards_of_base_and_vector(base, av, out, tmp_path, vectors):
    sharded = shutil.copytree(base, tmp_path / "base")
    split(sharded)
    split(av)
    result = merge(nearest(sharded, {av: 0.6}), out)
    assert_same(result, expected(base, {vectors["legal"]: 0.6}))


def test_stochastic_rounding_is_the_default_and_keeps_the_mean(base, vectors, tmp_path):
    default = merge(make_recipe(base, {vectors["legal"]: 0.3}), tmp_path / "default")
    recipe = make_recipe(base, {vectors["legal"]: 0.3}, parameters={"rounding": "stochastic"})
    assert_same(merge(recipe, tmp_path / "out"), default)

    wanted = 0.3 * load_file(vectors["legal"] / SINGLE)["model.embed_tokens.weight"].double()
    start = load_file(base / SINGLE)["model.embed_tokens.weight"].double()
    change = default["model.embed_tokens.weight"].double() - start
    kept = (change * wanted).sum() / (wanted * wanted).sum()
    assert kept.item() == pytest.approx(1, abs=0.02)


def test_the_merged_folder_is_a_model(base, vectors, out):
    result = merge(make_recipe(base, {vectors["legal"]: 1}), out)
    model = load_model(out, dtype="auto", device="cpu")
    assert_same(dict(model.named_parameters()), result)
    tokens = torch.tensor([[5, 6, 7]])
    assert torch.isfinite(model(tokens).logits).all()
    assert not (out / "alignment_vector.json").exists()


# --- the same bytes ----------------------------------------------------------------------------


def test_the_same_recipe_gives_the_same_bytes_and_another_seed_others(base, vectors, tmp_path):
    def recipe(seed):
        return make_recipe(base, {vectors["legal"]: 0.6}, parameters={"seed": seed})

    first = merged_bytes(recipe(1), tmp_path / "first")
    assert merged_bytes(recipe(1), tmp_path / "again") == first
    assert merged_bytes(recipe(2), tmp_path / "other") != first
    default = merged_bytes(make_recipe(base, {vectors["legal"]: 0.6}), tmp_path / "default")
    assert merged_bytes(recipe(0), tmp_path / "zero") == default


def test_the_order_of_tensors_in_the_files_does_not_matter(base, av, vectors, tmp_path):
    first = merge(make_recipe(base, {vectors["legal"]: 0.6}), tmp_path / "first")
    split(av)  # every second tensor is now in another file
    assert_same(merge(make_recipe(base, {av: 0.6}), tmp_path / "second"), first)


@pytest.mark.parametrize("option", ["--low-cpu-memory", "--async-write", "--clone-tensors"])
def test_mergekits_options_do_not_change_the_bytes(base, vectors, tmp_path, option):
    recipe = make_recipe(base, {vectors["legal"]: 0.6})
    assert_same(merge(recipe, tmp_path / "b", option), merge(recipe, tmp_path / "a"))


# --- what it refuses ---------------------------------------------------------------------------


def test_a_whole_model_is_no_vector(base, aligned, out):
    message = refusal(make_recipe(base, {aligned: 1}), out)
    assert "it looks like a whole model; make a vector of it with `av-extract" in message


def test_a_vector_is_no_base(vectors, out):
    recipe = make_recipe(vectors["legal"], {vectors["medical"]: 1})
    assert "is a vector of" in refusal(recipe, out)


def test_another_base_is_refused_unless_the_transfer_is_meant(vectors, out, tmp_path):
    other = make_model(tmp_path / "other", seed=8)
    make_tokenizer(other)
    recipe = nearest(other, {vectors["legal"]: 1})
    message = refusal(recipe, out)
    assert "is a vector of" in message
    assert "if the transfer is meant, add `transfer: true` to its parameters" in message

    recipe["models"][0]["parameters"]["transfer"] = True
    assert_same(merge(recipe, out), expected(other, {vectors["legal"]: 1}))


def test_each_vector_declares_its_own_transfer(vectors, out, tmp_path):
    other = make_model(tmp_path / "other", seed=8)
    recipe = nearest(other, {vectors["legal"]: 1, vectors["medical"]: 1})
    recipe["models"][0]["parameters"]["transfer"] = True
    assert str(vectors["medical"]) in refusal(recipe, out)


def test_a_base_changed_by_one_bit_is_another_base(base, vectors, out, tmp_path):
    changed = shutil.copytree(base, tmp_path / "base")
    flip_bit(changed / SINGLE, -1)
    assert "is a vector of" in refusal(make_recipe(changed, {vectors["legal"]: 1}), out)


def test_a_vector_that_changed_between_two_merges_is_read_anew(base, av, out):
    """What was found sound holds only for as long as the files stay as they are."""
    recipe = make_recipe(base, {av: 1})
    merge(recipe, out)
    shutil.rmtree(out)
    edit_tensors(av, lambda tensors: tensors["model.norm.weight"][:8].fill_(1))
    assert "not those that were written" in refusal(recipe, out)


def test_another_shape_is_refused_even_as_a_transfer(vectors, out, tmp_path):
    other = make_model(tmp_path / "other", tied=False)
    recipe = make_recipe(other, {vectors["legal"]: 1})
    recipe["models"][0]["parameters"]["transfer"] = True
    message = refusal(recipe, out)
    assert "does not fit" in message
    assert "lm_head.weight is missing in the vector" in message


@pytest.mark.parametrize("architecture", ["mistral", "phi"])
def test_no_weights_are_written_for_another_architecture(vectors, out, tmp_path, architecture):
    other = make_model(tmp_path / "other", architecture)
    result = run(make_recipe(other, {vectors["legal"]: 1}), out)
    assert result.exit_code == 1
    assert not list(tmp_path.glob("out/*.safetensors"))


@pytest.mark.parametrize(
    ("own", "shared", "message"),
    [
        ({"lambda": float("nan")}, {}, "finite number such as -1 or 0.6, not nan"),
        ({"lambda": float("-inf")}, {}, "not -inf"),
        ({"lambda": "strong"}, {}, "not 'strong'"),
        ({"lambda": True}, {}, "not True"),
        ({"lambda": None}, {}, "`parameters.lambda` is empty: give it a value"),
        ({"lamda": -1}, {}, "did you mean `lambda`?"),
        ({}, {}, "has no λ"),
        ({"lambda": 1, "weight": 1}, {}, "they mean the same, keep one"),
        ({"lambda": 1, "density": 0.3}, {}, "unknown parameter `density`"),
        ({"lambda": 1}, {"rounding": "up"}, "`rounding` must be one of stochastic, nearest"),
        ({"lambda": 1e45}, {}, "becomes infinite or NaN"),
    ],
)
def test_a_bad_parameter_is_one_line(base, av, out, own, shared, message):
    recipe = make_recipe(base, {av: 1}, parameters=shared)
    recipe["models"][0]["parameters"] = own
    assert message in refusal(recipe, out)


@pytest.mark.parametrize(
    ("top", "beside_model", "message"),
    [
        ({"rounding": "nearest"}, {}, "the recipe: `rounding` belongs in the `parameters:` of the"),
        ({}, {"weigth": 0.5}, "av: unknown key `weigth`; did you mean `parameters: {weight: …}`?"),
    ],
)
def test_a_key_that_mergekit_would_drop_is_one_line(base, av, out, top, beside_model, message):
    recipe = make_recipe(base, {av: 1}, **top)
    recipe["models"][0] |= beside_model
    assert message in refusal(recipe, out)


def test_so_it_is_in_one_of_several_recipes(base, av, tmp_path):
    first = make_recipe(base, {av: 1}, name="first")
    second = make_recipe("first", {av: 1}, seed=3)
    recipes = tmp_path / "recipes.yml"
    recipes.write_text(yaml.safe_dump_all([first, second]), "utf-8")
    result = CliRunner().invoke(
        mergekit_multi,
        [str(recipes), "--out-path", str(tmp_path / "out"), "-I", str(tmp_path / "i")],
    )
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    error = "Error: the recipe: `seed` belongs in the `parameters:` of the whole recipe\n"
    assert result.output == error


def test_out_dtype_is_no_way_around_stochastic_rounding(base, vectors, out):
    recipe = make_recipe(base, {vectors["legal"]: 1}, dtype="float32", out_dtype="bfloat16")
    assert "would round to nearest" in refusal(recipe, out)


def test_one_vector_twice_is_refused(base, vectors, out):
    recipe = make_recipe(base, {vectors["legal"]: 1})
    recipe["models"] *= 2
    assert "stands twice in the recipe" in refusal(recipe, out)


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_a_damaged_vector_writes_no_weights(base, av, out, damage):
    harm, message = DAMAGES[damage]
    harm(av)
    if damage in MERGEKIT_FAILS_FIRST:
        result = run(make_recipe(base, {av: 1}), out)
        assert result.exit_code == 1
        assert not list(av.parent.glob("out/*.safetensors"))
    else:
        assert re.search(message, refusal(make_recipe(base, {av: 1}), out))


def test_nothing_is_written_shard_by_shard_before_a_bad_vector_is_found(base, av, out):
    """The last tensor is bad, and mergekit would write the first ones long before."""
    harm, _ = DAMAGES["NaN"]
    harm(av)
    result = run(make_recipe(base, {av: 1}), out, "--out-shard-size", "1000")
    assert result.exit_code == 1
    assert not list(av.parent.glob("out/*.safetensors"))


# --- what it costs others ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "import mergekit_av",
        "import mergekit_av; dir(mergekit_av); mergekit_av.__version__",
        "import mergekit_av; from mergekit_av import AVError",
        "import mergekit_av.pydantic_plugin",
        "import pydantic\nclass Model(pydantic.BaseModel):\n    x: int\nassert Model(x='1').x == 1\n"
        "assert 'mergekit_av.pydantic_plugin' in sys.modules, 'the plugin is not installed'",
    ],
)
def test_other_programs_import_neither_torch_nor_mergekit(code):
    heavy = "{'torch', 'mergekit', 'transformers', 'numpy', 'safetensors'}"
    done = run_python(f"import sys\n{code}\nprint(sorted({heavy} & set(sys.modules)))")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_plugin_handles_recipes_only():
    from pydantic.plugin import SchemaTypePath

    from mergekit_av.pydantic_plugin import plugin

    def handlers(module, name):
        path = SchemaTypePath(module, name)
        return plugin.new_schema_validator({}, object, path, "BaseModel", None, {})

    assert all(handlers("mergekit.config", "MergeConfiguration"))
    for other in ("InputModelDefinition", "ConfigReader"):
        assert handlers("mergekit.config", other) == (None, None, None)
    assert handlers("elsewhere", "MergeConfiguration") == (None, None, None)


def test_every_public_name_can_be_imported():
    import mergekit_av

    for name in mergekit_av.__all__:
        assert getattr(mergekit_av, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Knob'"):
        mergekit_av.Knob  # noqa: B018


@pytest.mark.parametrize("which", ["base", "vector"])
def test_a_folder_that_is_not_there(which, base, vectors, out, tmp_path):
    lost = tmp_path / "lost"
    pair = (lost, vectors["legal"]) if which == "base" else (base, lost)
    assert refusal(make_recipe(pair[0], {pair[1]: 1.0}), out) == f"there is no folder {lost}"
