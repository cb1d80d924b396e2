"""Knobs on real tiny models: what a setting gives, what it leaves alone, what it survives."""

import contextlib
import copy
import ctypes
import math
import os
import resource
import shutil
import signal
import threading
import time
from functools import cache
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from damage import edit_json, edit_tensors, truncate
from hypothesis import given, settings
from merging import make_recipe, merge
from safetensors.torch import load_file
from tiny import ARCHITECTURES, make_model, perturb
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from mergekit_av import AVError, Knobs, extract
from mergekit_av.io.checkpoint import SINGLE, Checkpoint
from mergekit_av.io.fingerprint import fingerprint
from mergekit_av.vectors.arithmetic import add_vectors

NAMES = ("medical", "financial", "legal")
SETTING = {"medical": -1.3, "financial": 0.0, "legal": 0.6}
DTYPES = ("float32", "bfloat16", "float16")
lambdas = st.floats(-4, 4, width=32)
some_settings = st.dictionaries(st.sampled_from(NAMES), lambdas)


def load(folder: Path, dtype: str = "bfloat16"):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def bits(model) -> dict[str, bytes]:
    """The weights as they are in memory: −0 is not 0."""
    return {
        name: value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        for name, value in model.state_dict().items()
    }


def assert_holds(model, tensors: dict) -> None:
    """The parameters are these tensors, bit for bit."""
    parameters = dict(model.named_parameters())
    assert parameters.keys() == tensors.keys()
    for name, parameter in parameters.items():
        assert parameter.dtype == tensors[name].dtype
        same = parameter.detach().contiguous().view(torch.uint8)
        assert torch.equal(same, tensors[name].contiguous().view(torch.uint8)), name


def versions(model) -> dict[str, int]:
    """How often torch saw each parameter written to."""
    return {name: parameter._version for name, parameter in model.named_parameters()}


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def avs(base, vectors, tmp_path_factory):
    """The three vectors, one of them in float32."""
    folder = tmp_path_factory.mktemp("float32") / "legal"
    aligned = vectors["legal"].parent / "legal-aligned"
    return {**vectors, "legal": extract(base, aligned, folder, dtype="float32").folder}


@pytest.fixture(scope="module")
def merged(base, avs, tmp_path_factory):
    """(dtype, rounding) → what mergekit-yaml writes for SETTING with seed 7."""

    @cache
    def run(dtype: str, rounding: str) -> dict:
        recipe = make_recipe(base, {avs[name]: value for name, value in SETTING.items()})
        recipe |= {"dtype": dtype, "parameters": {"rounding": rounding, "seed": 7}}
        return merge(recipe, tmp_path_factory.mktemp("merged") / "out")

    return run


@pytest.fixture(scope="module")
def shared(base, vectors):
    """A model with three knobs that tests set as they like."""
    model = load(base)
    return model, Knobs(model, vectors)


@pytest.fixture
def model(base):
    return load(base)


@pytest.fixture
def av(vectors, tmp_path):
    """A copy of the legal vector that may be changed."""
    return shutil.copytree(vectors["legal"], tmp_path / "av")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model that takes milliseconds to set, and a vector whose last tensor is much the largest.

    Its first tensors are small enough to be set when memory for the others is short.
    """
    folder = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        vocab_size=16, hidden_size=64, intermediate_size=10_000, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.float16).save_pretrained(folder / "base")
    aligned = perturb(folder / "base", folder / "aligned")
    edit_tensors(aligned, lambda tensors: tensors["model.norm.weight"].add_(1.0))
    return folder / "base", extract(folder / "base", aligned, folder / "av").folder


# --- what a setting gives ----------------------------------------------------------------------


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_setting_gives_what_mergekit_writes(base, avs, merged, dtype, rounding, resident):
    model = load(base, dtype)
    before = bits(model)
    knobs = Knobs(model, avs, rounding=rounding, seed=7, resident=resident)
    knobs.set(financial=2.5)
    knobs.set(dict(reversed(SETTING.items())))
    assert knobs.lambdas == SETTING
    assert_holds(model, merged(dtype, rounding))
    knobs.reset()
    assert bits(model) == before


def test_a_set_model_is_saved_as_mergekit_writes_it(base, avs, merged, tmp_path):
    model = load(base)
    Knobs(model, avs, seed=7).set(SETTING)
    model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / SINGLE)
    expected = merged("bfloat16", "stochastic")
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], value) for name, value in expected.items())
    assert_holds(load(tmp_path / "saved"), expected)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_architecture(tmp_path, architecture, tied):
    base = make_model(
        tmp_path / "base", architecture, tied=tied, shard_size="50KB" if tied else "5GB"
    )
    whole = tmp_path / "whole"
    load(base).save_pretrained(whole)
    vector = extract(base, perturb(whole, tmp_path / "aligned"), tmp_path / "av")
    expected = dict((-0.8 * vector).apply_to(base).named_parameters())
    model = load(base)
    before, keys = bits(model), list(model.state_dict())
    for resident in (True, False):
        knobs = Knobs(model, it=vector, resident=resident)
        with knobs.at(it=-0.8) as held:
            assert held is model
            assert_holds(model, expected)
            embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
            assert (embedding.weight is head.weight) == tied
        assert knobs.detach() is model
    assert bits(model) == before
    assert list(model.state_dict()) == keys


def test_nothing_drifts_in_10_000_settings(tmp_path):
    # Tensors are set one by one: a matrix and a vector can drift as well as those of many layers.
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=0,
        num_attention_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    vectors = {
        name: extract(
            tmp_path / "base",
            perturb(tmp_path / "base", tmp_path / f"{name}-aligned", seed=seed),
            tmp_path / name,
        )
        for seed, name in enumerate(NAMES)
    }
    model = load(tmp_path / "base")
    before = bits(model)
    knobs = Knobs(model, vectors)
    random = np.random.default_rng(0)
    last = dict.fromkeys(NAMES, 0.0)
    for _ in range(10_000):
        change = {name: random.normal() for name in random.permutation(NAMES)[: random.integers(4)]}
        knobs.set(change)
        last |= change
    assert knobs.lambdas == last
    after = bits(model)
    assert after != before
    knobs.reset()
    assert bits(model) == before
    knobs.set(last)
    assert bits(model) == after


@settings(deadline=None, max_examples=40)
@given(before=some_settings, change=some_settings, order=st.permutations(NAMES))
def test_the_way_to_a_setting_does_not_matter(shared, base, vectors, before, change, order):
    model, knobs = shared
    knobs.reset()
    knobs.set(before)
    knobs.set({name: change[name] for name in order if name in change})
    target = {**dict.fromkeys(NAMES, 0.0), **before, **change}
    assert knobs.lambdas == target
    name = "model.layers.0.mlp.up_proj.weight"
    terms = [(target[n], load_file(vectors[n] / SINGLE)[name]) for n in NAMES]
    expected = add_vectors(load_file(base / SINGLE)[name], terms, name=name)
    assert torch.equal(model.get_parameter(name), expected)


nested = st.recursive(
    st.booleans(), lambda inner: st.tuples(some_settings, some_settings, inner), max_leaves=4
)


@settings(deadline=None, max_examples=30)
@given(first=some_settings, blocks=nested)
def test_at_leaves_everything_as_it_was(shared, first, blocks):
    """However blocks are nested, whatever is set inside, whether or not one ends in an error."""
    model, knobs = shared
    knobs.reset()
    knobs.set(first)

    def enter(block):
        if isinstance(block, bool):
            if block:
                raise ZeroDivisionError
            return
        inside, then, inner = block
        before, weights = knobs.lambdas, bits(model)
        try:
            with knobs.at(inside) as held:
                assert held is model
                assert knobs.lambdas == {**before, **inside}
                knobs.set(then)
                enter(inner)
        finally:
            assert knobs.lambdas == before
            assert bits(model) == weights

    with contextlib.suppress(ZeroDivisionError):
        enter(blocks)


def test_levels_stand_for_their_calibrated_lambda(model, av):
    levels = {"expert": {"lambda": 1.25}, "generic": {"lambda": None}, "avoidance": {"lambda": -1}}
    edit_json(
        av / "alignment_vector.json", lambda m: m.update(calibration={"levels": levels, "at": []})
    )
    knobs = Knobs(model, legal=av)
    knobs.set(legal="expert")
    assert knobs.lambdas == {"legal": 1.25}
    with knobs.at(legal="avoidance"):
        assert knobs.lambdas == {"legal": -1.0}
        by_level = bits(model)
    knobs.set(legal=-1)
    assert bits(model) == by_level
    for level, message in {
        "generic": "no λ in the usable range of 'legal' makes 'generic' dominant",
        "export": "'legal' has no level 'export': there are expert, generic, avoidance",
    }.items():
        with pytest.raises(AVError, match=message):
            knobs.set(legal=level)
    assert bits(model) == by_level


@pytest.mark.parametrize(
    "calibration",
    [{}, [], {"levels": None}, {"levels": {"expert": 3}}, {"levels": {"expert": {}}}]
    + [{"levels": {"expert": {"lambda": value}}} for value in ("1", math.nan, True)],
)
def test_a_damaged_calibration_is_refused(model, av, calibration):
    edit_json(av / "alignment_vector.json", lambda m: m.update(calibration=calibration))
    with pytest.raises(AVError, match="damaged: run `av-sweep --write-card` again"):
        Knobs(model, legal=av).set(legal="expert")


def test_numbers_of_every_kind(shared):
    _, knobs = shared
    for value in (1, np.float32(0.5), np.int64(-2), torch.tensor(0.25)):
        knobs.set(legal=value)
        assert knobs.lambdas["legal"] == float(value)
        assert type(knobs.lambdas["legal"]) is float
    knobs.reset()
    assert repr(knobs) == "Knobs(medical=0, financial=0, legal=0)"


# --- only what changed is touched --------------------------------------------------------------


@pytest.mark.parametrize("resident", [True, False])
def test_weights_that_no_changed_knob_moves_are_not_touched(base, vectors, tmp_path, resident):
    aligned = shutil.copytree(base, tmp_path / "aligned")
    moved = {"model.norm.weight", "model.layers.1.mlp.up_proj.weight"}
    edit_tensors(aligned, lambda tensors: [tensors[name].add_(0.1) for name in moved])
    partial = extract(base, aligned, tmp_path / "partial")
    model = load(base)
    knobs = Knobs(model, whole=vectors["legal"], partial=partial, resident=resident)
    start = versions(model)
    knobs.set(partial=1)
    assert {name for name, count in versions(model).items() if count != start[name]} == moved
    start = versions(model)
    knobs.set(partial=1, whole=0)
    knobs.set()
    assert versions(model) == start
    knobs.set(whole=0.5)
    assert all(count != start[name] for name, count in versions(model).items())
    start = versions(model)
    knobs.set(partial=0)
    assert {name for name, count in versions(model).items() if count != start[name]} == moved


def test_a_tensor_of_zeros_gives_what_mergekit_writes(base, tmp_path):
    """To add 0 to −0 gives 0, so it is only left out where the base has no −0."""
    start, aligned = shutil.copytree(base, tmp_path / "base"), tmp_path / "aligned"
    edit_tensors(start, lambda tensors: tensors["model.norm.weight"][3:9].fill_(-0.0))
    shutil.copytree(start, aligned)
    edit_tensors(aligned, lambda tensors: tensors["model.embed_tokens.weight"].add_(0.1))
    vector = extract(start, aligned, tmp_path / "av")
    model = load(start)
    before = bits(model)
    knobs = Knobs(model, it=vector)
    for value in (0.5, -0.5):
        knobs.set(it=value)
        assert_holds(model, merge(make_recipe(start, {vector.folder: value}), tmp_path / "out"))
    knobs.reset()
    assert bits(model) == before


# --- a setting that fails ----------------------------------------------------------------------


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("first", [0.0, 0.5])
def test_an_overflow_half_way_leaves_the_model_as_it_was(large, resident, first):
    base, vector = large
    model = load(base, "float16")
    knobs = Knobs(model, it=vector, resident=resident)
    knobs.set(it=first)
    before, start = bits(model), versions(model)
    with pytest.raises(
        AVError, match=r"^model\.norm\.weight becomes infinite or NaN in torch.float16"
    ):
        knobs.set(it=70_000)
    assert versions(model)["model.embed_tokens.weight"] > start["model.embed_tokens.weight"]
    assert bits(model) == before
    assert knobs.lambdas == {"it": first}
    with pytest.raises(AVError, match="becomes infinite"), knobs.at(it=70_000):
        raise AssertionError("entered a block that could not be set")
    assert bits(model) == before
    knobs.set(it=1)


@pytest.fixture
def interrupts():
    """Deliver Ctrl-C after that many seconds of computing, then at every `interval` seconds."""
    previous = signal.signal(signal.SIGVTALRM, signal.default_int_handler)

    def start(seconds: float, interval: float = 0.0) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds, interval)

    yield start
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, previous)


@pytest.fixture
def busy(large):
    """Knobs at −1, their model, its weights at −1 and 2, and seconds of computing for a setting."""
    base, vector = large
    model = load(base, "float16")
    knobs = Knobs(model, it=vector)
    weights = {}
    for value in (2, -1):
        start = time.process_time()
        knobs.set(it=value)
        seconds = time.process_time() - start
        weights[value] = bits(model)
    return knobs, model, weights, seconds


def test_an_interrupt_leaves_the_model_as_it_was(busy, interrupts):
    knobs, model, weights, seconds = busy
    undone = 0
    for number in range(12):
        present, start = knobs.lambdas["it"], versions(model)
        try:
            interrupts(seconds * (number + 1) / 12)
            knobs.set(it=1 - present)
            interrupts(0)
            assert knobs.lambdas["it"] == 1 - present
        except KeyboardInterrupt:
            undone += knobs.lambdas["it"] == present and versions(model) != start
        assert bits(model) == weights[knobs.lambdas["it"]]
    assert undone, "no interrupt came while weights were written"


def test_an_interrupt_does_not_keep_at_from_going_back(busy, interrupts):
    knobs, model, weights, seconds = busy
    came = 0
    for number in range(6):
        try:
            with knobs.at(it=2):
                interrupts(seconds * (number + 1) / 8)
        except KeyboardInterrupt:
            came += 1
        interrupts(0)
        assert knobs.lambdas == {"it": -1}
        assert bits(model) == weights[-1]
    assert came, "no interrupt came"


def test_when_the_way_back_is_interrupted_too_reset_gives_the_base(busy, interrupts):
    knobs, model, weights, seconds = busy
    for number in range(12):
        try:
            interrupts(seconds * (number + 1) / 16, seconds / 16)
            knobs.set(it=2)
            interrupts(0)
        except KeyboardInterrupt:
            with contextlib.suppress(KeyboardInterrupt):
                interrupts(0)
            interrupts(0)
        if math.isnan(knobs.lambdas["it"]):
            break
        knobs.set(it=-1)
    assert math.isnan(knobs.lambdas["it"])
    with pytest.raises(AVError, match=r"could not be undone: call reset\(\)"), knobs.at():
        pass
    knobs.reset()
    knobs.set(it=2)
    assert bits(model) == weights[2]


def test_running_out_of_memory_leaves_the_model_as_it_was(large):
    base, vector = large
    model = load(base, "float16")
    knobs = Knobs(model, it=vector)
    knobs.set(it=0.5)
    before, start = bits(model), versions(model)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    hogs = []
    ctypes.CDLL(None).malloc_trim(0)
    size = int(Path("/proc/self/statm").read_text("utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size, hard))
    try:
        with contextlib.suppress(RuntimeError):
            while True:  # what the allocator still has in stock
                hogs.append(torch.empty(1 << 20, dtype=torch.uint8))
        with pytest.raises(RuntimeError, match="allocate memory"):
            knobs.set(it=1)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert versions(model)["model.embed_tokens.weight"] > start["model.embed_tokens.weight"]
    assert bits(model) == before
    assert knobs.lambdas == {"it": 0.5}


# --- vectors on disk ---------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["deleted", "replaced"])
def test_a_mapped_vector_may_be_deleted_or_replaced(model, av, vectors, what):
    knobs = Knobs(model, legal=av, resident=False)
    knobs.set(legal=1)
    before = bits(model)
    if what == "deleted":
        shutil.rmtree(av)
    else:
        os.replace(shutil.copy(vectors["medical"] / SINGLE, av / "new"), av / SINGLE)
    knobs.set(legal=-1)
    knobs.set(legal=1)
    assert bits(model) == before


@pytest.mark.parametrize("resident", [True, False])
def test_a_vector_that_is_truncated(model, av, resident):
    """A mapped one is refused before anything is written; one in memory does not need its file."""
    base = bits(model)
    knobs = Knobs(model, legal=av, resident=resident)
    knobs.set(legal=1)
    before = bits(model)
    truncate(av / SINGLE)
    if resident:
        knobs.set(legal=-1)
        knobs.set(legal=1)
    else:
        with pytest.raises(AVError, match=r"model.safetensors was changed since"):
            knobs.set(legal=-1)
    assert bits(model) == before
    assert knobs.lambdas == {"legal": 1}
    knobs.reset()
    assert bits(model) == base


def test_a_damaged_vector_is_refused(base, av):
    edit_tensors(av, lambda tensors: tensors["model.norm.weight"].add_(1))
    with pytest.raises(AVError, match="not those that were written"):
        Knobs(load(base), legal=av)
    edit_tensors(av, lambda tensors: tensors["model.norm.weight"].fill_(math.nan))
    whole = fingerprint(Checkpoint(av))
    edit_json(av / "alignment_vector.json", lambda m: m.update(fingerprint=whole))
    with pytest.raises(AVError, match="NaN or infinite"):
        Knobs(load(base), legal=av)
    truncate(av / SINGLE)
    with pytest.raises(AVError, match="truncated or damaged"):
        Knobs(load(base), legal=av)


def test_a_vector_twice_and_two_of_one_name(base, vectors, av):
    model = load(base, "float32")
    knobs = Knobs(model, a=av, b=vectors["legal"], c=av)
    knobs.set(a=1, b=-2, c=1)
    for name, parameter in load(base, "float32").named_parameters():
        assert torch.allclose(model.get_parameter(name), parameter, atol=1e-7)


def with_tensor(folder: Path, name: str, value: float) -> None:
    """Add a tensor to a vector as if its base had had it, too."""
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.full((4,), value)}))
    whole = fingerprint(Checkpoint(folder))
    edit_json(folder / "alignment_vector.json", lambda m: m.update(fingerprint=whole))


def test_a_buffer_that_a_vector_leaves_alone(base, tmp_path):
    """As older checkpoints hold rotary frequencies; the model has none by that name."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    start, aligned = shutil.copytree(base, tmp_path / "base"), tmp_path / "aligned"
    edit_tensors(start, lambda tensors: tensors.update({name: torch.rand(4)}))
    perturb(start, aligned)
    buffer = load_file(start / SINGLE)[name]
    edit_tensors(aligned, lambda tensors: tensors.update({name: buffer.clone()}))
    vector = extract(start, aligned, tmp_path / "av")
    assert name in vector.delta.names()
    Knobs(model := load(start), it=vector).set(it=1)
    recipe = make_recipe(start, {vector.folder: 1}, dtype="bfloat16")
    expected = merge(recipe, tmp_path / "out")
    assert_holds(model, {n: tensor for n, tensor in expected.items() if n != name})


def test_a_tensor_that_the_model_does_not_have_is_refused(model, av):
    with_tensor(av, "model.adapter.weight", 0.5)
    with pytest.raises(
        AVError, match=r"adapter.weight is \(4,\) in the vector and missing in the model"
    ):
        Knobs(model, legal=av, transfer=True)


def test_tied_weights_that_a_checkpoint_holds_by_both_names(base, tmp_path):
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    start, aligned = shutil.copytree(base, tmp_path / "base"), tmp_path / "aligned"
    double = lambda tensors: tensors.update({head: tensors[embedding].clone()})  # noqa: E731
    edit_tensors(start, double)
    perturb(start, aligned)
    edit_tensors(aligned, double)
    vector = extract(start, aligned, tmp_path / "av")
    model = load(start)
    assert head not in dict(model.named_parameters())
    Knobs(model, it=vector).set(it=1)
    expected = merge(make_recipe(start, {vector.folder: 1}), tmp_path / "out")
    assert_holds(model, {n: t for n, t in expected.items() if n != head})

    edit_tensors(aligned, lambda tensors: tensors[head].add_(1))
    other = extract(start, aligned, tmp_path / "other")
    with pytest.raises(AVError, match=r"lm_head.weight .* tied to model.embed_tokens"):
        Knobs(load(start), it=other)


# --- which models ------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_base_in_any_dtype_is_known(tmp_path, stored, dtype):
    base = make_model(tmp_path / "base", dtype=getattr(torch, stored))
    vector = extract(base, perturb(base, tmp_path / "aligned"), tmp_path / "av")
    model = load(base, dtype)
    before = bits(model)
    knobs = Knobs(model, it=vector)
    knobs.set(it=1)
    assert bits(model) != before
    assert knobs.detach() is model
    if torch.finfo(getattr(torch, stored)).bits > torch.finfo(getattr(torch, dtype)).bits:
        # Rounded values are not the base's; its folder alone can tell.
        base.rename(tmp_path / "elsewhere")
        with pytest.raises(AVError, match="these are not its weights"):
            Knobs(model, it=vector)
        Knobs(model, it=vector, transfer=True)
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    with pytest.raises(AVError, match="these are not its weights"):
        Knobs(model, it=vector)


def test_another_base(vectors, tmp_path):
    other = make_model(tmp_path / "other", seed=5)
    with pytest.raises(AVError, match=r"is a vector of .*if the transfer is meant, pass") as error:
        Knobs(load(other), vectors)
    one_line(error)
    Knobs(model := load(other), vectors, transfer=True).set(SETTING)
    lines = {vectors[name]: value for name, value in SETTING.items()}
    recipe = make_recipe(other, lines)
    for entry in recipe["models"]:
        entry["parameters"]["transfer"] = True
    assert_holds(model, merge(recipe, tmp_path / "out"))


def test_vectors_of_two_bases_are_told_apart(base, vectors, tmp_path):
    other = make_model(tmp_path / "other", seed=5)
    vector = extract(other, perturb(other, tmp_path / "aligned"), tmp_path / "av")
    with pytest.raises(AVError, match=f"^{tmp_path / 'av'} is a vector of"):
        Knobs(load(base), legal=vectors["legal"], other=vector)


def test_a_model_at_a_setting_is_no_base(model, vectors):
    Knobs(model, vectors).set(legal=0.5)
    with pytest.raises(AVError, match="these are not its weights"):
        Knobs(model, vectors)


class Quantised(torch.Tensor):
    """A tensor that is not what it seems to be, as torchao's and DTensor are."""


def _with_subclass(model):
    weight = model.model.norm.weight
    model.model.norm.weight = torch.nn.Parameter(
        torch.Tensor._make_subclass(Quantised, weight.detach())
    )
    return model


def _with_integers(model):
    weight = model.model.norm.weight.detach()
    model.model.norm.weight = torch.nn.Parameter(weight.to(torch.int8), requires_grad=False)
    return model


def _quantised(model):
    model.is_quantized = True
    return model


def _with_adapter(model):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2))


UNFIT = {
    "quantised": (_quantised, "the model is quantised"),
    "integers": (_with_integers, r"model.norm.weight is torch.int8: load the model in float32"),
    "a tensor subclass": (_with_subclass, "is a Quantised: load the model neither quantised"),
    "float64": (lambda model: model.double(), "is torch.float64: load the model in float32"),
    "meta": (lambda model: model.to("meta"), "is not in memory: load the model without offloading"),
    "an adapter around it": (_with_adapter, "carries PEFT adapters"),
    "an adapter in it": (lambda model: _with_adapter(model).get_base_model(), "PEFT adapters"),
    "compiled": (torch.compile, "does not fit the model: _orig_mod"),
    "another vocabulary": (
        lambda model: model.resize_token_embeddings(500) and model,
        r"\(600, 32\) in the vector and \(500, 32\) in the model",
    ),
    "a folder": (lambda model: model.name_or_path, "Knobs needs a model in memory"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_a_model_that_cannot_have_knobs(model, vectors, what):
    change, message = UNFIT[what]
    with pytest.raises(AVError, match=message) as error:
        Knobs(change(model), legal=vectors["legal"])
    one_line(error)


def test_an_adapter_without_its_adapter(model, vectors):
    peft = _with_adapter(model)
    Knobs(peft.unload(), legal=vectors["legal"]).set(legal=1)


def test_non_contiguous_parameters(base, avs, merged):
    model = load(base)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.t().contiguous().t()
            assert not parameter.is_contiguous(), name
    before = bits(model)
    knobs = Knobs(model, avs, seed=7)
    knobs.set(SETTING)
    assert_holds(model, merged("bfloat16", "stochastic"))
    assert not model.lm_head.weight.is_contiguous()
    knobs.reset()
    assert bits(model) == before


@pytest.mark.parametrize("inside", [True, False])
def test_inference_mode(base, avs, merged, inside):
    """A model loaded in it can be set inside and outside; one loaded outside, too."""
    plain = load(base)
    with torch.inference_mode(inside):
        model = LlamaForCausalLM(plain.config).to(plain.dtype)
        model.load_state_dict(plain.state_dict())
        assert model.lm_head.weight.is_inference() == inside
        knobs = Knobs(model, avs, seed=7)
    before = bits(model)
    for mode in (True, False):
        with torch.inference_mode(mode):
            knobs.set(SETTING)
        assert_holds(model, merged("bfloat16", "stochastic"))
        knobs.reset()
        assert bits(model) == before
    if not inside:  # what was set in inference mode can still be trained
        model(input_ids=torch.tensor([[1, 2]]), labels=torch.tensor([[1, 2]])).loss.backward()


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("resident", [True, False])
def test_several_devices(base, avs, merged, resident):
    model = load(base)
    model.model.layers[1].to(torch.accelerator.current_accelerator())
    knobs = Knobs(model, avs, seed=7, resident=resident)
    knobs.set(SETTING)
    expected = merged("bfloat16", "stochastic")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.cpu(), expected[name])


# --- what others do to the model ---------------------------------------------------------------


def _train(model):
    model(input_ids=torch.tensor([[1, 2]]), labels=torch.tensor([[1, 2]])).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def _replace(model):
    weight = model.model.norm.weight
    model.model.norm.weight = torch.nn.Parameter(weight.detach().clone())


def _replace_data(model):
    model.model.norm.weight.data = model.model.norm.weight.data + 1


MEDDLING = {
    "training": _train,
    "load_state_dict": lambda model: model.load_state_dict(copy.deepcopy(model.state_dict())),
    "another dtype": lambda model: model.half(),
    "another device": lambda model: model.to("meta"),
    "a parameter replaced": _replace,
    "its memory replaced": _replace_data,
    "more tokens": lambda model: model.resize_token_embeddings(700),
}


@pytest.mark.parametrize("what", MEDDLING)
def test_weights_that_somebody_else_changed_are_not_overwritten(model, vectors, what):
    knobs = Knobs(model, vectors)
    knobs.set(legal=0.5)
    MEDDLING[what](model)
    start = versions(model)
    for action in (lambda: knobs.set(legal=1), knobs.reset, knobs.detach):
        with pytest.raises(AVError, match="changed since these knobs last set it") as error:
            action()
        one_line(error)
    assert versions(model) == start
    assert knobs.lambdas["legal"] == 0.5


def test_other_knobs_on_the_same_model_are_noticed(model, vectors):
    before = bits(model)
    first, second = Knobs(model, vectors), Knobs(model, legal=vectors["legal"])
    first.set(medical=1)
    with pytest.raises(AVError, match="changed since"):
        second.set(legal=1)
    assert bits(first.detach()) == before


def test_gradients_of_weights_set_meanwhile_are_refused_by_torch(model, vectors):
    knobs = Knobs(model, vectors)
    loss = model(input_ids=torch.tensor([[1, 2]]), labels=torch.tensor([[1, 2]])).loss
    knobs.set(legal=1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- threads and detaching ---------------------------------------------------------------------


def test_threads_wait_for_one_another(model, vectors):
    knobs = Knobs(model, vectors)
    before = bits(model)
    expected = {}
    for value in (-1.0, 0.5, 2.0):
        knobs.set(legal=value)
        expected[value] = bits(model)
    knobs.reset()
    wrong = []

    def work(value):
        for _ in range(10):
            with knobs.at(legal=value):
                if bits(model) != expected[value]:
                    wrong.append(value)
            assert not any(map(math.isnan, knobs.lambdas.values()))

    threads = [threading.Thread(target=work, args=(value,)) for value in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert bits(model) == before


def test_a_setting_waits_for_the_end_of_a_block(model, vectors):
    knobs = Knobs(model, vectors)
    thread = threading.Thread(target=lambda: knobs.set(medical=2))
    with knobs.at(legal=1):
        inside = bits(model)
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        assert bits(model) == inside
    thread.join()
    assert knobs.lambdas == {"medical": 2, "financial": 0, "legal": 0}


def test_detaching_gives_the_model_back_untouched(base, vectors, tmp_path):
    model, plain = load(base), load(base)
    ids = torch.tensor([[5, 6, 7]])
    model.model.norm.weight.requires_grad_(False)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    objects = {name: id(parameter) for name, parameter in model.named_parameters()}
    attributes = set(vars(model))
    knobs = Knobs(model, vectors)
    knobs.set(legal=30)
    options = {"max_new_tokens": 12, "do_sample": False}
    assert not torch.equal(model(ids).logits, plain(ids).logits)
    assert knobs.detach() is model
    assert bits(model) == bits(plain)
    assert torch.equal(model.generate(ids, **options), plain.generate(ids, **options))
    assert torch.equal(model(ids).logits, plain(ids).logits)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == objects
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert set(vars(model)) == attributes
    model.save_pretrained(tmp_path / "model")
    plain.save_pretrained(tmp_path / "plain")
    assert (tmp_path / "model" / SINGLE).read_bytes() == (tmp_path / "plain" / SINGLE).read_bytes()
    for action in (lambda: knobs.set(legal=1), knobs.reset, knobs.detach):
        with pytest.raises(AVError, match="detached"):
            action()


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, True, None, [1.0], 10**400, 1j, torch.ones(2)]
)
def test_a_lambda_that_is_no_finite_number(shared, value):
    model, knobs = shared
    knobs.reset()
    before = bits(model)
    with pytest.raises(AVError, match="legal: λ must be a finite number or a level's name"):
        knobs.set(medical=1, legal=value)
    assert bits(model) == before


def test_a_level_without_calibration(shared):
    with pytest.raises(AVError, match=r"no calibration: run `av-sweep --write-card`, or give λ"):
        shared[1].set(legal="expert")


def test_unknown_names(shared):
    model, knobs = shared
    knobs.reset()
    before = bits(model)
    for action in (lambda: knobs.set(medical=1, lega=1), lambda: knobs.at({"lega": 1}).__enter__()):
        with pytest.raises(AVError, match="no knob 'lega': there are medical, financial, legal"):
            action()
    assert bits(model) == before


def test_knobs_need_vectors(model, base):
    with pytest.raises(AVError, match="Knobs needs a vector"):
        Knobs(model)
    with pytest.raises(AVError, match="looks like a whole model"):
        Knobs(model, legal=base)
    with pytest.raises(AVError, match="no folder"):
        Knobs(model, legal="no/where/at/all")


def test_an_unknown_rounding(model, vectors):
    with pytest.raises(AVError, match="`rounding` must be one of stochastic, nearest, not 'up'"):
        Knobs(model, vectors, rounding="up")
