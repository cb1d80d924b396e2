"""Settings, what is measured at them, and that nothing is measured twice."""

import copy
import hashlib
import json
import shutil
from decimal import Decimal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merging import make_recipe, merge
from sweeping import few, row, write_rows
from tiny import CHAT_TEMPLATE, make_model, make_tokenizer

from mergekit_av import AVError
from mergekit_av.data.domain import load_domain
from mergekit_av.data.records import Record, load_records
from mergekit_av.evaluation.accuracy import evaluate
from mergekit_av.evaluation.fluency import fluency
from mergekit_av.evaluation.measure.cache import Cache, Identity
from mergekit_av.evaluation.measure.engine import Engine
from mergekit_av.evaluation.measure.requests import Generate, Score
from mergekit_av.evaluation.measure.store import Store
from mergekit_av.evaluation.sweep.grid import parse_grid
from mergekit_av.evaluation.sweep.sweep import sweep
from mergekit_av.evaluation.tasks import asking_for, make_task
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.io.fingerprint import fingerprint
from mergekit_av.models.chat import encode
from mergekit_av.models.decoding import Decoding
from mergekit_av.models.generation import write_answers
from mergekit_av.models.load import load_model, load_tokenizer
from mergekit_av.runtime.knobs import Knobs

# λ


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("-0.3:0.3", [-0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3]),
        ("0:1:0.4", [0, 0.4, 0.8]),
        ("1:1", [1]),
        ("1:1:5", [1]),
        ("-1,0.5,-1, 2e-1", [-1, 0.2, 0.5]),
        ("0.5", [0.5]),
        ("-0", [0]),
        ("1e16:1e16:0.1", [1e16]),
        (" -1 : 1 : 1 ", [-1, 0, 1]),
    ],
)
def test_ranges_and_lists(text, values):
    assert parse_grid(text) == values


@settings(deadline=None)
@given(st.integers(-300, 300), st.integers(0, 300), st.integers(1, 50))
def test_values_are_the_decimals_one_would_write(low, count, step):
    high = low + count
    found = parse_grid(f"{Decimal(low) / 100}:{Decimal(high) / 100}:{Decimal(step) / 100}")
    assert found == [float(f"{value / 100:.2f}") for value in range(low, high + 1, step)]


def test_the_papers_range_holds_an_exact_0():
    values = parse_grid("-1.5:1.5:0.1")
    assert len(values) == 31 and 0.0 in values and -0.3 in values
    assert str(values[15]) == "0.0"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "λ must be like -1.5:1.5:0.1 or -1,0,0.5, not ''"),
        ("a", "not 'a'"),
        (",", "not ','"),
        ("1:", "not '1:'"),
        ("1:2:3:4", "not '1:2:3:4'"),
        ("1:2,3", "not '1:2,3'"),
        ("nan", "not 'nan'"),
        ("0:inf", "not '0:inf'"),
        ("sNaN:1", "not 'sNaN:1'"),
        ("1e999999999", "not '1e999999999'"),
        ("1:-1", "the λ range 1:-1 is reversed: write -1:1:0.1"),
        ("1:0:0.5", "is reversed: write 0:1:0.5"),
        ("0:1:0", "has the step 0: it must be positive"),
        ("0:1:-0.1", "has the step -0.1: it must be positive"),
        ("-1e9:1e9:0.1", "has 20,000,000,000 values: take a larger step"),
        ("0:1:1e-999", "values: take a larger step"),
    ],
)
def test_what_is_no_range_is_refused_at_once(text, says):
    with pytest.raises(AVError) as error:
        parse_grid(text)
    assert says in str(error.value)


# Tasks


@pytest.fixture(scope="module")
def network(base):
    """Read only."""
    return load_model(base)


@pytest.fixture(scope="module")
def tokenizer(base):
    """Read only."""
    return load_tokenizer(base)


def digest_of(tokenizer, records) -> str:
    """What the store's keys have called the tokens of records from the first release on."""
    digest = hashlib.sha256()
    for record in records:
        tokens = encode(tokenizer, record.prompt, list(record.responses.values()))
        digest.update(json.dumps([record.id, list(record.responses), *tokens]).encode())
    return digest.hexdigest()[:32]


def test_answers_to_a_cut_prompt_are_kept_under_a_key_of_their_own(network, tokenizer, tmp_path):
    domain, records = few(tmp_path)
    identity = Identity("base", {}, "nearest", 0, "float32")

    def key(template: str, decoding: Decoding | None) -> dict:
        other = copy.deepcopy(tokenizer)
        other.chat_template = template
        task = make_task(
            network, other, domain, records, "test", limit=2,
            new_tokens=decoding.max_new_tokens if decoding else 0,
        )  # fmt: skip
        request = Generate({}, task, decoding) if decoding else Score({}, task)
        found = identity.key(request)
        assert found["tokens"] == digest_of(other, task.records)
        return found

    ordinary = {
        "base": "base", "vectors": [], "rounding": None, "seed": None, "dtype": "float32",
        "domain": "medical", "split": "test", "prompt": None,
    }  # fmt: skip
    thinking, wondering = (
        CHAT_TEMPLATE.replace("<|assistant|>{% endif %}", f"<|assistant|>{end}{{% endif %}}")
        for end in ("<think>", "<think> ")
    )
    for template in (CHAT_TEMPLATE, thinking):
        found = key(template, None)
        assert list(found) == [*ordinary, "tokens"] and ordinary.items() <= found.items()
    answered = key(CHAT_TEMPLATE, Decoding(4))
    assert list(answered) == [*ordinary, "tokens", "max_new_tokens"]
    # The same tokens are scored, and others answered.
    cut, other = key(thinking, Decoding(4)), key(wondering, Decoding(4))
    assert cut["tokens"] == answered["tokens"] == other["tokens"]
    assert cut.keys() - answered.keys() == {"prompts"} and cut["prompts"] != other["prompts"]


def test_a_record_with_equal_responses_is_no_part_of_a_task(network, tokenizer, tmp_path):
    domain = load_domain("medical")
    data = write_rows(tmp_path / "some.jsonl", [row("a"), row("b", generic="Take 5 mg.")])
    task = make_task(network, tokenizer, domain, load_records(domain, data), "test")
    assert ([record.id for record in task.records], task.equal) == (["a"], ("b",))


def test_a_task_takes_the_first_records_of_its_split(network, tokenizer, tmp_path):
    domain, records = few(tmp_path, test=4, validation=3)
    task = make_task(network, tokenizer, domain, records, "validation", limit=2)
    assert [record.id for record in task.records] == ["v0", "v1"]
    assert (task.name, task.split, task.prompt, task.too_long) == (
        "medical",
        "validation",
        None,
        (),
    )
    with pytest.raises(AVError, match="medical: no record is in the train split"):
        make_task(network, tokenizer, domain, records, "train")


def test_queries_to_answer_leave_room_for_the_answer(tmp_path):
    folder = make_model(tmp_path / "model", context=120)
    make_tokenizer(folder)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    domain = load_domain("medical")
    content = [row("t0"), {**row("t1"), "query": "what " * 60}, row("t2")]
    records = load_records(domain, write_rows(tmp_path / "long.jsonl", content))
    ids = [r.id for r in make_task(model, tokenizer, domain, records, "test").records]
    assert ids == ["t0", "t1", "t2"]
    for new_tokens in (60, 80):
        task = make_task(model, tokenizer, domain, records, "test", limit=2, new_tokens=new_tokens)
        assert [record.id for record in task.records] == ["t0", "t2"]
    with pytest.raises(AVError, match=r"no query leaves room for an answer of 115 tokens .* 120"):
        make_task(model, tokenizer, domain, records, "test", new_tokens=115)
    model.config.max_position_embeddings = 60
    task = make_task(model, tokenizer, domain, records, "test")
    with pytest.raises(AVError, match="asked for 'avoidance': leave that out"):
        asking_for(model, tokenizer, task, "avoidance")


def test_the_instruction_stands_before_the_query(network, tokenizer):
    domain = load_domain("medical")
    turns = (
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "What helps?"},
    )
    responses = {level: f"Yes, {level}." for level in domain.levels}
    records = [Record("a", turns, responses, "test"), Record("b", "What?", responses, "test")]
    bare = make_task(network, tokenizer, domain, records, "test")
    asked = asking_for(network, tokenizer, bare, "generic")
    instruction = domain.prompts["generic"]
    conversation, text = (record.prompt for record in asked.records)
    assert conversation[:3] == turns[:3]
    assert conversation[3] == {"role": "user", "content": f"{instruction}\n\nWhat helps?"}
    assert text == f"{instruction}\n\nWhat?"
    assert asked.prompt == "generic" and asked.digest != bare.digest
    assert [record.query for record in bare.records] == ["What helps?", "What?"]


# The cache


@pytest.fixture
def make(base, vectors, tmp_path):
    """Make caches over one store."""
    stores = []

    def make(names=("medical",), dtype="float32", source=base, **options) -> Cache:
        model = load_model(source, dtype=dtype)
        knobs = Knobs(model, {name: vectors[name] for name in names}, **options)
        store = stores[0] if stores else Store(tmp_path / "evaluations.jsonl")
        stores.append(store)
        identity = fingerprint(Checkpoint(source))
        return Cache(
            Engine(knobs, model, load_tokenizer(source)),
            Identity.of(identity, knobs.vectors, knobs.rounding, knobs.seed, model.dtype),
            store,
        )

    yield make
    for store in stores:
        store.close()


def task_of(cache, domain, records, split="test", **options):
    return make_task(cache.engine.model, cache.engine.tokenizer, domain, records, split, **options)


@pytest.mark.parametrize("value", [-0.7, 1.0])
def test_it_measures_what_mergekit_would_have_written(make, base, vectors, tmp_path, value):
    domain = load_domain("medical")
    records = load_records(domain)
    cache = make(dtype="auto")
    task = task_of(cache, domain, records, "validation")
    found = cache.result({"medical": value}, task)

    recipe = make_recipe(base, {vectors["medical"]: value}, dtype="bfloat16")
    merge(recipe, tmp_path / "merged")
    merged = load_model(tmp_path / "merged", dtype="bfloat16")
    assert found == evaluate(
        merged, cache.engine.tokenizer, domain, records, split="validation", progress=False
    )
    assert found != cache.result({}, task)

    answers = cache.answers({"medical": value}, task, Decoding(8))
    assert answers == write_answers(
        merged, cache.engine.tokenizer, task.records, Decoding(8), progress=False
    )


def test_afterwards_the_model_is_its_base_again(make, base, tmp_path):
    cache = make()
    task = task_of(cache, *few(tmp_path))
    cache.result({"medical": 1.5}, task)
    cache.answers({"medical": 1.5}, task, Decoding(4))
    original = load_model(base).state_dict()
    state = cache.engine.model.state_dict()
    assert all(torch.equal(state[name], original[name]) for name in original)
    assert cache.engine.knobs.lambdas == {"medical": 0}


def test_what_was_measured_is_read_back(make, tmp_path):
    cache = make()
    task = task_of(cache, *few(tmp_path))
    setting = {"medical": 0.5}
    assert Score(setting, task) not in cache and Generate(setting, task, Decoding(4)) not in cache
    first = cache.result(setting, task), cache.answers(setting, task, Decoding(4))
    assert Score(setting, task) in cache and Generate(setting, task, Decoding(4)) in cache
    assert Generate(setting, task, Decoding(5)) not in cache
    assert Generate(setting, task, Decoding(4, {"do_sample": True})) not in cache
    cache.engine.knobs.detach()  # nothing can be measured any more
    assert (cache.result(setting, task), cache.answers(setting, task, Decoding(4))) == first
    with pytest.raises(AVError, match="detached"):
        cache.result({"medical": 0.6}, task)


def test_the_base_is_measured_once_for_all_vectors(make, tmp_path):
    cache = make(("medical", "financial", "legal"))
    task = task_of(cache, *few(tmp_path))
    base = cache.result({"medical": 0.0}, task)
    other = make(("legal",), rounding="nearest", seed=7)
    for some in (cache, other):
        for setting in ({}, {"legal": 0.0}, {"legal": -0.0}):
            assert Score(setting, task) in some and some.result(setting, task) == base
    assert len(cache.store) == 1


def test_a_setting_is_the_same_however_it_is_written(make, tmp_path):
    cache = make(("medical", "legal"))
    task = task_of(cache, *few(tmp_path))
    cache.result({"medical": 1, "legal": -0.5}, task)
    assert Score({"legal": -0.5, "medical": 1.0}, task) in cache
    # The order in which vectors are added does change bits.
    assert Score({"legal": -0.5, "medical": 1.0}, task) not in make(("legal", "medical"))


def test_whatever_changes_the_numbers_makes_a_new_key(make, base, tmp_path):
    domain, records = few(tmp_path)
    cache = make()
    task = task_of(cache, domain, records)
    setting = {"medical": 0.5}
    cache.result(setting, task)
    assert Score(setting, task) in make()

    assert Score({"medical": 0.51}, task) not in cache
    assert Score({"legal": 0.5}, task) not in make(("legal",))
    for options in ({"dtype": "bfloat16"}, {"rounding": "nearest"}, {"seed": 1}):
        assert Score(setting, task) not in make(**options)
    assert Score(setting, task_of(cache, domain, records, limit=3)) not in cache
    assert Score(setting, task_of(cache, domain, records, "validation")) not in cache
    assert (
        Score(setting, asking_for(cache.engine.model, cache.engine.tokenizer, task, "expert"))
        not in cache
    )

    content = [row(f"t{i}") for i in range(3)] + [row("t3", generic="See a nurse.")]
    changed = load_records(domain, write_rows(tmp_path / "changed.jsonl", content))
    assert Score(setting, task_of(cache, domain, changed)) not in cache
    names = load_records(domain, write_rows(tmp_path / "x.jsonl", [row(i) for i in "abcd"]))
    assert Score(setting, task_of(cache, domain, names)) not in cache

    template = shutil.copytree(base, tmp_path / "template")
    (template / "chat_template.jinja").write_text(
        CHAT_TEMPLATE.replace("<|end|>", "<|end|>\n"), "utf-8"
    )
    other = make(source=template)
    assert Score(setting, task_of(other, domain, records)) not in other

    moved = make(source=make_other_base(tmp_path), transfer=True)
    assert Score(setting, task) not in moved and Score({}, task) not in moved


def make_other_base(tmp_path):
    folder = make_model(tmp_path / "other", seed=5)
    make_tokenizer(folder)
    return folder


# The sweep


def test_a_sweep_begins_at_the_base_and_moves_away_from_it(make, tmp_path):
    cache = make()
    domain, records = few(tmp_path)
    tasks = [task_of(cache, domain, records, split) for split in ("test", "validation")]
    points = list(sweep(cache, "medical", [1.0, -0.5, 0.5], tasks, tasks[0], Decoding(4)))
    assert [point.lambdas["medical"] for point in points] == [0, -0.5, 0.5, 1]
    for point in points:
        assert list(point.results) == [("medical", "test"), ("medical", "validation")]
        assert list(point.answers) == ["t0", "t1", "t2", "t3"]
        assert point.fluency == fluency(point.answers, point.results.values())
        assert point.results["medical", "test"] == cache.result(point.lambdas, tasks[0])
    (alone,) = sweep(cache, "medical", [0], tasks)
    assert alone.fluency is None and alone.answers == {}
    assert alone.results == points[0].results


def test_the_bar_begins_with_what_was_kept(make, tmp_path, capsys):
    cache = make()
    tasks = [task_of(cache, *few(tmp_path))]
    list(sweep(cache, "medical", [0.5, 1.0], tasks))
    assert "0/3" in capsys.readouterr().err
    list(sweep(cache, "medical", [0.25, 0.5, 1.0], tasks))
    shown = capsys.readouterr().err
    assert "3/4" in shown and "4/4" in shown and "0/4" not in shown
    # Its rate is that of what is measured now.
    list(sweep(cache, "medical", [0.5, 1.0], tasks))
    assert "3/3 [00:00<?, ?evaluation/s" in capsys.readouterr().err
