"""av-synth from a domain to records, against a real endpoint on loopback."""

import json
import re
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from chat_server import Answer, Fault
from synthesizing import (
    DOMAIN,
    LEVELS,
    TINY,
    count_of,
    lines,
    novelist,
    synth,
    write_domain,
    write_personas,
)

from mergekit_av.data.domain import load_domain
from mergekit_av.data.records import load_records
from mergekit_av.endpoints.config import ClientConfig
from mergekit_av.errors import UsageError
from mergekit_av.synthesis.folder import DataFolder
from mergekit_av.synthesis.generate.tree import TreeShape
from mergekit_av.synthesis.pipeline import SynthesisConfig, synthesize
from mergekit_av.synthesis.stage import GenerationConfig


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(chat, tmp_path):
    """Run `av-synth run` for the domain of the tests; the folder is `data`."""
    chat.write = novelist
    domain = write_domain(tmp_path)

    def run(*options: object, count: int = 6):
        return synth(
            "run", "--domain", domain, "--out", tmp_path / "data", "--count", count,
            "--base-url", chat.url, *TINY, *options,
        )  # fmt: skip

    return run


@pytest.fixture
def data(tmp_path) -> Path:
    return tmp_path / "data"


def refused(result) -> str:
    """What a command says that fails as expected: one line."""
    assert result.exit_code == 1, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit), result.exception
    return result.stderr.strip().splitlines()[-1]


# --- the whole way -----------------------------------------------------------------------------


def test_a_domain_becomes_records_that_av_train_reads(run, chat, data):
    result = run(count=7)
    assert result.exit_code == 0, result.output
    rows = lines(data / "records.jsonl")
    assert len(rows) == 7 == len({row["query"] for row in rows})
    assert all(list(row["responses"]) == LEVELS for row in rows)
    domain = load_domain(data / "domain.yml")
    assert load_records(domain, data) == load_records(domain)
    assert "7 personas created; 3 calls" in result.stdout  # the roots of three rounds
    assert "21 responses; 21 calls" in result.stdout
    assert "responses: about 21 calls" in result.stderr and "Responses: 100%" in result.stderr


def test_the_pipeline_is_a_python_call(chat, data, tmp_path):
    chat.write = novelist
    generation = GenerationConfig(ClientConfig("tiny", chat.url))
    results = []
    config = SynthesisConfig(
        write_domain(tmp_path), 4, generation, data, shape=TreeShape(2, 2, None, 1)
    )
    made = synthesize(config, on_result=results.append)
    assert made.results == results and made.commit is None
    stages = [result.stage for result in results]
    assert stages == ["created", "queries", "responses", "records"]
    assert results[0].spent.calls and results[-1].spent is None
    with pytest.raises(UsageError, match="--private goes with --push-to-hub"):
        SynthesisConfig("legal", 4, generation, private=True)


def test_each_level_is_asked_for_in_its_own_words(run, chat):
    run(count=2)
    asked = [prompt for prompt in chat.prompts if "The question:" in prompt]
    assert len(asked) == 6
    assert sum("Curt and distant." in p and "keep your distance" in p for p in asked) == 2
    assert sum("at the level “warm”" in p and "full of welcome" in p for p in asked) == 2
    assert all("somebody who knows about hosting" in prompt for prompt in asked)
    assert all("staying with us" in prompt for prompt in chat.prompts if "portal" in prompt)


def test_a_record_says_where_it_comes_from(run, data):
    run(count=2)
    provenance = lines(data / "records.jsonl")[0]["provenance"]
    assert provenance["persona_source"] == "CreatePersona"
    assert provenance["query_model"] == provenance["response_model"] == "tiny"
    assert len(provenance["query_prompt"]) == len(provenance["response_prompt"]) == 12
    assert provenance["date"].startswith("20")


def test_the_costs_are_those_of_the_endpoint(run, chat, data):
    run("--price-in", "1000", "--price-out", "10000", count=3)
    spent = json.loads((data / "spending.json").read_text("utf-8"))
    total = {key: sum(stage[key] for stage in spent.values()) for key in ("calls", "input", "usd")}
    read = sum(len(r.body["messages"][0]["content"].split()) for r in chat.requests)
    assert (total["calls"], total["input"]) == (len(chat.requests), read)
    written = sum(stage["output"] for stage in spent.values())
    assert total["usd"] == pytest.approx((read * 1000 + written * 10000) / 1e6)


def test_what_is_done_is_not_asked_again_and_more_is_added(run, chat, data):
    run(count=4)
    first = {row["id"]: row for row in lines(data / "records.jsonl")}
    asked = len(chat.requests)
    result = run(count=4)
    assert result.exit_code == 0 and len(chat.requests) == asked
    run(count=9)
    rows = {row["id"]: row for row in lines(data / "records.jsonl")}
    assert len(rows) == 9 and first.items() <= rows.items()
    assert max(Counter(chat.prompts).values()) == 1


def test_the_stages_one_by_one_make_the_same(run, chat, data, tmp_path):
    run("--rounds", "1", "--concurrency", "1", count=5)
    domain, out = tmp_path / "hosting.yml", tmp_path / "steps"
    tree = ("--roots", 5, "--children", 5, "--depth", 0, "--rounds", 1)
    first = synth(
        "personas", "--domain", domain, "--create", *tree, "--out", out, "--base-url", chat.url, *TINY
    )  # fmt: skip
    assert first.exit_code == 0, first.output
    # The folder knows the model.
    assert synth("queries", out).exit_code == 0
    assert synth("responses", out).exit_code == 0
    assert texts(out) == texts(data) and len(texts(out)) == 15


def texts(folder: Path) -> dict:
    responses = DataFolder(folder).responses()
    return {(q, level): r.text for q, found in responses.items() for level, r in found.items()}


def test_a_dry_run_makes_the_folder_and_asks_nothing(run, chat, data):
    result = run("--dry-run", count=100)
    assert result.exit_code == 0 and not chat.requests
    assert "responses: about 300 calls" in result.stderr and not result.stdout
    assert (data / "prompts" / "query.txt").is_file() and (data / "domain.yml").is_file()


def test_what_it_will_cost_is_said_without_a_key(data, tmp_path):
    result = synth(
        "run", "--domain", write_domain(tmp_path), "--out", data, "--count", 100, "--dry-run",
        "--model", "openai/gpt-4o", "--budget", "0.01USD",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert re.search(r"responses: about 300 calls, .* 0\.[1-9]\d* USD", result.stderr)
    assert "WARNING: the budget will not be enough for all of it" in result.stderr


# --- personas ----------------------------------------------------------------------------------


def test_rounds_start_from_other_roots_and_grow_to_their_depth(chat, tmp_path):
    chat.write = novelist
    result = synth(
        "personas", "--domain", write_domain(tmp_path), "--out", tmp_path / "data", "--create",
        "--roots", 2, "--children", 3, "--depth", 2, "--rounds", 2, "--base-url", chat.url, *TINY,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    made = lines(tmp_path / "data" / "created.jsonl")
    assert Counter((m["round"], m["depth"], len(m["personas"])) for m in made) == {
        (round, depth, count): expansions
        for round in (0, 1)
        for depth, count, expansions in ((0, 2, 1), (1, 3, 2), (2, 3, 6))
    }
    assert "2 people" in chat.prompts[0] and "(nobody yet)" in chat.prompts[0]
    first_roots = [one["persona"] for one in made[0]["personas"]]
    assert all(persona in chat.prompts[1] for persona in first_roots)
    personas = DataFolder(tmp_path / "data").personas()
    assert len(personas) == 2 * 2 * (1 + 3 + 9) == len({p.id for p in personas})


def test_somebody_who_is_named_twice_is_there_once(run, chat, data):
    people = [{"persona": f"Guest {i}.", "query": f"Question {i}?"} for i in range(4)]

    def write(body):
        asked = body["messages"][0]["content"]
        return json.dumps({"people": people}) if "Think of" in asked else novelist(body)

    chat.write = write
    assert run(count=6).exit_code == 0
    assert len(lines(data / "records.jsonl")) == 4


def test_plain_lists_do_for_models_that_know_no_json(run, chat, data):
    result = run("--plain", count=7)
    assert result.exit_code == 0, result.output
    assert len(lines(data / "records.jsonl")) == 7
    persona = lines(data / "created.jsonl")[0]["personas"][0]
    assert persona["persona"].startswith("Guest") and persona["query"] is None
    assert "queries: about 7 calls" in result.stderr and "7 queries; 7 calls" in result.stdout


def test_of_a_plain_list_only_the_people_are_taken(run, chat, data):
    def write(body):
        asked = body["messages"][0]["content"]
        listed = "Here they are:\n\n1. A nurse.\n* A sailor.\n2.\n- - -\n(c) A cook."
        if "Think of" not in asked:
            return novelist(body)
        return Answer(f"{listed}\n3. A teacher from", finish_reason="length")

    chat.write = write
    assert run("--plain", "--rounds", "1", count=3).exit_code == 0
    people = [one["persona"] for one in lines(data / "created.jsonl")[0]["personas"]]
    assert people == ["A nurse.", "A sailor.", "A cook."]


def test_a_model_that_ignores_the_schema_is_named(run, chat, data):
    chat.write = lambda body: "What a nice idea."
    told = refused(run())
    assert told.startswith("Error: tiny does not keep to the schema") and "--plain" in told
    # What it cost is not forgotten.
    assert DataFolder(data).spending()["created"].calls == 3


def test_one_bad_answer_of_many_is_passed_over_and_asked_again_next_time(run, chat, data, tmp_path):
    create = ("personas", "--domain", tmp_path / "hosting.yml", "--out", data, "--create")
    create += ("--roots", 3, "--rounds", 1, "--base-url", chat.url, *TINY)
    synth(*create, "--depth", 0)
    bad = lines(data / "created.jsonl")[0]["personas"][1]["persona"]

    def write(body):
        return "No." if bad in body["messages"][0]["content"] else novelist(body)

    chat.write = write
    assert synth(*create, "--depth", 1).exit_code == 0
    assert [len(entry["personas"]) for entry in lines(data / "created.jsonl")].count(0) == 1
    chat.write = novelist
    assert synth(*create, "--depth", 1).exit_code == 0
    asked = [p for p in chat.prompts if bad in p and "Think of" in p]
    assert len(asked) == 2  # once in each run


def rows_of(kind: str, folder: Path, personas: list[str]) -> Path:
    path = folder / f"people.{kind}"
    if kind == "txt":
        path.write_text("\n".join([*personas, "", personas[0]]), "utf-8")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"persona": p}) + "\n" for p in personas), "utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.table({"persona": personas}), path)
    return path


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_personas_are_sampled_and_a_larger_sample_holds_the_smaller(tmp_path, kind):
    source = rows_of(kind, tmp_path, [f"Guest {i}" for i in range(20)])
    out = tmp_path / "data"
    begin = ("personas", "--domain", write_domain(tmp_path), "--from", source, "--out", out)
    assert synth(*begin, "--sample", 5).exit_code == 0
    five = {p.persona for p in DataFolder(out).personas()}
    assert synth(*begin, "--sample", 12).exit_code == 0
    twelve = {p.persona for p in DataFolder(out).personas()}
    assert len(five) == 5 and len(twelve) == 12 and five < twelve
    assert five != {f"Guest {i}" for i in range(5)}
    assert "holds 20 personas: a sample cannot have 21" in refused(synth(*begin, "--sample", 21))


def test_sampled_and_created_personas_come_together(chat, tmp_path):
    chat.write = novelist
    out = tmp_path / "data"
    begin = ("personas", "--domain", write_domain(tmp_path), "--out", out)
    server = ("--base-url", chat.url, *TINY)
    tree = ("--roots", 2, "--children", 1, "--depth", 0, "--rounds", 1)
    assert synth(*begin, "--from", write_personas(tmp_path, 3)).exit_code == 0
    assert synth(*begin, "--create", *tree, *server).exit_code == 0
    result = synth("queries", out, "--count", 4)
    assert result.exit_code == 0, result.output
    found = DataFolder(out).queries()
    assert [q.persona.source for q in found] == ["personas.txt"] * 3 + ["CreatePersona"]
    assert synth("queries", out).exit_code == 0
    assert len(DataFolder(out).queries()) == 5


# --- responses ---------------------------------------------------------------------------------


def test_the_level_does_not_show_in_the_number_of_paragraphs(run, chat, data):
    run(count=30)
    drawn = {level: Counter() for level in LEVELS}
    for entry in lines(data / "responses.jsonl"):
        drawn[entry["level"]][entry["paragraphs"]] += 1
        assert entry["text"].count("\n\n") == entry["paragraphs"] - 1
    for counts in drawn.values():  # 10 of 30 are expected of each number
        assert set(counts) == {1, 2, 3} and min(counts.values()) >= 4
    by_query = {}
    for entry in lines(data / "responses.jsonl"):
        by_query.setdefault(entry["query_id"], set()).add(entry["paragraphs"])
    assert any(len(numbers) > 1 for numbers in by_query.values())
    assert {count_of(p) for p in chat.prompts if "The question:" in p} == {1, 2, 3}


def test_what_is_cut_off_or_withheld_is_kept_as_such(run, chat, data):
    def write(body):
        asked = body["messages"][0]["content"]
        if "Curt and distant" in asked:
            return Answer("One two", finish_reason="length")
        return Answer(None, "content_filter") if "Plain and factual" in asked else novelist(body)

    chat.write = write
    run(count=2)
    found = DataFolder(data).responses().values()
    reasons = {r.level: (r.text != "", r.made["finish_reason"]) for f in found for r in f.values()}
    assert reasons == {
        "warm": (True, "stop"),
        "neutral": (False, "content_filter"),
        "cold": (True, "length"),
    }


def test_a_limit_of_ones_own_goes_with_every_request(run, chat):
    run("--max-tokens", "2000", count=2)
    assert {request.body["max_tokens"] for request in chat.requests} == {2000}


# --- nothing is mixed --------------------------------------------------------------------------

CHANGES = {
    "model": (
        ("--model", "other"),
        "created.jsonl was made with another model ('tiny', not 'other')",
    ),
    "seed": (("--seed", "1"), "another seed (0, not 1)"),
    "temperature": (("--temperature", "0.5"), "another temperature"),
    "shape": (("--children", "2"), "another children (5, not 2)"),
    "plain": (("--plain",), "another plain"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_stage_is_not_continued_with_other_settings(run, chat, data, what):
    run(count=2)
    asked, before = len(chat.requests), (data / "created.jsonl").read_bytes()
    options, message = CHANGES[what]
    told = refused(run(*options, count=4))
    assert message in told and "--restart" in told
    assert len(chat.requests) == asked and (data / "created.jsonl").read_bytes() == before


def test_another_address_is_the_same_model(run, chat):
    run(count=2)
    elsewhere = chat.url.replace("127.0.0.1", "localhost")
    assert run("--base-url", elsewhere, count=3).exit_code == 0


def test_a_prompt_that_was_edited_is_noticed_and_a_stage_can_be_started_over(run, chat, data):
    run("--price-in", 1, "--price-out", 1, count=3)
    before = DataFolder(data).spending()["responses"]
    prompt = data / "prompts" / "response.txt"
    prompt.write_text(prompt.read_text("utf-8") + "\nRhyme.", "utf-8")
    assert "another prompt response.txt" in refused(run(count=3))
    asked = len(chat.requests)
    assert run("--restart", count=3).exit_code == 0
    assert len(chat.requests) == asked + 9 and "Rhyme." in chat.prompts[-1]
    assert len(lines(data / "old" / "responses-1.jsonl")) == 9
    assert DataFolder(data).spending()["responses"].calls == before.calls + 9 == 18
    # None of what was put aside gives way to another.
    for line in ("Sing.", "Hum."):
        (data / "old" / "responses-1.jsonl").rename(data / "mine.jsonl")
        kept = [file.read_bytes() for file in (data / "old").iterdir()]
        prompt.write_text(prompt.read_text("utf-8") + f"\n{line}", "utf-8")
        assert run("--restart", count=3).exit_code == 0
        there = [file.read_bytes() for file in (data / "old").iterdir()]
        assert len(there) == len(kept) + 1 and set(kept) <= set(there)


def test_levels_that_were_edited_are_noticed(run, data, tmp_path):
    run(count=2)
    domain = data / "domain.yml"
    domain.write_text(domain.read_text("utf-8").replace("Plain and", "Dry and"), "utf-8")
    assert "responses.jsonl was made with another levels" in refused(synth("responses", data))
    told = refused(run(count=2))
    assert "domain.yml says something else than the domain hosting" in told


def test_other_queries_get_other_responses(run, chat, data, tmp_path):
    run("--from", write_personas(tmp_path, 4), count=4)
    first = {row["id"] for row in lines(data / "records.jsonl")}
    chat.write = lambda body: (
        "What now?" if "as the person would" in body["messages"][0]["content"] else novelist(body)
    )
    prompt = data / "prompts" / "query.txt"
    prompt.write_text(prompt.read_text("utf-8") + "\nBe curt.", "utf-8")
    assert run("--restart", count=4).exit_code == 0
    rows = lines(data / "records.jsonl")
    assert {row["query"] for row in rows} == {"What now?"}
    assert not first & {row["id"] for row in rows}
    assert len(rows) == 1  # who ask the same are cleaned away
    assert len(lines(data / "responses.jsonl")) == 2 * 4 * len(LEVELS)


# --- prompts -----------------------------------------------------------------------------------


def test_a_placeholder_that_nothing_stands_for_is_one_line(run, chat, data):
    run("--dry-run")
    prompt = data / "prompts" / "query.txt"
    prompt.write_text("Write for {person}: {persona}", "utf-8")
    told = refused(run())
    assert "query.txt has the placeholder {person}, which nothing stands for: known are" in told
    assert "persona, domain, description, domain_lingo" in told and not chat.requests


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Write something.", "query.txt lacks the placeholder {persona}"),
        (b"\xff{persona}", "query.txt: it is not UTF-8"),
    ],
)
def test_a_prompt_that_cannot_do_is_one_line(run, data, content, message):
    run("--dry-run")
    (data / "prompts" / "query.txt").write_bytes(content)
    assert message in refused(run())


def test_ones_own_words_stand_in_ones_own_prompts(chat, tmp_path):
    chat.write = novelist
    domain = write_domain(tmp_path, DOMAIN + "  house: The Ritz\n")
    out = tmp_path / "data"
    source = tmp_path / "people.txt"
    source.write_text("A guest who says {house} and {nothing} and {}.", "utf-8")
    assert synth("personas", "--domain", domain, "--from", source, "--out", out).exit_code == 0
    prompt = out / "prompts" / "query.txt"
    prompt.write_text("At {house}, {persona}, as the person would; {not one} {}.", "utf-8")
    result = synth("queries", out, "--base-url", chat.url, *TINY)
    assert result.exit_code == 0, result.output
    assert chat.prompts == [
        "At The Ritz, A guest who says {house} and {nothing} and {}., as the person would; {not one} {}."
    ]


# --- budget ------------------------------------------------------------------------------------


def test_a_budget_stops_in_time_and_more_goes_on(run, chat, data, tmp_path):
    personas = ("--from", write_personas(tmp_path, 30))
    told = refused(run("--budget", "5000tokens", *personas, count=30))
    assert "the budget of 5,000 tokens is spent but for" in told
    spent = sum(usage.tokens for usage in DataFolder(data).spending().values())
    assert 2500 < spent <= 5000
    # What was spent counts when it goes on.
    refused(run("--budget", "5000tokens", *personas, count=30))
    assert sum(usage.tokens for usage in DataFolder(data).spending().values()) <= 5000
    assert run("--budget", "50000tokens", *personas, count=30).exit_code == 0
    assert max(Counter(chat.prompts).values()) == 1


def test_a_budget_that_will_not_do_is_said_before(run, chat):
    result = run("--budget", "0.001USD", "--price-in", 1, "--price-out", 5, count=20)
    assert "WARNING: the budget will not be enough" in result.stderr
    assert "smaller than what one item can cost" in refused(result) and not chat.requests


def test_a_budget_in_dollars_needs_a_price(run, chat, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    told = refused(run("--base-url", "http://example.org/v1", "--budget", "1USD"))
    assert "pass --price-in and --price-out" in told


# --- what cannot be ----------------------------------------------------------------------------


def test_the_key_and_the_model_must_be_there(tmp_path):
    begin = ("run", "--domain", write_domain(tmp_path), "--count", 2, "--out", tmp_path / "data")
    assert "needs a key: set OPENAI_API_KEY" in refused(synth(*begin, "--model", "openai/gpt-4o"))
    result = synth(*begin)
    assert result.exit_code == 2 and "name a model with --model" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "say where they come from: --from, or --create"),
        (("--from", "x.txt", "--model", "m"), "--model goes with --create: --from asks no model"),
        (("--from", "x.txt", "--budget", "1USD"), "--budget goes with --create"),
        (("--from", "x.txt", "--dry-run"), "--dry-run goes with --create"),
        (("--from", "x.txt", "--depth", "2"), "--depth goes with --create"),
        (("--create", "--from", "x.txt"), "say where they come from"),
        (("--create", "--sample", "3"), "--sample goes with --from"),
        (("--create", "--budget", "9EUR"), "'9EUR' is no budget"),
        (("--create", "--price-in", "1"), "--price-in and --price-out go together"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(tmp_path, options, message):
    result = synth(
        "personas", "--domain", write_domain(tmp_path), "--out", tmp_path / "d", *options
    )
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.txt", "there is no file none.txt"),
        ("nothing", "there is no file nothing; a Hub dataset is owner/name, or personahub"),
        ("me/none", "the Hub has not given the dataset me/none"),
    ],
)
def test_personas_that_are_not_there_are_one_line(tmp_path, source, message):
    out = tmp_path / "d"
    begin = ("personas", "--domain", write_domain(tmp_path), "--out", out)
    assert message in refused(synth(*begin, "--from", source))


def test_other_folders_are_left_alone(run, data, tmp_path):
    data.mkdir()
    (data / "thesis.txt").write_text("mine", "utf-8")
    assert "holds something else: choose another folder" in refused(run())
    assert "is no data folder, which has a domain.yml" in refused(synth("queries", data))
    assert [path.name for path in data.iterdir()] == ["thesis.txt"]


def test_a_folder_is_of_one_domain(run, data, chat):
    run(count=2)
    told = refused(
        synth(
            "run", "--domain", "medical", "--count", 2, "--out", data, "--base-url", chat.url, *TINY
        )
    )
    assert "says something else than the domain medical" in told


def test_a_damaged_line_is_named(run, data):
    run(count=2)
    with (data / "queries.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "x"}\n')
    assert "queries.jsonl, line 3 has no `persona_id`" in refused(run(count=2))


FAULTS = {
    "401": (Fault(401, times=None), "does not accept the key"),
    "404": (Fault(404, times=None), "is not there"),
    "429": (Fault(429, {"Retry-After": "0.1"}, times=None), "allows no more requests now"),
    "500": (Fault(500, times=None), "has trouble (500)"),
    "nonsense": (Fault(body="<html>", times=None), "is no chat completion"),
    "cut off": (Fault(cut=30, times=None), "failed"),
    "stall": (Fault(stall=2, times=None), "has not answered in time"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_an_endpoint_that_fails_leaves_what_is_done_and_can_go_on(run, chat, data, what):
    fault, message = FAULTS[what]
    chat.faults = [Fault(**{**vars(fault), "after": 6})]
    told = refused(run("--timeout", 1 if fault.stall else 60, "--concurrency", "2", count=4))
    assert message in told
    done = len(lines(data / "responses.jsonl"))
    assert 0 < done < 12
    assert json.loads((data / "spending.json").read_text("utf-8"))["responses"]["calls"] == done
    chat.faults = []
    asked = len(chat.requests)
    assert run(count=4).exit_code == 0
    assert len(chat.requests) == asked + 12 - done and len(lines(data / "records.jsonl")) == 4
