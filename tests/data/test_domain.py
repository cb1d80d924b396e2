"""Domains: the built-in ones load, one's own are a YAML file, each mistake is one line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mergekit_av.data.domain import built_in_domains, load_domain
from mergekit_av.data.records import load_records
from mergekit_av.errors import AVError


def write_domain(folder: Path, text: str | bytes) -> Path:
    path = folder / "tone.yml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_the_built_in_domains_are_these():
    assert built_in_domains() == ["financial", "helpfulness", "legal", "medical", "safety"]


@pytest.mark.parametrize("name", ["medical", "financial", "legal"])
def test_the_three_domains_go_from_expert_to_avoidance_and_ship_their_records(name):
    domain = load_domain(name)
    assert domain.name == name
    assert list(domain.levels) == ["expert", "generic", "avoidance"]
    assert all(domain.levels.values()) and domain.description
    assert Path(domain.records).is_file() and ".." not in domain.records


def test_safety_and_helpfulness_have_two_levels_the_better_one_first():
    safety, helpfulness = load_domain("safety"), load_domain("helpfulness")
    assert list(safety.levels) == ["safe", "unsafe"]
    assert safety.records == "PKU-Alignment/PKU-SafeRLHF"
    assert list(helpfulness.levels) == ["helpful", "unhelpful"]
    assert Path(helpfulness.records).is_file()


@pytest.mark.parametrize(
    ("levels", "texts"),
    [
        ("{warm: kind, neutral: plain, cold: curt}", ["kind", "plain", "curt"]),
        ("[warm, neutral, cold]", ["", "", ""]),
        ("{warm: kind, neutral: , cold: curt}", ["kind", "", "curt"]),
    ],
    ids=["mapping", "list", "a level without a sentence"],
)
def test_levels_of_ones_own_domain_keep_their_order(tmp_path, levels, texts):
    domain = load_domain(write_domain(tmp_path, f"name: tone\nlevels: {levels}\n"))
    assert list(domain.levels.items()) == list(zip(["warm", "neutral", "cold"], texts, strict=True))
    assert (domain.description, domain.records, domain.split) == ("", None, None)


def test_a_level_has_its_sentence_and_its_paraphrases_each_once(tmp_path):
    domain = load_domain(
        write_domain(
            tmp_path,
            "name: tone\nlevels: {warm: kind, cold: }\n"
            "paraphrases: {cold: [curt, cold, short], warm: [kind]}\n",
        )
    )
    assert domain.wordings("warm") == ["kind"]
    assert domain.wordings("cold") == ["cold", "curt", "short"]


@pytest.mark.parametrize("name", built_in_domains())
def test_the_levels_of_the_built_in_domains_have_three_wordings(name):
    domain = load_domain(name)
    wordings = [wording for level in domain.levels for wording in domain.wordings(level)]
    assert len(set(wordings)) == 3 * len(domain.levels)


def test_a_domain_may_have_five_levels_and_records_beside_its_file(
    tmp_path, write_jsonl, monkeypatch
):
    levels = ["a", "b", "c", "d", "e"]
    rows = [
        {"id": str(i), "query": f"question {i}", "responses": {level: level for level in levels}}
        for i in range(5)
    ]
    write_jsonl(rows, "mine.jsonl")
    path = write_domain(tmp_path, "name: tone\nlevels: [a, b, c, d, e]\nrecords: mine.jsonl\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for spelling in (path, str(path), "../tone.yml"):
        records = load_records(load_domain(spelling))
        assert [list(record.responses) for record in records] == [levels] * 5


@pytest.mark.parametrize("records", ["../data/mine.jsonl", "mine.json", "mine.parquet", "mine.txt"])
def test_a_record_file_is_sought_beside_the_domain_file(tmp_path, records):
    here = tmp_path / "domains"
    here.mkdir()
    (here / "mine.txt").touch()  # a name with no known ending is a file where there is one
    domain = load_domain(
        write_domain(here, f"name: tone\nlevels: [a, b]\nrecords: {records}\nsplit: test\n")
    )
    assert Path(domain.records) == (here / records).resolve()
    assert domain.split == "test"


def test_a_hub_id_stays_a_hub_id(tmp_path):
    path = write_domain(tmp_path, "name: tone\nlevels: [a, b]\nrecords: owner/data@v1\n")
    assert load_domain(path).records == "owner/data@v1"


@pytest.mark.parametrize("name", ["medical", "helpfulness", "safety"])
def test_a_domain_written_to_a_file_says_the_same(tmp_path, name):
    domain = load_domain(name)
    again = load_domain(write_domain(tmp_path, domain.to_yaml("records.jsonl")))
    assert again == replace(domain, records=str(tmp_path / "records.jsonl"))
    assert list(again.levels) == list(domain.levels)


MISTAKES = {
    "not YAML": ("levels: [a, b", "not readable YAML"),
    "an impossible date": ("name: 2024-13-45", "not readable YAML"),
    "Latin-1": ("name: caf\xe9".encode("latin-1"), "not readable YAML"),
    "no mapping": ("- name: tone", "must hold a mapping"),
    "empty": ("", "must hold a mapping"),
    "unknown key": ("name: tone\nlevel: [a, b]", "unknown key 'level'"),
    "unknown keys of two types": ("1: x\nfoo: y\nname: tone", "unknown key 1"),
    "no levels": ("name: tone", "`levels` must name at least two"),
    "one level": ("name: tone\nlevels: [a]", "`levels` must name at least two"),
    "levels are text": ("name: tone\nlevels: warm", "`levels` must name at least two"),
    "level twice": ("name: tone\nlevels: [a, b, a]", "twice under `levels`"),
    "unquoted yes and no": ("name: tone\nlevels: [yes, no]", "level True is no name; put quotes"),
    "unquoted keys": ("name: tone\nlevels: {yes: good, no: bad}", "level True is no name"),
    "a number": ("name: tone\nlevels: {1: good, 2: bad}", "level 1 is no name"),
    "level null": ("name: tone\nlevels: [a, ~]", "level None is no name"),
    "level blank": ("name: tone\nlevels: [a, ' ']", "level ' ' is no name"),
    "level a list": ("name: tone\nlevels: [a, [b]]", "level ['b'] is no name"),
    "sentence a list": ("name: tone\nlevels: {a: [x], b: y}", "'a' must have a sentence"),
    "no name": ("levels: [a, b]", "`name` must be"),
    "name a list": ("name: [tone]\nlevels: [a, b]", "`name` must be text"),
    "name a path": ("name: ../tone\nlevels: [a, b]", "`name` must be"),
    "records a list": ("name: tone\nlevels: [a, b]\nrecords: [x.jsonl]", "`records` must be text"),
    "description a number": ("name: tone\nlevels: [a, b]\ndescription: 3", "`description` must be"),
    "words a list": ("name: tone\nlevels: [a, b]\nwords: [x]", "`words` must map placeholders"),
    "word no name": ("name: tone\nlevels: [a, b]\nwords: {my word: x}", "'my word', which is no"),
    "word a number": ("name: tone\nlevels: [a, b]\nwords: {x: 3}", "'x' must be text, not 3"),
    "paraphrases a list": ("name: t\nlevels: [a, b]\nparaphrases: [x]", "`paraphrases` must map"),
    "paraphrases of no level": (
        "name: t\nlevels: [a, b]\nparaphrases: {c: [x]}",
        "`paraphrases` has the level 'c'; there are a, b",
    ),
    "one paraphrase": (
        "name: t\nlevels: [a, b]\nparaphrases: {a: x}",
        "paraphrases of 'a' must be a list of sentences, not 'x'",
    ),
    "paraphrase blank": (
        "name: t\nlevels: [a, b]\nparaphrases: {a: [x, ' ']}",
        "paraphrases of 'a' must be a list",
    ),
    "nested without end": ("name: " + "[" * 5000, "nested too deeply"),
    "aliases of aliases": (
        "levels: &a [x, x, x, x, x, x, x, x, x]\n"
        + "\n".join(
            f"k{i}: &a{i} [{', '.join(['*a' + (str(i - 1) if i else '')] * 9)}]" for i in range(9)
        ),
        "stands for more than 1,000,000 values",
    ),
    "an alias of itself": ("name: tone\nlevels: &a [*a, *a]", "stands for more than"),
    "a NUL": ('name: "to\\0ne"\nlevels: [a, b]', "which is no text"),
    "half a character": ('name: "to\\ud800ne"\nlevels: [a, b]', "which is no text"),
    "a sentence of megabytes": (
        f"name: tone\nlevels: {{a: [{'x' * 10**6}], b: y}}",
        "must have a sent",
    ),
    "unknown split": ("name: tone\nlevels: [a, b]\nsplit: tset", "`split` is 'tset', not one of"),
}


@pytest.mark.parametrize(("text", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_a_domain_file_is_one_line_that_names_the_file(tmp_path, text, says):
    path = write_domain(tmp_path, text)
    with pytest.raises(AVError) as caught:
        load_domain(path)
    message = str(caught.value)
    assert says in message and str(path) in message and "\n" not in message


def test_a_domain_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(AVError, match=r"no domain 'dental': built in are financial, .*safety"):
        load_domain("dental")
    with pytest.raises(AVError, match=r"no domain '../domains/medical'"):
        load_domain("../domains/medical")
    with pytest.raises(AVError, match=r"domain file .*gone.yml: No such file"):
        load_domain(tmp_path / "gone.yml")
    (tmp_path / "folder.yml").mkdir()
    with pytest.raises(AVError, match=r"domain file .*folder.yml: Is a directory"):
        load_domain(tmp_path / "folder.yml")


def test_the_records_of_one_domain_are_refused_in_another(tmp_path):
    other = load_domain(
        write_domain(tmp_path, "name: dental\nlevels: [expert, generic, avoidance]\n")
    )
    medical = load_domain("medical").records
    with pytest.raises(AVError, match="line 1: `domain` is 'medical', not 'dental'"):
        load_records(other, medical)
    row = json.loads(Path(medical).read_text("utf-8").splitlines()[0])
    del row["domain"]
    (tmp_path / "one.jsonl").write_text(json.dumps(row), "utf-8")
    assert load_records(other, tmp_path / "one.jsonl")[0].split == "train"
