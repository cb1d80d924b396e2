import copy
import json
import math
import shutil

import hypothesis.strategies as st
import pytest
import torch
from damage import edit_json
from hypothesis import given, settings
from merging import make_recipe, merge
from safetensors.torch import load_file
from tiny import make_model, perturb
from transformers import AutoModelForCausalLM

from mergekit_av import AlignmentVector, AVError, extract
from mergekit_av.io import checkpoint
from mergekit_av.io.checkpoint import SINGLE
from mergekit_av.models.load import load_model

NAME = "model.layers.1.mlp.up_proj.weight"
coefficients = st.floats(-8, 8, width=32)


@pytest.fixture(scope="module")
def avs(vectors):
    return {name: AlignmentVector.open(folder) for name, folder in vectors.items()}


@pytest.fixture(scope="module")
def stored(vectors):
    """What the files hold of one tensor, in float64."""
    return {n: load_file(folder / SINGLE)[NAME].double() for n, folder in vectors.items()}


@pytest.fixture
def copied(vectors, tmp_path):
    return shutil.copytree(vectors["legal"], tmp_path / "copied")


def close(left, right) -> bool:
    return torch.allclose(left.double(), right.double(), rtol=1e-6, atol=1e-7)


def assert_same(model, tensors: dict) -> None:
    """The model's parameters are these tensors, bit for bit."""
    parameters = dict(model.named_parameters())
    assert parameters.keys() == tensors.keys()
    for name, parameter in parameters.items():
        assert parameter.dtype == tensors[name].dtype
        assert torch.equal(parameter, tensors[name]), name


def test_opening_reads_no_tensor(copied):
    (copied / SINGLE).write_bytes(b"not even a header")
    vector = AlignmentVector.open(copied)
    assert vector.metadata.name == "legal"
    combination = 0.5 * vector - vector
    with pytest.raises(AVError, match="truncated or damaged"):
        combination.tensor(NAME)


def test_operators(avs, stored):
    legal, medical, financial = avs["legal"], avs["medical"], avs["financial"]
    x, y, z = stored["legal"], stored["medical"], stored["financial"]
    assert close(legal.tensor(NAME), x)
    assert close((0.6 * legal - medical).tensor(NAME), 0.6 * x - y)
    assert close((-legal).tensor(NAME), -x)
    assert close((legal * 2).tensor(NAME), 2 * x)
    assert close((legal + medical + financial).tensor(NAME), x + y + z)
    assert close((-2 * (legal - 0.5 * (medical + financial))).tensor(NAME), -2 * x + y + z)
    assert close((legal - legal).tensor(NAME), torch.zeros_like(x))
    assert repr(0.6 * legal - medical) == "0.6 * 'legal' + -1 * 'medical'"
    assert repr(legal).startswith("AlignmentVector('legal', base=")


@settings(deadline=None, max_examples=40)
@given(a=coefficients, b=coefficients)
def test_the_algebra_is_that_of_a_vector_space(avs, stored, a, b):
    legal, medical, x, y = avs["legal"], avs["medical"], stored["legal"], stored["medical"]
    assert close((a * legal + b * legal).tensor(NAME), (a + b) * x)
    assert close((a * (legal + medical)).tensor(NAME), a * x + a * y)
    assert close((a * (b * legal)).tensor(NAME), a * b * x)
    assert close(
        (a * legal - b * medical).tensor(NAME), (b * medical - a * legal).tensor(NAME) * -1
    )


def test_operators_do_not_change_their_operands(avs):
    legal = avs["legal"]
    combination = legal + avs["medical"]
    _ = -3 * (combination - legal)
    assert [c for c, _ in combination.terms] == [1.0, 1.0]
    assert [c for c, _ in legal.terms] == [1.0]


@pytest.mark.parametrize("factor", [math.nan, math.inf, -math.inf])
def test_a_coefficient_is_finite(avs, factor):
    with pytest.raises(AVError, match="finite"):
        factor * avs["legal"]


@pytest.mark.parametrize("other", ["2", None, [1]])
def test_only_numbers_multiply_and_only_vectors_add(avs, other):
    for operation in (lambda v: other * v, lambda v: v * other, lambda v: v + other):
        with pytest.raises(TypeError):
            operation(avs["legal"])


def test_vectors_of_different_bases_are_not_added(avs, tmp_path):
    base = make_model(tmp_path / "base", seed=4)
    other = extract(base, perturb(base, tmp_path / "aligned"), tmp_path / "other")
    with pytest.raises(AVError, match=r"vectors of different bases .* cannot be added"):
        avs["legal"] + other


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("seed", [0, 7])
def test_apply_to_a_folder_gives_what_mergekit_writes(base, vectors, avs, tmp_path, rounding, seed):
    lambdas = {"legal": 0.6, "medical": -1.3, "financial": 0.25}
    recipe = make_recipe(base, {vectors[name]: value for name, value in lambdas.items()})
    recipe["parameters"] = {"rounding": rounding, "seed": seed}
    expected = merge(recipe, tmp_path / "out")
    combination = 0.6 * avs["legal"] - 1.3 * avs["medical"] + 0.25 * avs["financial"]
    assert_same(combination.apply_to(base, rounding=rounding, seed=seed), expected)


def test_apply_to_loads_the_base_in_its_own_dtype(base, vectors, tmp_path):
    """Also where config.json names another one."""
    float_base = shutil.copytree(base, tmp_path / "base")
    edit_json(float_base / "config.json", lambda config: config.update(dtype="float16"))
    expected = merge(make_recipe(float_base, {vectors["legal"]: 1}), tmp_path / "out")
    assert_same(AlignmentVector.open(vectors["legal"]).apply_to(float_base), expected)


def test_apply_to_a_model_returns_a_changed_copy(base, avs):
    model = load_model(base, dtype="float32", device="cpu")
    before = copy.deepcopy(model.state_dict())
    result = (0.5 * avs["legal"]).apply_to(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    expected = {
        name: parameter + 0.5 * avs["legal"].tensor(name)
        for name, parameter in model.named_parameters()
    }
    assert_same(result, expected)
    assert result.lm_head.weight is result.model.embed_tokens.weight


def test_applying_at_0_gives_the_base(base, avs):
    assert_same((0 * avs["legal"]).apply_to(base), load_file(base / SINGLE))


def test_applying_a_vector_and_its_opposite_gives_the_base_back(base, avs):
    model = load_model(base, dtype="float32", device="cpu")
    there = avs["legal"].apply_to(model)
    back = (-avs["legal"]).apply_to(there)
    for name, parameter in back.named_parameters():
        assert close(parameter, model.get_parameter(name))


@pytest.mark.parametrize("architecture", ["qwen2", "gemma", "phi"])
@pytest.mark.parametrize("tied", [True, False])
def test_apply_to_any_architecture(tmp_path, architecture, tied):
    base = make_model(tmp_path / "base", architecture, tied=tied)
    vector = extract(base, perturb(base, tmp_path / "aligned"), tmp_path / "av", dtype="float32")
    result = vector.apply_to(base, rounding="nearest")
    expected = load_file(tmp_path / "aligned" / SINGLE)
    assert_same(result, {name: value.bfloat16() for name, value in expected.items()})


def test_another_base_is_refused_unless_the_transfer_is_meant(avs, tmp_path):
    other = make_model(tmp_path / "other", seed=3)
    combination = avs["legal"] - avs["medical"]
    with pytest.raises(
        AVError, match=r"is a vector of .*, not of .*: pass the base it was made for"
    ):
        combination.apply_to(other)
    result = combination.apply_to(other, transfer=True, rounding="nearest")
    expected = load_file(other / SINGLE)[NAME].float() + combination.tensor(NAME)
    assert torch.equal(result.get_parameter(NAME), expected.bfloat16())


def test_a_model_of_another_shape_or_architecture_is_refused(avs, tmp_path):
    for architecture in ("qwen3", "phi"):
        folder = make_model(tmp_path / architecture, architecture)
        with pytest.raises(AVError, match=r"does not fit the model: .* is missing"):
            avs["legal"].apply_to(AutoModelForCausalLM.from_pretrained(folder))
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "llama"))
    model.resize_token_embeddings(500)
    with pytest.raises(AVError, match=r"is \(600, 32\) in the vector and \(500, 32\) in the model"):
        avs["legal"].apply_to(model)


def test_what_is_no_base_is_refused(avs, vectors, tmp_path):
    for place in (vectors["legal"], tmp_path, tmp_path / "no/wh/ere"):
        with pytest.raises(AVError):
            avs["legal"].apply_to(place, transfer=True)


def test_a_lambda_too_large_for_the_dtype_is_refused(base, avs):
    with pytest.raises(AVError, match="becomes infinite or NaN"):
        (1e38 * avs["legal"] * 1e5).apply_to(base)


@pytest.mark.parametrize("block", [1 << 20, 100])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_saved_combination_is_a_vector_of_the_same_base(
    avs, base, tmp_path, monkeypatch, block, dtype
):
    monkeypatch.setattr(checkpoint, "BLOCK", block)
    folders = [shutil.copytree(av.folder, tmp_path / name) for name, av in avs.items()]
    medical, _, legal = map(AlignmentVector.open, folders)
    combination = 0.6 * legal - medical
    saved = combination.save(tmp_path / "saved", name="mixture", dtype=dtype)
    saved.check()
    for name in saved.delta.names():
        expected = combination.tensor(name).to(getattr(torch, dtype))
        assert torch.equal(saved.delta.dense(name), expected)
    metadata = saved.metadata
    assert (metadata.name, metadata.base) == ("mixture", legal.metadata.base)
    assert metadata.precision["difference"] == "sum of vectors: 0.6 * 'legal' + -1 * 'medical'"
    assert metadata.statistics["norm"] > 0
    if block == 1 << 20:
        saved.check_base(base)
        (saved + legal).apply_to(base)


def test_save_keeps_what_is_there_unless_told_otherwise(avs, tmp_path):
    (-avs["legal"]).save(tmp_path / "av", name="a")
    with pytest.raises(AVError, match="exists"):
        avs["legal"].save(tmp_path / "av", name="b")
    assert avs["legal"].save(tmp_path / "av", name="b", overwrite=True).metadata.name == "b"
    with pytest.raises(AVError, match="dtype is one of"):
        avs["legal"].save(tmp_path / "other", name="c", dtype="int8")


EDITS = {
    "another version": (lambda m: m.update(format_version=3), "format version 3, .* reads 1 and 2"),
    "factors that are not described": (lambda m: m.update(format_version=2), "low_rank is missing"),
    "no version": (lambda m: m.pop("format_version"), "format version None"),
    "no fingerprint": (lambda m: m.pop("fingerprint"), "incomplete .*fingerprint"),
    "a fingerprint that is null": (
        lambda m: m.update(fingerprint=None),
        "fingerprint is missing, or",
    ),
    "no base": (lambda m: m.pop("base"), "incomplete .*base"),
    "a base that is a name": (lambda m: m.update(base="llama"), "incomplete"),
    "a base without fingerprint": (lambda m: m["base"].pop("fingerprint"), "incomplete"),
    "an unknown key": (lambda m: m.update(colour="red"), "unknown keys: .*colour"),
    "no statistics": (lambda m: m.pop("statistics"), "incomplete .*statistics"),
    "statistics without norm": (lambda m: m["statistics"].pop("norm"), "statistics: norm"),
    "precision that is null": (lambda m: m.update(precision=None), "incomplete"),
}


@pytest.mark.parametrize("what", EDITS)
def test_metadata_that_say_too_little_are_refused(copied, what):
    edit, message = EDITS[what]
    edit_json(copied / "alignment_vector.json", edit)
    with pytest.raises(AVError, match=message) as caught:
        AlignmentVector.open(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_metadata_that_are_no_object_are_refused(copied, text):
    (copied / "alignment_vector.json").write_bytes(text)
    with pytest.raises(AVError, match=r"alignment_vector.json (cannot be read|must hold)"):
        AlignmentVector.open(copied)


def test_what_is_no_vector_is_refused(base, tmp_path):
    with pytest.raises(AVError, match="looks like a whole model; make a vector of it"):
        AlignmentVector.open(base)
    with pytest.raises(
        AVError, match=r"is no alignment vector \(it has no alignment_vector.json\)"
    ):
        AlignmentVector.open(tmp_path)
    with pytest.raises(AVError, match="no folder here, and the Hub has not given it"):
        AlignmentVector.open("nobody/nothing")


def test_metadata_survive_writing_and_reading(vectors):
    text = (vectors["legal"] / "alignment_vector.json").read_text("utf-8")
    metadata = AlignmentVector.open(vectors["legal"]).metadata
    assert metadata.to_json() == text
    assert json.loads(text)["format_version"] == 1
