"""Recipes as MergeConfiguration reads them: nothing is merged, no model is opened."""

import math

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import given
from mergekit.config import MergeConfiguration
from pydantic import ValidationError

from mergekit_av import AVError
from mergekit_av.merge.recipe import read_coefficient

LEGAL = "./avs/legal"


def recipe(*, models=None, **top) -> dict:
    """base + 1.0·legal, with other keys."""
    models = models or [{"model": LEGAL, "parameters": {"lambda": 1.0}}]
    return {"merge_method": "alignment_vector", "base_model": "./base", "models": models, **top}


def with_parameters(own, **top) -> dict:
    return recipe(models=[{"model": LEGAL, "parameters": own}], **top)


def slices(*sources, **keys) -> dict:
    """A recipe of one slice; sources are (model, parameters)."""
    found = recipe(**keys)
    del found["models"]
    parts = [{"model": m, "layer_range": [0, 2], "parameters": p} for m, p in sources]
    return {**found, "slices": [{"sources": parts}]}


def read(content: dict) -> MergeConfiguration:
    return MergeConfiguration.model_validate(content)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**9), 10**9))
def test_any_finite_number_is_a_coefficient(value):
    assert read_coefficient(value) == value
    assert read_coefficient(repr(value)) == value  # YAML leaves 1e-1 a string


@given(
    st.sampled_from([math.nan, math.inf, -math.inf, "nan", "-inf", True, False, [], {}, 10**400])
    | st.text(alphabet="abλ -.x", max_size=5)
)
def test_anything_else_is_none(value):
    with pytest.raises(AVError, match="λ must be a finite number"):
        read_coefficient(value)


GOOD = {
    "a number": with_parameters({"lambda": 0}),
    "large, as a fraction": with_parameters({"lambda": 90.0}),
    "without a zero": with_parameters({"lambda": yaml.safe_load(".5")}),
    "negative": with_parameters({"lambda": -2.5}),
    "a string YAML left": with_parameters({"lambda": "1e-1"}),
    "weight": with_parameters({"weight": 1}),
    "a gradient": with_parameters({"lambda": [0, 0.5, "1e0"]}),
    "a filter with the rest": with_parameters(
        {"lambda": [{"filter": "mlp", "value": [0, 1]}, {"value": 0}]}
    ),
    "a filter with a global rest": with_parameters(
        {"lambda": [{"filter": "mlp", "value": 1}]}, parameters={"lambda": 0}
    ),
    "a global value": recipe(models=[{"model": LEGAL}], parameters={"lambda": 1}),
    "everything": with_parameters(
        {"lambda": 1, "transfer": True}, parameters={"rounding": "nearest", "seed": -3}
    ),
    "the base among the models": recipe(
        models=[{"model": "./base"}, {"model": LEGAL, "parameters": {"lambda": 1}}]
    ),
    "out_dtype, nearest": recipe(out_dtype="bfloat16", parameters={"rounding": "nearest"}),
    "a dtype as torch names it": recipe(dtype="torch.bfloat16"),
    "out_dtype of the merge": recipe(out_dtype="bfloat16", dtype="bfloat16"),
    "out_dtype that loses nothing": recipe(out_dtype="float32"),
    "slices": slices(("./base", None), (LEGAL, {"lambda": 1})),
    "slices, nearest": slices(
        ("./base", None),
        (LEGAL, {"lambda": 1}),
        out_dtype="bfloat16",
        parameters={"rounding": "nearest"},
    ),
    "modules": {
        **{k: v for k, v in recipe().items() if k != "models"},
        "modules": {"default": {"models": recipe()["models"], "parameters": {"seed": 1}}},
    },
}
GOOD["a name, as mergekit-multi has it"] = recipe(name="calmer")
GOOD["every way to name a model and a token"] = recipe(
    base_model={"model": {"path": "./base", "revision": "main"}, "lora": None},
    tokenizer={"source": "base", "tokens": {"<s>": {"source": {"kind": "zero"}, "force": True}}},
)
_other_layers = slices(("./base", None), (LEGAL, {"lambda": 1}))
_other_layers["slices"][0]["sources"][1]["layer_range"] = [1, 3]
GOOD["other layers, where the transfer is meant"] = {
    **_other_layers,
    "parameters": {"transfer": True},
}
_own_base = slices(("./base", None), (LEGAL, {"lambda": 1}))
del _own_base["base_model"]
_own_base["slices"][0]["base_model"] = "./base"
GOOD["a slice with its own base"] = _own_base


@pytest.mark.parametrize("what", GOOD)
def test_recipes_that_say_what_they_mean_are_read(what):
    assert read(GOOD[what]).merge_method == "alignment_vector"


BAD = {
    **{
        f"λ is {value}": (with_parameters({"lambda": value}), f"{LEGAL}: .* finite .* not {value}")
        for value in (math.nan, math.inf, -math.inf, True)
    },
    **{
        f"λ is written {text}": (
            with_parameters({"lambda": yaml.safe_load(text)}),
            f"write {value}.0 if",
        )
        for text, value in {"1:30": 90, "010": 8, "0x10": 16, "1_000": 1000, "-1:30": -90}.items()
    },
    "a gradient with a sexagesimal": (with_parameters({"lambda": [0, 90]}), "write 90.0 if"),
    "λ is text with underscores": (
        with_parameters({"lambda": "1_0"}),
        "finite number .* not '1_0'",
    ),
    "λ is in other digits": (with_parameters({"lambda": "٣"}), "finite number"),
    "λ is a word": (with_parameters({"lambda": "strong"}), "finite number .* not 'strong'"),
    "λ is huge": (with_parameters({"lambda": 10**400}), "finite number"),
    "a gradient with a word": (with_parameters({"lambda": [1, "x"]}), "not 'x'"),
    "a filter with nan": (
        with_parameters({"lambda": [{"filter": "mlp", "value": math.nan}, {"value": 0}]}),
        "not nan",
    ),
    "an empty gradient": (with_parameters({"lambda": []}), "no value"),
    "λ missing": (with_parameters({}), f"{LEGAL} has no λ: write"),
    "no parameters": (recipe(models=[{"model": LEGAL}]), "has no λ"),
    "λ misspelt": (with_parameters({"lamda": -1}), "unknown parameter `lamda`; did you mean `lam"),
    "weight misspelt": (with_parameters({"wieght": 1}), "did you mean `weight`"),
    "a stranger": (
        with_parameters({"lambda": 1, "density": 0.5}),
        "unknown parameter `density`; known are lambda, weight, transfer",
    ),
    "a misspelt global": (
        recipe(models=[{"model": LEGAL}], parameters={"lamda": 1}),
        "the recipe: unknown parameter `lamda`; did you mean `lambda`",
    ),
    "a global stranger": (recipe(parameters={"int8_mask": True}), "unknown parameter `int8_mask`"),
    "lambda and weight": (with_parameters({"lambda": 1, "weight": 1}), "both .* keep one"),
    "lambda and a global weight": (recipe(parameters={"weight": 1}), "both `lambda` and `weight`"),
    "a filter without the rest": (
        with_parameters({"lambda": [{"filter": "mlp", "value": 1}]}),
        "end the list with `- value: 0`",
    ),
    "rounding of one vector": (
        with_parameters({"lambda": 1, "rounding": "nearest"}),
        "`rounding` is for the whole recipe: move it",
    ),
    "rounding misspelt": (
        recipe(parameters={"rounding": "stochastik"}),
        "`rounding` must be one of stochastic, nearest, not 'stochastik'",
    ),
    "rounding a number": (recipe(parameters={"rounding": 1}), "`rounding` must be one of"),
    "seed a word": (recipe(parameters={"seed": "one"}), "`seed` must be an integer, not 'one'"),
    "seed a fraction": (recipe(parameters={"seed": 1.5}), "`seed` must be an integer"),
    "seed true": (recipe(parameters={"seed": True}), "`seed` must be an integer"),
    "transfer a word": (with_parameters({"lambda": 1, "transfer": "maybe"}), "true or false"),
    "out_dtype, stochastic": (
        recipe(out_dtype="bfloat16"),
        "write `dtype: bfloat16` instead, or `parameters: {rounding: nearest}`",
    ),
    "out_dtype beside dtype": (recipe(dtype="float32", out_dtype="float16"), "`dtype: float16`"),
    "a dtype that is none": (
        recipe(dtype="bf16"),
        "`dtype` must be one of float32, bfloat16, float16, float64, not 'bf16'",
    ),
    "out_dtype of whole numbers": (recipe(out_dtype="int64"), "`out_dtype` must be one of"),
    "no base": ({k: v for k, v in recipe().items() if k != "base_model"}, "needs `base_model:`"),
    "only the base": (recipe(models=[{"model": "./base"}]), "at least one alignment vector"),
    "one vector twice": (recipe(models=recipe()["models"] * 2), f"{LEGAL} stands twice"),
    "slices without the base": (
        slices((LEGAL, {"lambda": 1})),
        "a slice lacks its base: add `- model: ./base`",
    ),
    "slices without λ": (slices(("./base", None), (LEGAL, None)), "has no λ"),
    "slices, stochastic": (
        slices(("./base", None), (LEGAL, {"lambda": 1}), out_dtype="bfloat16"),
        "would round to nearest",
    ),
}
BAD["a slice with other layers of the vector"] = (
    _other_layers,
    rf"^{LEGAL}: its layers \[1, 3\] would be added to the layers \[0, 2\] of ./base: give both",
)
BAD["a slice with other layers, the transfer denied"] = (
    {**_other_layers, "parameters": {"transfer": False}},
    "its layers .* if it is meant, add `transfer: true`",
)
# Keys that mergekit would drop in silence.
BAD |= {
    "rounding at the top": (
        recipe(rounding="nearest"),
        "^the recipe: `rounding` belongs in the `parameters:` of the whole recipe$",
    ),
    "seed beside a model": (
        recipe(models=[{"model": LEGAL, "parameters": {"lambda": 1}, "seed": 3}]),
        f"^{LEGAL}: `seed` belongs in the `parameters:` of the whole recipe$",
    ),
    "lambda at the top": (recipe(**{"lambda": 1}), "^the recipe: `lambda` belongs in its `par"),
    "lambda beside a model": (
        recipe(models=[{"model": LEGAL, "lambda": 1}]),
        f"^{LEGAL}: `lambda` belongs in its `parameters:`$",
    ),
    "lambda misspelt beside a model": (
        recipe(models=[{"model": LEGAL, "lamda": 1}]),
        f"^{LEGAL}: unknown key `lamda`; did you mean `parameters: {{lambda: …}}`\\?$",
    ),
    "weight misspelt beside a model": (
        recipe(models=[{"model": LEGAL, "weigth": 1}], parameters={"weight": 2}),
        "unknown key `weigth`; did you mean `parameters: {weight: …}`",
    ),
    "parameters misspelt": (
        recipe(models=[{"model": LEGAL, "paramters": {"lambda": 1}}], parameters={"lambda": 2}),
        "unknown key `paramters`; did you mean `parameters`",
    ),
    "a stranger beside a model": (
        recipe(models=[{"model": LEGAL, "parameters": {"lambda": 1}, 5: 6}]),
        f"^{LEGAL}: unknown key `5`; known are model, parameters$",
    ),
    "dtype misspelt": (recipe(dtyp="bfloat16"), "unknown key `dtyp`; did you mean `dtype`"),
    "filter misspelt": (
        with_parameters({"lambda": [{"fliter": "mlp", "value": 1}, {"value": 0}]}),
        rf"^{LEGAL}: unknown key `fliter` in `parameters.lambda\[0\]`; did you mean `filter`\?$",
    ),
    "filter misspelt, no list": (
        with_parameters({"lambda": {"fliter": "mlp", "value": 1}}),
        "unknown key `fliter` in `parameters.lambda`",
    ),
    "a key of a revision misspelt": (
        recipe(base_model={"model": {"path": "./base", "revison": "main"}}),
        "^the recipe: unknown key `revison` in `base_model.model`; did you mean `revision`",
    ),
    "a key of a token misspelt": (
        recipe(tokenizer={"tokens": {"<s>": {"source": {"kind": "zero"}, "froce": True}}}),
        "unknown key `froce` in `tokenizer.tokens.<s>`; did you mean `force`",
    ),
    "a slice with lambda": (
        {**GOOD["slices"], "slices": [{**GOOD["slices"]["slices"][0], "lambda": 1}]},
        r"^the recipe: `lambda` in `slices\[0\]` belongs in its `parameters:`$",
    ),
    "a source with rounding": (
        slices(("./base", None), (LEGAL, {"lambda": 1})) | {"rouding": "nearest"},
        "did you mean `parameters: {rounding: …}`",
    ),
    "a module with models misspelt": (
        {**GOOD["modules"], "modules": {"default": {"model": [], **GOOD["modules"]["modules"]["default"]}}},
        "unknown key `model` in `modules.default`; did you mean `models`",
    ),
    "λ left empty": (with_parameters({"lambda": None}), f"^{LEGAL}: `parameters.lambda` is empty: give"),
    "a filter's value left empty": (
        with_parameters({"lambda": [{"filter": "mlp", "value": None}, {"value": 0}]}),
        r"`parameters.lambda\[0\].value` is empty",
    ),
    "a gradient with a gap": (with_parameters({"lambda": [1, None]}), r"lambda\[1\]` is empty"),
    "rounding left empty": (
        recipe(parameters={"rounding": None}), "^the recipe: `parameters.rounding` is empty"
    ),
}  # fmt: skip


def test_a_recipe_of_aliases_is_not_unfolded():
    models = [{"model": LEGAL, "parameters": {"lambda": 1}}]
    for _ in range(9):
        models = [models] * 9
    with pytest.raises(AVError, match="the recipe stands for more than"):
        read(recipe(models=models))


@pytest.mark.parametrize("what", BAD)
def test_recipes_that_would_merge_something_not_meant_are_refused(what):
    content, message = BAD[what]
    with pytest.raises(AVError, match=message) as caught:
        read(content)
    assert "\n" not in str(caught.value)


def test_recipes_of_other_methods_are_left_alone():
    other = {**recipe(rounding="nearest"), "merge_method": "task_arithmetic"}
    other["models"][0] = {"model": LEGAL, "parameters": {"weight": 1, "lamda": 3}, "weigth": 2}
    assert read(other).merge_method == "task_arithmetic"


def test_whatever_is_no_mapping_is_left_to_pydantic():
    known = read(recipe())
    assert read(known) is known
    for content in (None, [], "merge_method: alignment_vector", 3, [recipe(rounding="nearest")]):
        with pytest.raises(ValidationError):
            read(content)


def test_what_mergekit_writes_of_a_recipe_is_read_again():
    for content in GOOD.values():
        config = read(content)
        assert read(config.model_dump()) == read(yaml.safe_load(config.to_yaml())) == config
