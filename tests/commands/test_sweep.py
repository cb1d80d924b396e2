"""av-sweep as a user meets it: what it prints where, what it writes, how it stops and goes on."""

import csv
import json
import os
import re
import shutil
import signal
from pathlib import Path
from xml.etree import ElementTree

import processes
import pytest
from matplotlib import image
from meddling import meddle
from pausing import start_and_pause
from sweeping import few, in_process, row, rows, sweep, train, write_rows
from tiny import make_model, make_tokenizer, perturb

from mergekit_av import AVError
from mergekit_av.evaluation.accuracy import evaluate
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.io.fingerprint import fingerprint
from mergekit_av.io.locks import locked
from mergekit_av.models.load import load_model, load_tokenizer
from mergekit_av.runtime.knobs import Knobs
from mergekit_av.vectors.extraction import extract
from mergekit_av.vectors.vector import AlignmentVector

FILES = {"evaluations.jsonl", "report.md", "sweep.csv", "sweep.json", "sweep.png", "sweep.svg"}


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory) -> Path:
    """A medical vector that does what it should. Read only."""
    return train(base, tmp_path_factory.mktemp("trained") / "medical")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "few.jsonl", rows())


@pytest.fixture
def options(base, vectors, data, tmp_path) -> list:
    """What a short sweep of one vector needs."""
    return [
        "--base", base, "--av", vectors["medical"], "--data", f"medical={data}",
        "--max-new-tokens", 4, "--generate", 2, "--out", tmp_path / "out",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(base, trained, data, tmp_path_factory):
    """A whole run: the result and its folder. Read only."""
    folder = tmp_path_factory.mktemp("whole")
    vector = shutil.copytree(trained, folder / "medical")
    result = sweep(
        "--base", base, "--av", vector, "--domain", "medical", "--domain", "helpfulness",
        "--data", f"medical={data}", "--max-records", 4, "--generate", 2, "--max-new-tokens", 6,
        "--lambda", "-1:1:0.5", "--out", folder / "out", "--write-card",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return result, folder


def refused(*arguments, code: int = 1) -> str:
    """The one line on stderr with which the command ends; it prints nothing else."""
    result = sweep(*arguments)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit) and result.stdout == ""
    *before, last = result.stderr.splitlines()
    assert last.startswith("Error: ") and not any("Error" in line for line in before)
    return last


def keys(out: Path) -> list[str]:
    """Of what the store holds evaluations."""
    lines = (out / "evaluations.jsonl").read_text("utf-8").splitlines()
    return [json.dumps(json.loads(line)["key"], sort_keys=True) for line in lines]


def tables(markdown: str) -> list[list[dict[str, str]]]:
    """Every table of a Markdown text, as rows."""
    found, lines = [], markdown.splitlines()
    for start, line in enumerate(lines):
        if re.fullmatch(r"\|( --- \|)+", line):
            end = next(
                (i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines)
            )
            head, *rest = (
                [c.strip() for c in re.split(r"(?<!\\)\|", text)[1:-1]]
                for text in lines[start - 1 : end]
            )
            assert all(len(cells) == len(head) for cells in rest)
            found.append([dict(zip(head, cells, strict=True)) for cells in rest[1:]])
    return found


# What it writes


def test_it_prints_results_on_stdout_and_progress_on_stderr(whole):
    result, folder = whole
    lines = result.stdout.splitlines()
    assert re.match(r"medical: usable range λ from -?[\d.]+ to [\d.]+$", lines[0])
    assert any(line.startswith("  expert: λ ") and "test accuracy" in line for line in lines)
    assert lines[-2] == f"  written to {folder / 'medical'}"
    out = folder / "out"
    assert lines[-1] == (
        f"Report: {out / 'report.md'}   Figure: {out / 'sweep.png'}   Numbers: {out / 'sweep.csv'}"
    )
    assert "Sweeping medical: 100%" in result.stderr and "Asking in words" in result.stderr
    assert not {"Sweeping", "Asking"} & set(re.findall(r"\w+", result.stdout))
    assert {file.name for file in out.iterdir()} == FILES


def test_the_numbers_are_av_evals_own(whole, base, data):
    _, folder = whole
    content = list(csv.DictReader((folder / "out" / "sweep.csv").open(encoding="utf-8")))
    domain, records = few(folder)
    expected = evaluate(load_model(base), load_tokenizer(base), domain, records, progress=False)
    for level, share in expected.accuracy.items():
        [line] = [
            line
            for line in content
            if (line["vector"], line["lambda"], line["domain"], line["split"], line["level"])
            == ("medical", "0.0", "medical", "test", level)
        ]
        mean = expected.mean_log_prob[level]
        numbers = [share.value, share.low, share.high, mean.value, mean.low, mean.high]
        assert [float(cell) for cell in list(line.values())[8:]] == numbers
        assert (line["usable"], line["prompt"], line["records"]) == ("True", "", "4")


def test_the_csv_is_tidy(whole):
    _, folder = whole
    content = list(csv.DictReader((folder / "out" / "sweep.csv").open(encoding="utf-8")))
    swept = [line for line in content if line["vector"]]
    # 5 λ: medical test and validation of 3 levels, helpfulness of 2.
    assert len(swept) == 5 * (3 + 3 + 2) and len(content) == len(swept) + 3 * 3
    cells = ("vector", "lambda", "prompt", "domain", "split", "level")
    assert len({tuple(line[cell] for cell in cells) for line in content}) == len(content)
    assert {line["prompt"] for line in content if not line["vector"]} == {
        "expert", "generic", "avoidance",
    }  # fmt: skip
    assert {line["lambda"] for line in swept} == {"-1.0", "-0.5", "0.0", "0.5", "1.0"}
    for line in content:
        low, value, high = (float(line[f"accuracy{end}"]) for end in ("_low", "", "_high"))
        assert 0 <= low <= value <= high <= 1
        low, value, high = (float(line[f"mean_log_prob{end}"]) for end in ("_low", "", "_high"))
        assert low <= value <= high < 0


def test_the_json_holds_everything(whole, base):
    _, folder = whole
    content = json.loads((folder / "out" / "sweep.json").read_text("utf-8"))
    assert content["base fingerprint"] == fingerprint(Checkpoint(base))
    assert content["dtype"] == "float32" and content["records"]["medical validation"] == "4"
    [found] = content["sweeps"]
    assert [point["lambda"] for point in found["points"]] == [-1, -0.5, 0, 0.5, 1]
    low, high = found["usable_range"]
    assert low <= 0 <= high
    assert list(found["queries"].values()) == ["What helps against t0?", "What helps against t1?"]
    for point in found["points"]:
        assert list(point["answers"]) == ["t0", "t1"]
        assert set(point["fluency"]) == {"held_out", "repeated", "unended"}
        assert [(r["domain"], r["split"]) for r in point["results"]] == [
            ("medical", "test"), ("helpfulness", "test"), ("medical", "validation"),
        ]  # fmt: skip
    assert [entry["prompt"] for entry in content["prompting"]] == [
        None, "expert", "generic", "avoidance",
    ]  # fmt: skip
    assert all(entry["cost"]["first_token"] > 0 for entry in content["prompting"])


def test_the_report_says_what_the_csv_says(whole):
    _, folder = whole
    report = (folder / "out" / "report.md").read_text("utf-8")
    content = list(csv.DictReader((folder / "out" / "sweep.csv").open(encoding="utf-8")))
    found = json.loads((folder / "out" / "sweep.json").read_text("utf-8"))["sweeps"][0]

    def share(value: float, level: str, prompt: str = "", domain: str = "medical") -> float:
        [line] = [
            line
            for line in content
            if (float(line["lambda"]), line["level"], line["prompt"]) == (value, level, prompt)
            and (line["domain"], line["split"]) == (domain, "test")
        ]
        return float(line["accuracy"])

    def shown(cell: str) -> float:
        return float(cell.replace("*", "").split(" ")[0])

    facts, own, other, moves, change, every, *answers = tables(report)
    assert facts[0][""] == str(
        found and json.loads((folder / "out" / "sweep.json").read_text("utf-8"))["base"]
    )
    titles = [line[""] for line in own]
    assert titles[:4] == ["default", *(f"prompting, {level}" for level in found["best"])]
    assert [title for title in titles[4:] if "usable" not in title] == [
        f"AV, {level}" for level in found["best"]
    ]
    for line in own:
        kind, _, level = line[""].partition(", ")
        prompt = level if kind == "prompting" else ""
        for name in found["best"]:
            assert shown(line[name]) == pytest.approx(
                share(float(line["λ"]), name, prompt), abs=0.005
            )
        if kind == "AV" and "usable" not in level:
            assert float(line["λ"]) == found["best"][level]["lambda"]
        helpful = line["helpfulness: helpful"]
        assert (helpful == "") == (kind == "prompting")
        if helpful:
            expected = share(float(line["λ"]), "helpful", domain="helpfulness")
            assert shown(helpful) == pytest.approx(expected, abs=0.005)
    prompt_tokens = {line[""]: int(line["prompt tokens"]) for line in own}
    assert (
        prompt_tokens["default"] == prompt_tokens["AV, expert"] < prompt_tokens["prompting, expert"]
    )
    assert all(line["first token"].endswith(" ms") for line in own)

    for line in other:
        first = shown(line["helpfulness helpful / unhelpful"].split(" / ")[0])
        assert first == pytest.approx(
            share(float(line["λ"]), "helpful", "", "helpfulness"), abs=0.005
        )
    check_moves(moves, found, shown)
    card = (folder / "medical/README.md").read_text("utf-8")
    for entry in found["specificity"]:
        spill = entry["spill"]
        moved = f"{spill['value']:.2f} ({spill['low']:.2f}–{spill['high']:.2f})"
        assert f"At λ {entry['lambda']:g} it moves helpfulness by {moved} of what" in card
    assert [line["domain"] for line in change] == ["medical", "helpfulness"]
    assert [line["λ"] for line in every] == ["-1", "-0.5", "0", "0.5", "1"]
    low, high = found["usable_range"]
    assert f"**Usable range: λ from {low:g} to {high:g}.**" in report
    assert [line["usable"] for line in every] == [
        "yes" if low <= float(line["λ"]) <= high else "no" for line in every
    ]
    assert len(answers) == 2 and "**t0**: What helps against t0?" in report
    assert all(line["answer"] for table in answers for line in table)


def check_moves(moves, found, shown):
    """What a unit of λ moves, counted again from the scores of single records."""
    *effects, spills = moves
    scores = {
        (point["lambda"], result["domain"]): result["scores"]
        for point in found["points"]
        for result in point["results"]
        if result["split"] == "test"
    }
    ends = [value for value in found["usable_range"] if value]
    assert ends and [entry["lambda"] for entry in found["specificity"]] == ends
    largest = {value: {"medical": 0.0, "helpfulness": 0.0} for value in ends}
    for line in effects:
        domain, (level, other) = line["domain"].strip("*"), line[""].split(" over ")
        assert (domain == "medical") == line["domain"].startswith("**")
        for value in ends:
            after, before = scores[value, domain], scores[0, domain]
            gains = [
                after[id][level] - after[id][other] - before[id][level] + before[id][other]
                for id in before
            ]
            expected = sum(gains) / len(gains) / value
            assert shown(line[f"λ {value:g}"]) == pytest.approx(expected, abs=0.006)
            largest[value][domain] = max(largest[value][domain], abs(expected))
    for value, entry in zip(ends, found["specificity"], strict=True):
        expected = largest[value]["helpfulness"] / largest[value]["medical"]
        assert entry["spill"]["value"] == pytest.approx(expected, rel=1e-3)
        assert shown(spills[f"λ {value:g}"]) == pytest.approx(expected, abs=0.006)


def test_the_figures_are_pictures(whole):
    _, folder = whole
    picture = image.imread(folder / "out" / "sweep.png")
    assert picture.shape[0] > 300 and picture.shape[1] > 600 and picture[..., :3].std() > 0.05
    tree = ElementTree.parse(folder / "out" / "sweep.svg")
    assert tree.getroot().tag.endswith("svg") and len(list(tree.iter())) > 100


def test_the_card_makes_levels_settings(whole, base):
    _, folder = whole
    vector = AlignmentVector.open(folder / "medical")
    vector.check()
    calibration = vector.metadata.calibration
    found = json.loads((folder / "out" / "sweep.json").read_text("utf-8"))["sweeps"][0]
    assert calibration["levels"]["expert"]["lambda"] == found["best_usable"]["expert"]["lambda"]
    assert calibration["records"] == {"test": 4, "validation": 4}
    assert calibration["lambdas"] == [-1, -0.5, 0, 0.5, 1]
    assert calibration["decoding"] == "greedy"

    knobs = Knobs(load_model(base), medical=vector)
    knobs.set(medical="expert")
    expert = knobs.lambdas["medical"]
    knobs.set(medical="avoidance")
    assert knobs.lambdas["medical"] < expert
    domain, records = few(folder)
    with knobs.at(medical="expert") as model:
        result = evaluate(model, load_tokenizer(base), domain, records, progress=False)
    assert result.dominant == "expert"
    share = calibration["levels"]["expert"]["test"]["value"]
    assert result.accuracy["expert"].value == pytest.approx(share)
    with pytest.raises(AVError, match=r"no λ in the usable range of 'medical' makes 'generic'"):
        knobs.set(medical="generic")

    card = (folder / "medical" / "README.md").read_text("utf-8")
    assert "## Which λ does what" in card
    assert re.search(rf"\| expert \| {expert:g} \| 1.00 \| {share:.2f} \(", card)
    assert "| generic (not dominant) |" in card
    figure = (folder / "out" / "sweep.png").read_bytes()
    assert (folder / "medical" / "sweep.png").read_bytes() == figure and "(sweep.png)" in card


# Other ways to call it


def test_several_vectors_and_domains(base, vectors, data, tmp_path):
    result = sweep(
        "--base", base, "--lambda", "-1,1", "--max-records", 3, "--out", tmp_path / "out",
        "--max-new-tokens", 4, "--generate", 1, "--no-prompting",
        *(option for path in vectors.values() for option in ("--av", path)),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert [line for line in result.stdout.splitlines() if "usable range" in line][0:3:2]
    report = json.loads((tmp_path / "out" / "sweep.json").read_text("utf-8"))
    assert [entry["vector"] for entry in report["sweeps"]] == ["medical", "financial", "legal"]
    assert [entry["domain"] for entry in report["sweeps"]] == ["medical", "financial", "legal"]
    assert report["prompting"] == []
    for entry in report["sweeps"]:
        assert all(found["spill"]["value"] > 0 for found in entry["specificity"])
    # λ = 0: 3 test sets, 3 validation sets, 3 sets of answers; else each vector for itself.
    assert len(keys(tmp_path / "out")) == 9 + 3 * 2 * 5
    text = (tmp_path / "out" / "report.md").read_text("utf-8")
    assert (
        text.count("### In other domains") == 3 and "prompting" not in text.split("## medical")[1]
    )


def test_without_answers_the_usable_range_is_unknown(options, tmp_path):
    result = sweep(*options, "--lambda", "0.5", "--generate", 0, "--no-prompting")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("medical: usable range not measured\n")
    out = tmp_path / "out"
    assert "Usable range: not measured (`--generate 0`)" in (out / "report.md").read_text("utf-8")
    assert "### Answers" not in (out / "report.md").read_text("utf-8")
    found = json.loads((out / "sweep.json").read_text("utf-8"))["sweeps"][0]
    assert found["usable_range"] is None and found["best_usable"] == {}
    content = list(csv.DictReader((out / "sweep.csv").open(encoding="utf-8")))
    assert {line["usable"] for line in content} == {""} and len(content) == 2 * 6


def test_answers_written_otherwise_are_answers_of_their_own(options, tmp_path):
    run = [*options, "--no-prompting", "--lambda=1"]
    sampled = [*run, "--gen-kwargs", "do_sample=true,temperature=1.5"]
    reports = []
    for arguments in (run, sampled, run):
        assert sweep(*arguments).exit_code == 0
        reports.append((tmp_path / "out/report.md").read_text("utf-8"))
    greedy, drawn, again = (report.partition("### Answers")[2] for report in reports)
    assert "Greedy; …" in greedy and greedy == again
    assert "Do_sample=True, temperature=1.5, seed=0; …" in drawn and drawn != greedy
    assert sum("max_new_tokens" in key for key in keys(tmp_path / "out")) == 4
    assert "temperature=1.5" in reports[1].partition("### Answers")[0]


def test_a_domain_of_ones_own_with_other_levels(base, vectors, tmp_path):
    content = [
        {"id": str(i), "split": split, "query": f"Hi {i}", "responses": {"a|b": "Yes | no.", "_*": "No\n\n# No"}}
        for i, split in enumerate(["test"] * 3 + ["validation"] * 2)
    ]  # fmt: skip
    write_rows(tmp_path / "tone.jsonl", content)
    domain = tmp_path / "tone.yml"
    domain.write_text('name: tone\nlevels: ["a|b", "_*"]\nrecords: tone.jsonl\n', "utf-8")
    result = sweep(
        "--base", base, "--av", f"tone={vectors['legal']}", "--domain", domain, "--lambda", "1",
        "--generate", 1, "--max-new-tokens", 3, "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "sweep.json").read_text("utf-8"))
    assert set(found["sweeps"][0]["best"]) == {"a|b", "_*"} and found["prompting"] == []
    _, own, *_ = tables((tmp_path / "out" / "report.md").read_text("utf-8"))
    assert "a\\|b" in own[0] and "prompt tokens" not in own[0]


def test_two_levels_and_no_domain_of_its_own(base, vectors, tmp_path):
    result = sweep(
        "--base", base, "--av", f"tone={vectors['legal']}", "--domain", "helpfulness",
        "--lambda", "-1,1", "--max-records", 3, "--generate", 1, "--max-new-tokens", 3,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "sweep.json").read_text("utf-8"))["sweeps"][0]
    assert found["domain"] is None and found["best"] is None
    text = (tmp_path / "out" / "report.md").read_text("utf-8")
    assert "### In other domains" in text and "### In its own domain" not in text
    # A two-level domain may be a vector's own, here without validation records.
    result = sweep(
        "--base", base, "--av", f"helpfulness={vectors['legal']}", "--lambda", "1",
        "--max-records", 3, "--generate", 0, "--out", tmp_path / "own",
    )  # fmt: skip
    assert result.exit_code == 0, result.output


def test_a_base_without_a_chat_template(tmp_path, data):
    base = make_model(tmp_path / "base")
    make_tokenizer(base, None)
    vector = extract(base, perturb(base, tmp_path / "aligned"), tmp_path / "medical").folder
    result = sweep(
        "--base", base, "--av", vector, "--data", f"medical={data}", "--lambda", "1",
        "--generate", 1, "--max-new-tokens", 3, "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"{base}: no chat template" in result.stderr and "template" not in result.stdout


def test_a_path_may_hold_an_equals_sign(options, vectors, tmp_path):
    folder = shutil.copytree(vectors["medical"], tmp_path / "lr=1" / "av")
    options[3] = folder
    assert sweep(*options, "--lambda", "1", "--no-prompting").exit_code == 0
    options[3] = f"medical={folder}"
    assert sweep(*options, "--lambda", "1", "--no-prompting").exit_code == 0


def test_another_base_only_where_the_transfer_is_meant(options, tmp_path):
    other = make_model(tmp_path / "other", seed=9)
    make_tokenizer(other)
    options[1] = other
    message = refused(*options, "--lambda", "1")
    assert "is a vector of" in message and "not its weights" in message
    assert not (tmp_path / "out").exists()
    result = sweep(*options, "--lambda", "1", "--transfer")
    assert result.exit_code == 0, result.output
    assert "| transfer | yes |" in (tmp_path / "out" / "report.md").read_text("utf-8")
    message = refused(*options, "--lambda", "1", "--transfer", "--write-card")
    assert "λ would be measured on another base than its own" in message


# What it refuses


def test_wrong_usage_ends_with_2(options):
    message = refused(*options, "--lambda", "1:-1", code=2)
    assert message == "Error: the λ range 1:-1 is reversed: write -1:1:0.1"
    assert "λ must be like" in refused(*options, "--lambda", "", code=2)
    assert "take a larger step" in refused(*options, "--lambda", "-1e9:1e9", "--yes", code=2)
    assert "--data must be DOMAIN=SOURCE" in refused(*options, "--data", "x.jsonl", code=2)
    assert "not among the domains" in refused(*options, "--data", "legal=x.jsonl", code=2)
    assert "'medical' twice" in refused(*options, "--data", "medical=x.jsonl", code=2)
    twice = ["--domain", "medical", "--domain", "medical"]
    assert "the same name" in refused(*options, *twice, code=2)
    assert "two vectors are called 'medical'" in refused(*options, *options[2:4], code=2)
    assert "Missing option '--av'" in refused("--out", "x", code=2)


def test_what_cannot_be_is_one_line_before_the_model_is_read(options, vectors, tmp_path):
    assert "no domain 'dental'" in refused(*options, "--domain", "dental")
    only = write_rows(tmp_path / "only.jsonl", [row("a", "validation")])
    options[5] = f"medical={only}"
    assert "none of the 1 records is in the test split" in refused(*options)
    options[3] = f"tone={vectors['medical']}"
    options[4:6] = []
    assert "none of the vectors (tone) has the name of a built-in domain" in refused(*options)
    options[3] = options[1]
    assert "is no alignment vector" in refused(*options)
    assert not (tmp_path / "out").exists()


def test_no_record_fits_the_context(tmp_path, data):
    base = make_model(tmp_path / "base", context=16)
    make_tokenizer(base)
    vector = extract(base, perturb(base, tmp_path / "aligned"), tmp_path / "medical").folder
    options = ["--base", base, "--av", vector, "--data", f"medical={data}", "--lambda", "1"]
    message = refused(*options, "--out", tmp_path / "out")
    assert message == "Error: medical: none of the 4 records fits the context of 16 tokens"


def test_a_card_that_could_not_be_written_is_refused_before_the_work(
    options, base, vectors, tmp_path, monkeypatch
):
    no_validation = write_rows(tmp_path / "tests.jsonl", [row("a"), row("b")])
    known = [*options[:5], f"medical={no_validation}", *options[6:]]
    message = refused(*known, "--write-card")
    assert "nothing to write for 'medical': no validation records" in message
    # As a Hub download: a snapshot in the cache, whose files are links to blobs.
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--test--mergekit-av" / "snapshots" / "0"
    options[3] = shutil.copytree(vectors["medical"], snapshot)
    assert "it is in the Hub's cache; download it" in refused(*options, "--write-card")


def test_many_evaluations_are_asked_about(options, aligned, tmp_path):
    options[1] = aligned  # no base of the vector: refused as soon as the question is over
    many = [*options, "--lambda", "0:20:0.1"]
    for answer in ("n\n", ""):
        result = sweep(*many, input=answer)
        assert result.exit_code == 1 and result.stdout == ""
        assert "201 λ of 1 vectors make 603 evaluations" in result.stderr
        assert "Go on? [y/N]" in result.stderr and result.stderr.endswith("Aborted!\n")
    result = sweep(*many, input="y\n")
    assert "Go on?" in result.stderr and "not its weights" in result.stderr
    for few_enough in (["--yes"], ["--generate", 0]):
        result = sweep(*many, *few_enough)
        assert "Go on?" not in result.stderr and "not its weights" in result.stderr
    assert not (tmp_path / "out").exists()


# How it stops and goes on


@pytest.fixture
def long(options) -> list:
    """A sweep of 42 evaluations."""
    return [*options, "--lambda", "-5:5:0.5", "--generate", 0, "--no-prompting"]


def start(folder: Path, options: list, lines: int):
    """Start the command in a process of its own, which waits when so many evaluations are kept."""
    store = folder / "out" / "evaluations.jsonl"
    return start_and_pause(in_process, folder, store, lines, *options)


def end(process, number: int) -> processes.Ended:
    os.kill(process.pid, number)
    return processes.finish(process)


def files(out: Path) -> set[str]:
    return {file.name for file in out.iterdir()}


def test_killed_it_goes_on_without_repeating(long, tmp_path):
    out = tmp_path / "out"
    process = start(tmp_path, long, 20)
    # It is at work: nobody else writes there.
    assert "is in use by another process" in refused(*long)
    assert end(process, signal.SIGKILL).code == -signal.SIGKILL
    before = (out / "evaluations.jsonl").read_bytes()
    before = before[: before.rfind(b"\n") + 1]
    count = before.count(b"\n")
    assert 20 <= count < 42 and files(out) == {"evaluations.jsonl"}

    result = sweep(*long)
    assert result.exit_code == 0, result.output
    assert f"{count}/42" in result.stderr
    assert (out / "evaluations.jsonl").read_bytes().startswith(before)
    assert len(keys(out)) == len(set(keys(out))) == 42 and files(out) == FILES


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_keeps_a_report_and_says_where(long, tmp_path, number):
    out = tmp_path / "out"
    ended = end(start(tmp_path, long, 20), number)
    assert ended.code == 128 + number and ended.out == "" and ended.error == "Interrupted"
    found = re.search(r"Stopped after (\d+) of 21 points\. (.*)", ended.err)
    assert found[2] == (
        f"What was measured is kept in {out}, and the report so far is {out / 'report.md'}; the "
        "same command goes on from there"
    )
    points = json.loads((out / "sweep.json").read_text("utf-8"))["sweeps"][0]["points"]
    assert 9 <= len(points) == int(found[1]) < 21
    lambdas = [point["lambda"] for point in points]
    assert lambdas == sorted(lambdas) and 0 in lambdas and max(map(abs, lambdas)) < 5
    assert files(out) == FILES

    assert sweep(*long).exit_code == 0
    assert len(keys(out)) == len(set(keys(out))) == 42
    assert len(json.loads((out / "sweep.json").read_text("utf-8"))["sweeps"][0]["points"]) == 21


def test_interrupted_before_the_first_point_there_is_no_report(options, tmp_path):
    one = [*options, "--lambda", "1", "--generate", 0, "--no-prompting"]
    ended = end(start(tmp_path, one, 1), signal.SIGINT)
    assert ended.code == 130 and ended.error == "Interrupted"
    out = tmp_path / "out"
    assert f"Stopped after 0 of 2 points. What was measured is kept in {out}; the" in ended.err
    assert files(out) == {"evaluations.jsonl"} and len(keys(out)) == 1


def test_a_full_disk_in_the_middle_is_one_line_and_it_goes_on_later(long, tmp_path):
    out = tmp_path / "out"
    process = processes.start(in_process, tmp_path, *long, largest_file=8_000)
    ended = processes.finish(process)
    assert ended.code == 1 and ended.out == ""
    assert ended.error == f"Error: could not write {out / 'evaluations.jsonl'}: File too large"
    said = re.search(
        r"Stopped after (\d+) of 21 points\. What was measured is kept in (.*)", ended.err
    )
    assert said and "the report so far" not in said[2]
    before = keys(out)
    assert 5 < len(before) < 40 and not list(out.glob(".*"))
    result = sweep(*long)
    assert result.exit_code == 0, result.output
    assert keys(out)[: len(before)] == before and len(keys(out)) == len(set(keys(out))) == 42


def write_cards_meddled(there: str, come: str, moved: str, *options: str) -> None:
    """The vector gives way to another before its card is written."""

    def swap() -> None:
        os.rename(there, moved)
        os.rename(come, there)

    meddle(r"sweep\.csv", swap)
    in_process(*options)


def test_a_card_is_written_only_to_the_vector_that_was_measured(
    base, trained, vectors, data, tmp_path
):
    there, other = tmp_path / "medical", shutil.copytree(vectors["medical"], tmp_path / "other")
    shutil.copytree(trained, there)
    before = {file.name: file.read_bytes() for file in other.iterdir()}
    options = [
        "--base", base, "--av", there, "--data", f"medical={data}", "--lambda", 1, "--generate", 0,
        "--no-prompting", "--out", tmp_path / "out", "--write-card",
    ]  # fmt: skip
    with locked(there):
        ended = processes.finish(processes.start(in_process, tmp_path, *options))
        assert ended.error.startswith(f"Error: {there} is in use by another process: wait for it")
    arguments = [there, other, tmp_path / "moved", *options]
    process = processes.start(write_cards_meddled, tmp_path, *map(str, arguments))
    ended = processes.finish(process)
    assert ended.code == 1 and "is not the vector any more that was measured" in ended.error
    assert {file.name: file.read_bytes() for file in there.iterdir()} == before
    assert files(tmp_path / "out") == FILES


def test_somebodys_own_report_stays(options, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/report.md").write_text("# Of my own", "utf-8")
    assert "report.md is somebody's own" in refused(*options)
    assert files(tmp_path / "out") == {"report.md"}
