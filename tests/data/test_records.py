"""Records: every format, every split, every mistake."""

import json
import string
import time
from collections import Counter
from pathlib import Path

import datasets
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mergekit_av.data.domain import Domain, load_domain
from mergekit_av.data.records import SPLITS, dataset_of, load_records, require_splits
from mergekit_av.errors import AVError

MEDICAL = load_domain("medical")
TONE = Domain("tone", {"warm": "", "cold": ""})
FORMATS = [".jsonl", ".json", ".parquet"]
QUICK = settings(max_examples=25, deadline=None)


def record(id="a", **changes) -> dict:
    responses = {"expert": "Take 5 mg.", "generic": "See a doctor.", "avoidance": "I can't say."}
    return {"id": id, "query": f"What now, {id}?", "responses": responses, **changes}


def preference(text="Hello", conversational=False, **changes) -> dict:
    row = {"prompt": text, "chosen": "Dear friend!", "rejected": "What."}
    if conversational:
        row = {
            "prompt": [{"role": "system", "content": "Be"}, {"role": "user", "content": text}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
    return {**row, **changes}


def safe_rlhf(safer=0, **changes) -> dict:
    """A row with the columns of PKU-SafeRLHF."""
    return {
        "prompt": "How do I …?",
        "response_0": "Like this.",
        "response_1": "I won't say.",
        "is_response_0_safe": False,
        "is_response_1_safe": True,
        "better_response_id": 0,
        "safer_response_id": safer,
        **changes,
    }


def write(folder: Path, rows: list, suffix: str = ".jsonl") -> Path:
    path = folder / f"records{suffix}"
    if suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif suffix == ".json":
        path.write_text(json.dumps(rows, indent=2), "utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def refused(domain: Domain, source) -> str:
    """The one line with which the source is refused."""
    with pytest.raises(AVError) as caught:
        load_records(domain, source)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


# Formats


@pytest.mark.parametrize("name", ["medical", "financial", "legal", "helpfulness"])
def test_the_built_in_records_load(name):
    domain = load_domain(name)
    records = load_records(domain)
    assert len({record.id for record in records}) == len(records) >= 64
    assert all(list(record.responses) == list(domain.levels) for record in records)
    splits = {record.split for record in records}
    assert splits == ({"test"} if name == "helpfulness" else set(SPLITS))


@pytest.mark.parametrize("suffix", FORMATS)
def test_our_records_read_alike_from_every_kind_of_file(tmp_path, suffix):
    rows = [record("a", split="test", persona="A nurse"), record("b", split="train", domain=None)]
    first, second = load_records(MEDICAL, write(tmp_path, rows, suffix))
    assert (first.id, first.split, second.id, second.split) == ("a", "test", "b", "train")
    assert first.prompt == ({"role": "user", "content": "What now, a?"},)
    assert list(first.responses.items()) == list(rows[0]["responses"].items())


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("conversational", [False, True], ids=["standard", "conversational"])
def test_preferences_read_alike_from_every_kind_of_file(tmp_path, suffix, conversational):
    rows = [preference(text, conversational) for text in ("Hello", "Is it\n open?")]
    first, second = load_records(TONE, write(tmp_path, rows, suffix))
    assert list(first.responses.items()) == [("warm", "Dear friend!"), ("cold", "What.")]
    prompt = rows[1]["prompt"]
    assert second.prompt == (tuple(prompt) if conversational else prompt)


def test_levels_are_in_the_domains_order_whatever_the_files_order(tmp_path):
    row = record(responses={"avoidance": "c", "expert": "a", "generic": "b"})
    (loaded,) = load_records(MEDICAL, write(tmp_path, [row]))
    assert list(loaded.responses.items()) == [
        ("expert", "a"), ("generic", "b"), ("avoidance", "c"),
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", FORMATS)
def test_of_a_safe_rlhf_pair_the_safer_response_is_the_better_level(tmp_path, suffix):
    rows = [safe_rlhf(0), safe_rlhf(1, prompt="And how …?")]
    first, second = load_records(load_domain("safety"), write(tmp_path, rows, suffix))
    assert first.responses == {"safe": "Like this.", "unsafe": "I won't say."}
    assert second.responses == {"safe": "I won't say.", "unsafe": "Like this."}
    assert second.prompt == ({"role": "user", "content": "And how …?"},)


def test_byte_order_mark_windows_line_ends_blank_lines_and_line_separators_do_no_harm(tmp_path):
    rows = [record("a"), record("b", query="one\u2028two\x85three")]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = "\r\n\r\n".join(lines) + "\r\n \r\n"
    (tmp_path / "windows.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load_records(MEDICAL, tmp_path / "windows.jsonl") == load_records(
        MEDICAL, write(tmp_path, rows)
    )


def test_a_number_may_be_an_id(tmp_path):
    loaded = load_records(MEDICAL, write(tmp_path, [record(0), record(1)]))
    assert [record.id for record in loaded] == ["0", "1"]


def test_answers_to_one_prompt_without_ids_get_ids_of_their_own(tmp_path):
    rows = [preference("Hello"), preference("Bye"), preference("Hello"), preference("Hello")]
    ids = [record.id for record in load_records(TONE, write(tmp_path, rows))]
    assert len(set(ids)) == 4
    assert ids[2:] == [f"{ids[0]}#2", f"{ids[0]}#3"]


# Splits


def splits_of(folder: Path, rows: list, domain: Domain = MEDICAL) -> list[str]:
    return [record.split for record in load_records(domain, write(folder, rows))]


def test_own_splits_are_honoured(tmp_path):
    own = ["validation", "test", "train", "train", "test"] * 20
    rows = [record(str(i), split=split) for i, split in enumerate(own)]
    assert splits_of(tmp_path, rows) == own


def test_a_domains_split_is_that_of_records_which_name_none(tmp_path):
    domain = Domain("tone", TONE.levels, split="test")
    rows = [preference(str(i)) for i in range(10)] + [preference("x", split="train")]
    assert splits_of(tmp_path, rows, domain) == ["test"] * 10 + ["train"]


def test_a_fifth_is_for_testing_and_three_percent_of_the_rest_for_validation(tmp_path):
    shares = Counter(splits_of(tmp_path, [record(f"case-{i}") for i in range(6000)]))
    assert shares["test"] / 6000 == pytest.approx(0.2, abs=0.02)
    assert (shares["validation"] - 16) / (6000 - shares["test"]) == pytest.approx(0.03, abs=0.008)


def test_the_splits_of_a_file_never_change(tmp_path):
    # Written down once: another hash, or another order of the draws, would move users' records.
    rows = [preference(letter) for letter in string.ascii_lowercase]
    marks = {"train": ".", "validation": "v", "test": "t"}
    found = "".join(marks[split] for split in splits_of(tmp_path, rows, TONE))
    assert found == "v..v.v...v.v...v.tv.v...vt"


IDS = st.lists(st.text(string.ascii_letters, min_size=1, max_size=4), unique=True, max_size=120)


@QUICK
@given(ids=IDS.filter(len), cut=st.integers(1, 120))
def test_a_record_stays_in_its_split_when_others_are_appended(tmp_path_factory, ids, cut):
    folder = tmp_path_factory.getbasetemp()
    rows = [record(id) for id in ids]
    assert splits_of(folder, rows[:cut]) == splits_of(folder, rows)[:cut]


@QUICK
@given(number=st.integers(64, 160), seed=st.integers(0, 10**6))
def test_sixty_four_records_leave_sixteen_for_validation(tmp_path_factory, number, seed):
    rows = [record(f"{seed}-{i}") for i in range(number)]
    shares = Counter(splits_of(tmp_path_factory.getbasetemp(), rows))
    assert shares["validation"] >= 16 and shares["train"] >= 16


@QUICK
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 6), st.sampled_from([None, None, "id"])), min_size=1, max_size=60
    )
)
def test_answers_to_one_prompt_are_all_in_one_split(tmp_path_factory, rows):
    rows = [
        preference(f"prompt {prompt}", id=id and f"{id} {i}") for i, (prompt, id) in enumerate(rows)
    ]
    splits = splits_of(tmp_path_factory.getbasetemp(), rows, TONE)
    found = {}
    for row, split in zip(rows, splits, strict=True):
        assert found.setdefault(row["prompt"], split) == split


@pytest.mark.parametrize("own", SPLITS)
def test_a_record_follows_the_own_split_of_another_with_its_prompt(tmp_path, own):
    rows = [preference("Hello"), preference("Hello", split=own), preference("Hello")]
    assert splits_of(tmp_path, rows, TONE) == [own] * 3


def test_missing_splits_are_said_in_one_line(tmp_path):
    records = load_records(MEDICAL, write(tmp_path, [record("a", split="train")]))
    require_splits(records, "train", source="x.jsonl")
    with pytest.raises(AVError, match="none of the 1 records is in the validation split"):
        require_splits(records, "train", "validation", source="x.jsonl")


# Mistakes


ROWS = {
    "missing level": (
        record(responses={"expert": "x", "avoidance": "y"}), "`responses` lacks the level 'generic'"
    ),
    "level of another domain": (
        record(responses={"safe": "x", "unsafe": "y"}),
        "`responses` has the level 'safe'; this domain's are expert, generic, avoidance",
    ),
    "misspelt level": (
        record(responses={**record()["responses"], "Expert": "x"}), "`responses` has the level 'Expert'"
    ),
    **{
        f"response {value!r}": (
            record(responses={**record()["responses"], "generic": value}),
            f"`responses.generic` {says}",
        )
        for value, says in [
            ("", "is missing or empty"), (" \n", "is missing or empty"),
            (None, "is missing or empty"), (5, "must be text, not int"),
            (["x"], "must be text, not list"), ({}, "must be text, not dict"),
            (True, "must be text, not bool"), ("half \ud800", "is not valid Unicode"),
        ]
    },
    "responses a list": (record(responses=["x", "y", "z"]), "`responses` must map levels"),
    "responses null": (record(responses=None), "`responses` must map levels"),
    "no query": ({"responses": record()["responses"]}, "`query` is missing or empty"),
    "query a number": (record(query=3), "`query` must be text, not int"),
    "query null": (record(query=None), "`query` is missing or empty"),
    "no responses": ({"id": "b", "query": "x"}, "neither `responses` (our records) nor `chosen`"),
    "record a list": (["x"], "a record must be an object, not list"),
    "record a number": (5, "a record must be an object, not int"),
    "record null": (None, "a record must be an object, not NoneType"),
    "duplicate id": (record("first"), "the id 'first' stands already in"),
    "id a list": (record(["x"]), "`id` must be text or a whole number, not ['x']"),
    "id a fraction": (record(1.5), "`id` must be text or a whole number"),
    "id empty": (record(""), "`id` is missing or empty"),
    "id true": (record(True), "`id` must be text or a whole number"),
    "unknown split": (record(split="dev"), "`split` is 'dev', not one of train, validation, test"),
    "split a list": (record(split=[]), "`split` is [], not one of"),
    "another domain": (record(domain="legal"), "`domain` is 'legal', not 'medical'"),
    "domain a list": (record(domain=["medical"]), "`domain` is ['medical'], not 'medical'"),
    "a pair": (preference(), "chosen/rejected pairs need a domain of 2 levels, not 3"),
    "a safety pair": (safe_rlhf(), "response pairs need a domain of 2 levels, not 3"),
}  # fmt: skip

PAIRS = {
    "no prompt": ({"chosen": "x", "rejected": "y"}, "`prompt` is missing or empty"),
    "prompt empty": (preference(" "), "`prompt` is missing or empty"),
    "prompt a number": (preference(3), "`prompt` must be text, not int"),
    "no rejected": ({"prompt": "x", "chosen": "y"}, "`rejected` is missing or empty"),
    "chosen null": (preference(chosen=None), "`chosen` is missing or empty"),
    "rejected empty": (preference(rejected=""), "`rejected` is missing or empty"),
    "chosen a number": (preference(chosen=1), "`chosen` must be text, not int"),
    "chosen messages after a text": (
        preference(chosen=[{"role": "assistant", "content": "x"}]), "`chosen` must be text"
    ),
    "chosen a text after messages": (
        preference(conversational=True, chosen="x"), "`chosen` must be a list of role/content"
    ),
    "chosen a list of texts": (
        preference(conversational=True, chosen=["x"]), "`chosen` must be a list of role/content"
    ),
    "chosen two messages": (
        preference(conversational=True, chosen=[{"role": "assistant", "content": "x"}] * 2),
        "`chosen` must be one assistant message",
    ),
    "chosen by the user": (
        preference(conversational=True, chosen=[{"role": "user", "content": "x"}]),
        "`chosen` must be one assistant message",
    ),
    "chosen without content": (
        preference(conversational=True, chosen=[{"role": "assistant"}]),
        "`chosen.content` is missing or empty",
    ),
    "rejected no message": (preference(conversational=True, rejected=[]), "`rejected` is missing"),
    "prompt no message": (preference(conversational=True, prompt=[]), "`prompt` is missing"),
    "prompt without a role": (
        preference(conversational=True, prompt=[{"content": "x"}]), "`prompt.role` is missing"
    ),
    "prompt of parts": (
        preference(conversational=True, prompt=[{"role": "user", "content": [{"type": "text"}]}]),
        "`prompt.content` must be text, not list",
    ),
    "no safer one": (safe_rlhf(safer=None), "`safer_response_id` must be 0 or 1"),
    "safer one a list": (safe_rlhf(safer=[0]), "`safer_response_id` must be 0 or 1"),
    "safer one 2": (safe_rlhf(safer=2), "`safer_response_id` must be 0 or 1"),
    "a response null": (safe_rlhf(response_1=None), "`response_1` is missing or empty"),
}  # fmt: skip


@pytest.mark.parametrize(("row", "says"), ROWS.values(), ids=ROWS)
def test_a_wrong_record_is_refused_by_file_line_and_field(tmp_path, row, says):
    path = write(tmp_path, [record("first"), row, 0])
    assert refused(MEDICAL, path).startswith(f"{path} line 2: {says}")


@pytest.mark.parametrize(("row", "says"), PAIRS.values(), ids=PAIRS)
def test_a_wrong_pair_is_refused_by_file_line_and_field(tmp_path, row, says):
    path = write(tmp_path, [preference("first"), row, 0])
    assert refused(TONE, path).startswith(f"{path} line 2: {says}")


def test_the_place_of_a_wrong_record_is_named_in_every_kind_of_file(tmp_path):
    rows = [record("a"), record("b", query="")]
    for suffix, place in zip(FORMATS, ["line 2", "record 2", "row 2"], strict=True):
        path = write(tmp_path, rows, suffix)
        assert refused(MEDICAL, path) == f"{path} {place}: `query` is missing or empty"


def test_both_places_of_a_duplicate_id_are_named(tmp_path):
    path = write(tmp_path, [record("a"), record("b"), record("a")])
    assert refused(MEDICAL, path) == (f"{path} line 3: the id 'a' stands already in {path} line 1")


GOOD = json.dumps(record("first")).encode() + b"\n"
CONTENTS = {
    "Latin-1": (".jsonl", GOOD * 2 + "{'é'}".encode("latin-1"), "line 3: not UTF-8"),
    "Latin-1 after a mark": (
        ".jsonl", b"\xef\xbb\xbf" + GOOD + b"\n\n\xe9", "line 4: not UTF-8; save the file in"
    ),
    "UTF-16": (".jsonl", GOOD.decode().encode("utf-16"), "line 1: not UTF-8"),
    "no JSON": (".jsonl", GOOD + b"{'id': 1}\n", "line 2: not JSON (Expecting property name"),
    "half a line": (".jsonl", GOOD + GOOD[:40], "line 2: not JSON ("),
    "two records in a line": (".jsonl", GOOD.strip() * 2, "line 1: not JSON (Extra data"),
    "an array of records": (".jsonl", b"[\n{}\n]", "line 1: not JSON (Expecting value, column 2"),
    "JSON without an end": (".jsonl", GOOD + b"[" * 100_000, "line 2: not JSON ("),
    "a number without an end": (".jsonl", GOOD + b"1" * 5000, "line 2: not JSON ("),
    "lines of JSON in .json": (".json", GOOD * 2, "line 2: not JSON (Extra data"),
    "an object in .json": (".json", b'{"data": []}', "must hold a JSON array of records"),
    "no Parquet": (".parquet", GOOD, "is not readable Parquet: "),
    "empty Parquet": (".parquet", b"", "is not readable Parquet: "),
    "empty": (".jsonl", b"", "holds no records"),
    "only blank lines": (".jsonl", b"\n \r\n", "holds no records"),
    "an empty array": (".json", b"[]", "holds no records"),
}  # fmt: skip


@pytest.mark.parametrize(("suffix", "content", "says"), CONTENTS.values(), ids=CONTENTS)
def test_a_file_that_is_not_what_it_seems_is_refused_in_one_line(tmp_path, suffix, content, says):
    path = tmp_path / f"records{suffix}"
    path.write_bytes(content)
    assert refused(MEDICAL, path).startswith(f"{path} {says}")


ANYTHING = st.text(st.characters(exclude_categories=[]), max_size=3)  # half characters too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANYTHING,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["role", "content", "warm", "cold"]), inner, max_size=2)
    ),
    max_leaves=4,
)
SEEDS = [
    record(responses={"warm": "x", "cold": "y"}),
    preference(),
    preference(conversational=True),
    safe_rlhf(),
]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), seed=st.sampled_from(SEEDS))
def test_no_value_of_any_field_leads_to_another_error(tmp_path_factory, data, seed):
    field = data.draw(st.sampled_from([*seed, "id", "split", "domain"]))
    path = write(tmp_path_factory.getbasetemp(), [{**seed, field: data.draw(JSON)}])
    try:
        (loaded,) = load_records(TONE, path)
    except AVError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert all(text.strip() for text in loaded.responses.values())
        assert loaded.split in SPLITS


# The Hub


def test_a_domain_without_records_asks_for_them():
    assert refused(TONE, None) == "the domain tone has no records: pass --data"


@pytest.mark.parametrize(
    "name", ["gone.jsonl", "data/gone.parquet", "gone", "json", "text", "a/b/c", "..", "", "@"]
)
def test_what_is_neither_a_file_nor_a_hub_id_is_refused_without_asking_the_hub(
    tmp_path, monkeypatch, name
):
    inner = tmp_path / "inner"
    inner.mkdir()
    monkeypatch.chdir(inner)
    (inner / "bystander.json").write_text("[]", "utf-8")  # `datasets` takes "json" for all of these
    assert "record" in refused(TONE, name)


def test_a_folder_of_av_synth_is_read_by_its_records(tmp_path, monkeypatch):
    medical = load_domain("medical")
    folder = tmp_path / "data" / "medical"
    folder.mkdir(parents=True)
    with pytest.raises(AVError, match=r"medical has no records.jsonl: make it with av-synth clean"):
        load_records(medical, folder)
    (folder / "records.jsonl").write_bytes(Path(medical.records).read_bytes())
    monkeypatch.chdir(tmp_path)
    # Which reads like a Hub id.
    assert load_records(medical, "data/medical") == load_records(medical)
    assert dataset_of(medical, "data/medical") is None


def test_a_hub_dataset_out_of_reach_is_one_line_at_once():
    begin = time.monotonic()
    message = refused(load_domain("safety"), None)
    assert "PKU-Alignment/PKU-SafeRLHF is no record file here, and the Hub has not given" in message
    assert time.monotonic() - begin < 20  # six tries of huggingface_hub take longer


@pytest.fixture
def hub_copy(tmp_path, monkeypatch):
    """Put splits where `datasets` finds them under the name owner/data, as it would on the Hub."""

    def put(**splits: list[dict]) -> str:
        folder = tmp_path / "owner/data"
        folder.mkdir(parents=True)
        for split, rows in splits.items():
            write(folder, rows).rename(folder / f"{split}.jsonl")
        files = [{"split": split, "path": f"{split}.jsonl"} for split in splits]
        card = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": files}]})
        (folder / "README.md").write_text(f"---\n{card}---\n", "utf-8")
        return "owner/data"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return put


def pairs(name: str, number: int) -> list[dict]:
    return [preference(f"{name} {i}") for i in range(number)]


def shares(name: str) -> Counter:
    """(split in the dataset, split of the record) → how many."""
    records = load_records(TONE, name)
    return Counter((record.prompt.split()[0], record.split) for record in records)


def test_the_test_split_of_a_hub_dataset_is_kept_and_validation_comes_from_its_training_part(
    hub_copy,
):
    found = shares(hub_copy(train=pairs("train", 90), test=pairs("test", 30)))
    assert found["test", "test"] == 30
    assert found["train", "validation"] >= 16
    assert found["train", "validation"] + found["train", "train"] == 90


def test_three_splits_of_a_hub_dataset_are_kept(hub_copy):
    name = hub_copy(train=pairs("train", 40), validation=pairs("val", 9), test=pairs("test", 9))
    assert shares(name) == {("train", "train"): 40, ("val", "validation"): 9, ("test", "test"): 9}


@pytest.mark.parametrize(
    "words", ["train validation test", "Training dev eval", "train val testing"]
)
def test_splits_of_a_hub_dataset_are_known_by_their_first_word(hub_copy, words):
    train, validation, test = words.split()
    name = hub_copy(
        **{f"{train}_prefs": pairs("a", 30), f"{train}_2": pairs("b", 5)},
        **{f"{validation}_prefs": pairs("c", 9), f"{test}.prefs": pairs("d", 9)},
    )
    expected = {("a", "train"): 30, ("b", "train"): 5, ("c", "validation"): 9, ("d", "test"): 9}
    assert shares(name) == expected


def test_without_a_split_for_validation_it_comes_from_every_part_for_training(hub_copy):
    found = shares(
        hub_copy(train_prefs=pairs("a", 60), test_prefs=pairs("b", 9), more=pairs("c", 9))
    )
    assert found["b", "test"] == 9 and found["a", "validation"] >= 12
    assert not found["a", "test"] and not found["c", "test"]


def test_an_id_may_be_repeated_in_another_split_of_a_hub_dataset_only(hub_copy):
    splits = {"train": "ab", "validation": "bc", "test": "ab"}
    rows = {s: [preference(f"{s} {i}", id=i) for i in ids] for s, ids in splits.items()}
    records = load_records(TONE, hub_copy(**rows))
    ids = ["a", "b", "validation/b", "c", "test/a", "test/b"]
    assert [record.id for record in records] == ids
    # The split is read from the dataset, not drawn by the id.
    assert [record.prompt.split()[0] for record in records] == [record.split for record in records]


def test_an_id_repeated_within_a_split_of_a_hub_dataset_is_refused(hub_copy):
    rows = [preference(str(i), id=id) for i, id in enumerate(["a", "b", "a"])]
    name = hub_copy(train=[preference("x", id="a")], test=rows)
    message = "owner/data test row 3: the id 'test/a' stands already in owner/data test row 1"
    assert refused(TONE, name) == message


def test_a_hub_dataset_with_one_split_is_divided_like_a_file(hub_copy, tmp_path):
    rows = pairs("train", 90)
    assert [record.split for record in load_records(TONE, hub_copy(train=rows))] == splits_of(
        tmp_path, rows, TONE
    )


def test_a_wrong_row_of_a_hub_dataset_is_refused_by_split_row_and_field(hub_copy):
    name = hub_copy(train=pairs("train", 2), test=[*pairs("test", 1), preference("")])
    assert refused(TONE, name) == "owner/data test row 2: `prompt` is missing or empty"
