"""av-synth clean: what is dropped at which step, what is written, and what stays."""

import importlib.util
import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
from chat_server import Answer, ChatServer
from synthesizing import DOMAIN, TINY, lines, synth, write_domain

from mergekit_av.data.domain import load_domain
from mergekit_av.data.records import load_records

GUEST = (
    "I am guest number {} and travel with two old dogs, a tall hat, my aunt from Lisbon and her "
    "telescope. We would arrive on the fourth of May, late, and leave on Sunday. Is there room {}?"
)
OTHER = (
    "My choir of {} singers, most of them from the mountains, wants to practise in your hall every "
    "evening of that week. Would the neighbours mind {}?"
)
GERMAN = (
    "Kommen Sie gern zu uns, wir freuen uns sehr auf Ihren Besuch und haben noch ein Zimmer frei."
)
QUERIES = [
    GUEST.format(0, "for us"),
    OTHER.format(1, "much"),
    "May the cat of our neighbour stay in the room as well while we are out at the theatre?",
    "Does breakfast, with the eggs that my husband likes so well, cost us anything on a Monday?",
    "Where in the town can we leave a car that is nearly as long as a bus, and at what price?",
    GUEST.format(0, "for us").upper().replace(",", " ,"),
    GUEST.format(6, "for us"),
    "Who will open the door for us if our train comes in after midnight, as it always does?",
    "When is the library open, and may a child of three read in it with her grandfather?",
    Answer("How far is it from the station to", finish_reason="length"),
    "Could somebody wake us at five in the morning, with tea, since we want to see the cranes?",
    "What does the house think of trumpets, played softly, between lunch and the afternoon nap?",
]  # fmt: skip
# Of the queries' personas: what is wrong with a response at a level.
SPOILT = {
    1: ("warm", Answer("Do come, and bring the whole", finish_reason="length")),
    2: ("warm", "Do come, and bring the whole"),
    3: ("neutral", "There are two ways:\n\n- by train\n- on foot."),
    4: ("cold", "I'm sorry, but I cannot help with that request. Ask the town hall."),
    7: ("warm", GERMAN),
    8: ("neutral", Answer(None, finish_reason="content_filter")),
}
# Of 0, 5 and 6, which ask the same, whoever comes first stays.
STEPS = {
    "incomplete": {8},
    "cut off": {1, 2, 9},
    "form": {3},
    "refusal": {4},
    "duplicate": {0, 5},
    "near-duplicate": {0, 5, 6},
    "language": {7},
}
CLEAN = {10, 11}


def flawed(body: dict) -> "str | Answer":
    """A model that makes each mistake once."""
    asked = body["messages"][-1]["content"]
    if "as the person would" in asked:
        return QUERIES[int(re.search(r"A guest with (\d+) suitcases", asked)[1])]
    texts = [query if isinstance(query, str) else query.text for query in QUERIES]
    number = next(i for i, text in enumerate(texts) if asked.endswith(text))
    level = next(l for l, s in load_domain_levels().items() if s in asked)  # noqa: E741
    where, what = SPOILT.get(number, (None, None))
    return what if where == level else f"You, of number {number}, hear something {level} from us."


def load_domain_levels() -> dict[str, str]:
    return dict(re.findall(r"^  (warm|neutral|cold): (.*\.)$", DOMAIN.split("prompts")[0], re.M))


@pytest.fixture(scope="module")
def made_once(tmp_path_factory) -> Path:
    """What a flawed model made: twelve queries with three responses each."""
    here = tmp_path_factory.mktemp("made")
    people, folder = here / "people.txt", here / "data"
    people.write_text(
        "".join(f"A guest with {i} suitcases.\n" for i in range(len(QUERIES))), "utf-8"
    )
    domain = write_domain(here)
    with ChatServer() as chat:
        chat.write = flawed
        for command in (
            ("personas", "--domain", domain, "--from", people, "--sample", 12, "--out", folder),
            ("queries", folder, "--base-url", chat.url, *TINY),
            ("responses", folder, "--base-url", chat.url, *TINY),
        ):
            result = synth(*command)
            assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def made(made_once, tmp_path) -> Path:
    """The same, for one test."""
    return Path(shutil.copytree(made_once, tmp_path / "data"))


def clean(folder: Path, *options: object) -> dict:
    """The numbers that a cleaning reports."""
    result = synth("clean", folder, *options)
    assert result.exit_code == 0, result.output
    numbers = json.loads((folder / "cleaning.json").read_text("utf-8"))
    last = f"{numbers['kept']:,} of {numbers['read']:,} records kept: {folder / 'cleaning.md'}"
    assert result.stdout.splitlines()[-1] == last
    return numbers


def refused(*arguments: object, code: int = 1) -> str:
    result = synth(*arguments)
    assert result.exit_code == code and isinstance(result.exception, SystemExit), result.output
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ") and result.stdout == ""
    return last


def persona(row: dict) -> int:
    return int(re.search(r"\d+", row["persona"])[0])


def test_each_mistake_is_found_by_its_step_and_nothing_is_lost(made):
    journals = {file.name: file.read_bytes() for file in made.glob("*.jsonl")}
    numbers = clean(made)
    assert (numbers["read"], numbers["kept"]) == (12, 3)
    assert numbers["dropped"] == {**dict.fromkeys(STEPS, 1), "cut off": 3}
    dropped = {}
    for line in lines(made / "dropped.jsonl"):
        dropped.setdefault(line["step"], []).append(persona(line["row"]))
    assert dropped.keys() == STEPS.keys()
    assert all(set(found) <= STEPS[step] for step, found in dropped.items())
    records = lines(made / "records.jsonl")
    assert len(set(map(persona, records)) - CLEAN) == 1
    assert {*map(persona, records), *itertools.chain(*dropped.values())} == set(range(12))
    assert all("finish_reasons" not in row and row["provenance"] for row in records)
    assert {name: (made / name).read_bytes() for name in journals} == journals


def test_a_reason_says_what_is_wrong_and_where(made):
    clean(made)
    reasons = {persona(line["row"]): line["reason"] for line in lines(made / "dropped.jsonl")}
    ids = [row["id"] for row in lines(made / "records.jsonl") if persona(row) not in CLEAN]
    assert reasons[8] == "no response at the level 'neutral'"
    assert reasons[1] == reasons[2] == "warm: ends with 'Do come, and bring the whole'"
    assert reasons[9].startswith("query: ends with ")
    assert reasons[3] == "neutral: has a list"
    assert reasons[4] == "cold: refuses"
    same = f"asks the same as {ids[0]}"
    nearly = rf"asks nearly the same as {ids[0]} \(similarity 0\.\d+\)"
    asked = [reasons[i] for i in (0, 5, 6) if i in reasons]
    assert len(asked) == 2 and same in asked
    assert any(re.fullmatch(nearly, reason) for reason in asked)
    assert reasons[7] == "warm: in German"


def test_the_report_and_the_card_say_what_was_dropped(made):
    clean(made)
    report = (made / "cleaning.md").read_text("utf-8")
    assert report.startswith("# Cleaning of hosting\n") and "3 of 12 records are clean" in report
    assert "| cut off | 3 |" in report and "| near-duplicate | 1 |" in report
    assert "Kruskal–Wallis" in report and "Friedman" in report
    card = (made / "README.md").read_text("utf-8")
    assert "## Cleaning" in card and "| cut off | 3 |" in card
    assert len(load_records(load_domain(made / "domain.yml"), made)) == 3


def test_rules_can_be_others(made):
    assert clean(made, "--similarity", 0.9)["dropped"]["near-duplicate"] == 0
    assert len(lines(made / "records.jsonl")) == 4
    numbers = clean(made, "--refusals", "cold")
    assert numbers["dropped"]["refusal"] == 0 and numbers["refusal_levels"] == ["cold"]
    assert numbers["refusing"]["cold"] == 0.25
    message = refused("clean", made, "--language", "de")
    assert message.startswith(
        "Error: none of the 12 records is clean; most were dropped as language:"
    )
    # What was written before is still there.
    assert len(lines(made / "records.jsonl")) == 4


def test_again_it_finds_the_same(made):
    first = clean(made)
    written = {file.name: file.read_bytes() for file in made.iterdir() if file.is_file()}
    assert clean(made) == first
    assert {file.name: file.read_bytes() for file in made.iterdir() if file.is_file()} == written


@pytest.mark.parametrize("name", ["medical", "helpfulness"])
def test_the_built_in_records_come_out_clean(name, tmp_path):
    out = tmp_path / name
    numbers = clean(out, "--domain", name)
    assert numbers["kept"] == numbers["read"] and not any(numbers["dropped"].values())
    domain = load_domain(out / "domain.yml")
    assert load_records(domain) == load_records(load_domain(name))
    if name == "medical":
        assert numbers["refusal_levels"] == ["avoidance"]
        # A finding, not a wish: the experts among the built-in records are wordier.
        assert (
            numbers["lengths"]["kruskal_wallis"]["p"] < 0.001 and numbers["lengths"]["rho"] < -0.4
        )


def test_lengths_are_balanced_on_request(tmp_path):
    numbers = clean(tmp_path / "data", "--domain", "medical", "--balance-lengths")
    before, after = numbers["lengths"], numbers["lengths_balanced"]
    assert before["friedman"]["p"] < 0.001 and before["records"] == 90
    assert after["friedman"]["p"] > 0.3 and after["kruskal_wallis"]["p"] > 0.3
    assert 0.25 * 90 < after["records"] == numbers["kept"] == 90 - numbers["dropped"]["length"]
    dropped = lines(tmp_path / "data" / "dropped.jsonl")
    assert {line["step"] for line in dropped} == {"length"} and len(dropped) == 90 - numbers["kept"]


def row(number: int, **changes) -> dict:
    responses = {"warm": "Do come.", "neutral": "There is room.", "cold": "Come if you must."}
    return {
        "id": f"r{number}",
        "query": QUERIES[(0, 2, 3, 4, 7)[number]],
        "responses": responses,
        **changes,
    }


def test_records_of_a_file_are_cleaned_as_they_are(tmp_path, write_jsonl):
    domain = write_domain(tmp_path)
    rows = [
        row(0, split="test", note="kept"), row(1, responses={"warm": "Do come."}),
        row(2, responses={**row(2)["responses"], "hot": "Yes."}), row(3, id=None), ["no record"],
    ]  # fmt: skip
    data = write_jsonl(rows)
    before = data.read_bytes()
    numbers = clean(tmp_path / "out", "--domain", domain, "--data", data)
    assert numbers["dropped"]["incomplete"] == 3
    assert lines(tmp_path / "out/records.jsonl") == [rows[0], rows[3]]
    dropped = lines(tmp_path / "out/dropped.jsonl")
    assert [line["reason"] for line in dropped] == [
        "`responses` lacks the level 'neutral'",
        "`responses` has the level 'hot'; this domain's are warm, neutral, cold",
        "a record must be an object, not list",
    ]
    assert dropped[2]["id"] == f"{data} line 5" and data.read_bytes() == before


def test_what_cannot_be_cleaned_is_one_line(tmp_path, write_jsonl, made):
    domain, data = write_domain(tmp_path), write_jsonl([row(0)])
    assert "--data goes with --domain" in refused("clean", made, "--data", data, code=2)
    assert "'--similarity'" in refused("clean", made, "--similarity", 0, code=2)
    assert "has no level 'hot'; there are warm, neutral, cold" in refused(
        "clean", made, "--refusals", "hot"
    )
    assert "no language 'english' is known: pass a code of ISO 639-1" in refused(
        "clean", made, "--language", "english"
    )
    assert "is no data folder" in refused("clean", tmp_path / "none")
    out = tmp_path / "out"
    for source, says in (
        (tmp_path / "none.jsonl", "there is no record file"),
        (
            write_jsonl([row(0, responses={})], "bad.jsonl"),
            "none of the 1 records is clean; most were",
        ),
    ):
        assert says in refused("clean", out, "--domain", domain, "--data", source)
    assert "is on the Hub: download it" in refused("clean", out, "--domain", "safety")
    own = refused("clean", made, "--domain", made / "domain.yml", "--data", data)
    assert "has responses of its own: choose another folder" in own
    clean(out, "--domain", domain, "--data", data)
    again = refused("clean", out, "--domain", domain, "--data", out / "records.jsonl")
    assert "would be written over: choose another folder" in again
    few = write_jsonl(
        [row(i, responses={"warm": "Do " * 9 + "come.", "neutral": "Do come.", "cold": "No."}) for i in range(5)],
        "few.jsonl",
    )  # fmt: skip
    unbalanced = refused(
        "clean", tmp_path / "few", "--domain", domain, "--data", few, "--balance-lengths"
    )
    assert "the lengths follow the level in too many of the 5 records to balance them" in unbalanced
    assert not (tmp_path / "few" / "records.jsonl").exists()


def test_a_folder_without_queries_has_nothing_to_clean(made):
    (made / "queries.jsonl").unlink()
    assert "has no queries yet: make them with av-synth queries" in refused("clean", made)


def test_a_library_that_is_not_installed_is_named_before_anything_is_paid(
    made, chat, tmp_path, monkeypatch
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "lingua" else find(name, *more),
    )
    run = ("run", "--domain", write_domain(tmp_path), "--count", 3, "--base-url", chat.url)
    for arguments in (["clean", made], [*run, "--model", "tiny", "--out", tmp_path / "new"]):
        told = refused(*arguments)
        assert told == "Error: to clean records, lingua is needed: pip install 'mergekit-av[synth]'"
    assert not chat.requests and not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["records.jsonl", "README.md"])
def test_what_somebody_wrote_by_hand_is_not_written_over(made, name):
    file = made / name
    file.write_text("by hand", "utf-8")
    before = {path: path.read_bytes() for path in made.iterdir() if path.is_file()}
    assert f"{name} was not written by av-synth: move it away" in refused("clean", made)
    assert before == {path: path.read_bytes() for path in made.iterdir() if path.is_file()}
    file.unlink()
    clean(made)
    clean(made)  # what it wrote itself it writes again
