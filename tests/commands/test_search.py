"""av-search as a user meets it: what it finds, writes and prints, how it stops and goes on."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import processes
import pytest
import yaml
from matplotlib import image
from merging import run as run_mergekit
from pausing import start_and_pause
from searching import QUERIES, RESPONSES, in_process, read, search, short_rows
from sweeping import sweep, train, write_rows

from mergekit_av.data.domain import load_domain
from mergekit_av.data.records import load_records
from mergekit_av.evaluation.accuracy import evaluate
from mergekit_av.evaluation.rendering import as_json
from mergekit_av.evaluation.search.problem import combinations
from mergekit_av.models.load import load_model, load_tokenizer
from mergekit_av.vectors.extraction import extract

WANTED = ("--want", "medical=expert", "--want", "legal=avoidance")


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory) -> dict[str, Path]:
    """A medical and a legal vector that do what they should. Read only."""
    folder = tmp_path_factory.mktemp("trained")
    return {
        name: train(base, folder / name, name, RESPONSES[name], f"{QUERIES[name]} about?")
        for name in QUERIES
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    return {
        name: write_rows(folder / f"{name}.jsonl", short_rows(name, test=5)) for name in QUERIES
    }


@pytest.fixture(scope="module")
def given(base, trained, data) -> list:
    """Base, vectors and records, and a guard that takes no time."""
    return [
        "--base", base, "--av", trained["medical"], "--av", trained["legal"],
        "--data", f"medical={data['medical']}", "--data", f"legal={data['legal']}",
        "--generate", 1, "--max-new-tokens", 2,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def found(given, tmp_path_factory):
    """A whole run for one goal: the result and its folder. Read only."""
    folder = tmp_path_factory.mktemp("found")
    result = search(*given, *WANTED, "--out", folder / "mine.yml", "--runs", folder / "runs")
    assert result.exit_code == 0, result.output
    return result, folder


@pytest.fixture(scope="module")
def every(given, tmp_path_factory):
    """A whole run over all combinations. Read only."""
    folder = tmp_path_factory.mktemp("every")
    result = search(*given, "--all", "--tolerance", "inf", "--out", folder / "out")
    assert result.exit_code == 0, result.output
    return result, folder / "out"


def keys(runs: Path) -> list[dict]:
    lines = (runs / "evaluations.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["key"] for line in lines]


def same(one: dict, other: dict) -> bool:
    """Whether two reports say the same, but for how and how fast it was found."""
    drop = {"command", "seconds", "workers", "interrupted"}
    return {k: v for k, v in one.items() if k not in drop} == {
        k: v for k, v in other.items() if k not in drop
    }


def refused(*arguments, code: int = 1) -> str:
    """The one line on stderr with which the command ends; it prints nothing else."""
    result = search(*arguments)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit) and result.stdout == ""
    *before, last = result.stderr.splitlines()
    assert last.startswith("Error: ") and not any("Error" in line for line in before)
    return last


# What it finds


def test_the_recipe_merges_into_what_was_measured(found, base, data):
    _, folder = found
    content = yaml.safe_load((folder / "mine.yml").read_text("utf-8"))
    merged = folder / "merged"
    assert run_mergekit(content, merged).exit_code == 0
    [outcome] = read(folder / "runs", "mine")["outcomes"]
    model, tokenizer = load_model(merged, dtype="auto"), load_tokenizer(base)
    for name, level in outcome["goal"].items():
        domain = load_domain(name)
        records = load_records(domain, data[name])
        result = evaluate(model, tokenizer, domain, records, progress=False)
        assert as_json(result) == outcome["tests"][name]
        assert result.dominant == level and outcome["holds"]


def test_the_comments_of_the_recipe_say_what_was_measured(found):
    _, folder = found
    text = (folder / "mine.yml").read_text("utf-8")
    assert text.startswith("# wanted: medical=expert legal=avoidance\n")
    [outcome] = read(folder / "runs", "mine")["outcomes"]
    for domain, result in outcome["tests"].items():
        [line] = [line for line in text.splitlines() if line.startswith(f"# {domain}, 5 test")]
        for level, share in result["accuracy"].items():
            assert f"{level} {share['value']:.2f} ({share['low']:.2f}" in line
    assert f"worst margin: {outcome['margin']:+.2f} of the validation records" in text
    assert f"{outcome['test_margin']:+.2f} of the test records" in text
    assert "NOT" not in text and "language: holds" in text


def test_it_chooses_on_validation_records_and_tests_only_what_it_chose(found):
    _, folder = found
    report = read(folder / "runs", "mine")
    measured = keys(folder / "runs")
    [outcome] = report["outcomes"]
    chosen = sorted(value for value in outcome["lambdas"].values() if value)
    for key in measured:
        if key["split"] == "test" and key["vectors"]:
            assert sorted(value for _, value in key["vectors"]) == chosen
    assert len({str(k["vectors"]) for k in measured if k["split"] == "validation"}) == len(
        report["settings"]
    )
    best = max(
        (
            min(s["margins"][f"{d} {level}"] for d, level in outcome["goal"].items()),
            s["damage"] <= 1,
        )
        for s in report["settings"]
        if s["damage"] <= 1
    )
    assert outcome["met"] and 0 < outcome["margin"] <= best[0]


def test_it_prints_results_on_stdout_and_progress_on_stderr(found):
    result, folder = found
    lines = result.stdout.splitlines()
    assert re.fullmatch(
        r"medical=expert legal=avoidance: met at medical -?[\d.]+ legal -?[\d.]+", lines[0]
    )
    assert "dominant" in result.stdout and "Searching" not in result.stdout
    assert lines[-1] == f"Recipe: {folder / 'mine.yml'}   Report: {folder / 'runs' / 'mine.md'}"
    assert "Searching" in result.stderr and "Testing" in result.stderr
    assert {file.name for file in (folder / "runs").iterdir()} == {
        "evaluations.jsonl", "mine.json", "mine.md", "mine.png", "mine.svg",
    }  # fmt: skip
    assert image.imread(folder / "runs" / "mine.png")[..., :3].std() > 0.05


def test_every_combination_is_answered_and_what_is_met_has_a_recipe(every):
    result, out = every
    report = read(out, "combinations")
    levels = dict.fromkeys(("medical", "legal"), ("expert", "generic", "avoidance"))
    assert [outcome["goal"] for outcome in report["outcomes"]] == combinations(levels)
    met = [outcome for outcome in report["outcomes"] if outcome["met"]]
    assert len(met) >= 2
    for outcome in report["outcomes"]:
        [setting] = [s for s in report["settings"] if s["lambdas"] == outcome["lambdas"]]
        margins = [setting["margins"][f"{d} {level}"] for d, level in outcome["goal"].items()]
        assert outcome["margin"] == min(margins) and outcome["met"] == (min(margins) > 0)
        assert bool(outcome["obstacles"]) != outcome["met"]
    assert {file.stem for file in (out / "recipes").iterdir()} == {
        "_".join(f"{domain}-{level}" for domain, level in outcome["goal"].items())
        for outcome in met
    }
    holds = sum(bool(outcome["holds"]) for outcome in met)
    assert result.stdout.splitlines()[-2] == (
        f"{len(met)} of 9 met on the validation records, {holds} of these on the test records"
    )
    text = (out / "combinations.md").read_text("utf-8")
    assert f"**{len(met)} of 9 met**" in text and (len(met) == 9 or "## Not met" in text)
    # Every vector was trained to move the levels of its own domain.
    assert "## What each vector moves" in text
    moved = {(e["domain"], e["level"]): e["slopes"] for e in report["effects"]}
    assert list(moved["legal", "generic"]) == ["medical", "legal"]
    for domain in levels:
        own = moved[domain, "expert"][domain]
        assert (
            own > 0 and f"| {domain} | expert over generic |" in text and f"**{own:+.2f}**" in text
        )


def test_the_same_store_serves_another_question(every, given, tmp_path):
    _, out = every
    runs = shutil.copytree(out, tmp_path / "runs")
    before = len(keys(runs))
    result = search(
        *given, *WANTED, "--tolerance", "inf", "--runs", runs, "--out", tmp_path / "one.yml"
    )
    assert result.exit_code == 0, result.output
    assert keys(runs)[:before] == keys(out)
    # All but what leads to this goal was there already.
    report = read(runs, "one")
    assert len(keys(runs)) - before < 3 * len(report["settings"]) / 2


def test_without_a_limit_the_language_is_only_looked_at_where_something_was_found(every):
    _, out = every
    written = [key for key in keys(out) if "max_new_tokens" in key]
    assert written and {key["split"] for key in written} == {"test"}
    report = read(out, "combinations")
    for outcome in report["outcomes"]:
        assert (outcome["test_damage"] is not None) == outcome["met"]


def test_a_sweep_and_a_search_share_what_they_measure(given, base, trained, data, tmp_path):
    runs = tmp_path / "runs"
    options = ["--base", base, "--av", trained["medical"], "--data", f"medical={data['medical']}"]
    swept = sweep(
        *options, "--lambda", "0", "--generate", 0, "--no-prompting", "--dtype", "auto",
        "--out", runs,
    )  # fmt: skip
    assert swept.exit_code == 0, swept.output
    before = keys(runs)
    assert search(*given, *WANTED, "--runs", runs, "--out", tmp_path / "x.yml").exit_code == 0
    after = [json.dumps(key) for key in keys(runs)]
    assert keys(runs)[: len(before)] == before and len(after) == len(set(after))


@pytest.mark.parametrize("strategy", ["hierarchical", "grid"])
def test_the_other_strategies_find_it_too(given, tmp_path, strategy):
    result = search(
        *given, *WANTED, "--strategy", strategy, "--step", "1", "--range", "-1:1",
        "--out", tmp_path / "x.yml", "--runs", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert len(read(tmp_path, "x")["settings"]) == 9


def test_what_cannot_be_had_ends_with_the_nearest_and_what_is_in_the_way(given, tmp_path):
    out = tmp_path / "nearest.yml"
    result = search(
        *given, *WANTED, "--range", "0:0.2", "--range", "medical=-0.1:0", "--out", out,
        "--runs", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"Error: no setting tried brings out medical=expert legal=avoidance: {out} is the nearest"
    )
    text = out.read_text("utf-8")
    assert "# NOT REACHED" in text and "is dominant in" in text
    report = read(tmp_path, "nearest")
    assert len(report["settings"]) <= 6 and yaml.safe_load(text)["models"]
    values = report["outcomes"][0]["lambdas"]
    assert -0.1 <= values["medical"] <= 0 <= values["legal"] <= 0.2


def test_a_vector_that_may_not_move_is_left_alone(given, tmp_path):
    result = search(
        *given, "--want", "medical=expert", "--range", "legal=0:0", "--out", tmp_path / "x.yml",
        "--runs", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = read(tmp_path, "x")
    assert {setting["lambdas"]["legal"] for setting in report["settings"]} == {0.0}
    assert image.imread(tmp_path / "x.png")[..., :3].std() > 0.05


def test_a_domain_without_a_vector_is_only_observed(given, tmp_path):
    options = given[:4] + given[6:]  # without the legal vector
    result = search(
        *options, "--want", "legal=expert", "--out", tmp_path / "x.yml", "--runs", tmp_path
    )
    report = read(tmp_path, "x")
    assert result.exit_code in (0, 1) and list(report["outcomes"][0]["lambdas"]) == ["medical"]
    # What was not wanted is reported too.
    assert list(report["outcomes"][0]["tests"]) == ["legal", "medical"]


def test_the_budget_is_the_number_of_settings(given, tmp_path):
    result = search(*given, "--all", "--budget", 19, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    report = read(tmp_path, "combinations")
    assert len(report["settings"]) == 19 == report["budget"]
    there = {str(key["vectors"]) for key in keys(tmp_path) if key["split"] == "validation"}
    assert len(there) == 19


def test_joint_training_is_compared(given, base, trained, tmp_path):
    aligned = trained["medical"].with_name("medical-aligned")
    goal = {"medical": "expert", "legal": "avoidance"}
    about = {"joint": goal, "seconds": 120.0}
    joint = extract(base, aligned, tmp_path / "joint", name="joint", training=about).folder
    result = search(
        *given, *WANTED, "--joint", joint, "--out", tmp_path / "x.yml", "--runs", tmp_path
    )
    assert result.exit_code == 0, result.output
    [one] = read(tmp_path, "x")["joint"]
    assert one["goal"] == goal and one["seconds"] == 120 and set(one["tests"]) == set(goal)
    text = (tmp_path / "x.md").read_text("utf-8")
    assert "## Against joint training" in text and "Joint training took 2.0 minutes" in text
    # It is measured at λ 1, and not in the recipe.
    assert (
        "joint"
        not in (tmp_path / "x.yml")
        .read_text("utf-8")
        .replace(str(tmp_path), "")
        .split("merge_method")[1]
    )


# Stopping and going on


@pytest.fixture
def long(given, tmp_path) -> list:
    """A search long enough to be stopped."""
    return [*given, "--all", "--budget", 24, "--out", tmp_path / "out"]


def start(folder: Path, options: list, evaluations: int):
    """Start a search that waits when so many evaluations are kept."""
    store = folder / "out" / "evaluations.jsonl"
    return start_and_pause(in_process, folder, store, evaluations, *options)


def start_running(folder: Path, options: list, evaluations: int, run=in_process):
    """Start a search that has far more to do, and return when so many evaluations are kept."""
    process = processes.start(run, folder, *options)
    store = folder / "out" / "evaluations.jsonl"
    end = time.monotonic() + 200
    while not (store.exists() and store.read_bytes().count(b"\n") >= evaluations):
        assert process.is_alive() and time.monotonic() < end
        time.sleep(0.01)
    return process


@pytest.fixture(scope="module")
def uninterrupted(given, tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    assert search(*given, "--all", "--budget", 24, "--out", out).exit_code == 0
    return read(out, "combinations")


@pytest.mark.parametrize("evaluations", [pytest.param(1, marks=pytest.mark.slow), 75])
def test_killed_and_started_again_it_comes_to_the_same_end(
    long, tmp_path, uninterrupted, evaluations
):
    process = start(tmp_path, long, evaluations)
    os.kill(process.pid, signal.SIGKILL)
    assert processes.finish(process).code == -9
    before = keys(tmp_path / "out")
    result = search(*long)
    assert result.exit_code == 0, result.output
    assert same(read(tmp_path / "out", "combinations"), uninterrupted)
    after = keys(tmp_path / "out")
    assert after[: len(before)] == before
    assert len({json.dumps(key) for key in after}) == len(after)


def test_ctrl_c_leaves_the_best_so_far(long, tmp_path):
    process = start(tmp_path, long, 80)
    os.kill(process.pid, signal.SIGINT)
    ended = processes.finish(process)
    assert ended.code == 130 and ended.error == "Interrupted" and ended.out == ""
    assert re.search(
        r"Stopped after (\d+) of up to 24 settings\. What was measured is kept", ended.err
    )
    report = read(tmp_path / "out", "combinations")
    assert report["interrupted"] and 18 <= len(report["settings"]) < 24
    assert "**Interrupted" in (tmp_path / "out" / "combinations.md").read_text("utf-8")
    assert all(not outcome["tests"] for outcome in report["outcomes"])


GRID = ("--strategy", "grid", "--range", "-1:1", "--step", "0.1")


def in_background(*options: object) -> None:
    """As a shell starts a command with `&`: Ctrl-C does not reach it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    in_process(*options)


@pytest.mark.parametrize(
    "how",
    [
        *(pytest.param(how, marks=pytest.mark.slow) for how in ("Ctrl-C", "SIGTERM")),
        "SIGTERM in the background",
    ],
)
def test_stopped_in_its_only_batch_it_writes_the_best_of_what_is_measured(given, tmp_path, how):
    out = tmp_path / "mine.yml"
    options = [*given, *WANTED, *GRID, "--runs", tmp_path / "out", "--out", out]
    run = in_background if "background" in how else in_process
    process = start_running(tmp_path, options, 30, run)
    os.kill(process.pid, signal.SIGINT if how != "SIGTERM" else signal.SIGTERM)
    if "background" in how:
        time.sleep(0.2)
        assert process.is_alive()
        os.kill(process.pid, signal.SIGTERM)
    ended = processes.finish(process)
    assert ended.code == (130 if how == "Ctrl-C" else 143) and ended.error == "Interrupted"
    stopped = int(re.search(r"Stopped after (\d+) of up to 441 settings", ended.err)[1])
    report = read(tmp_path / "out", "mine")
    assert report["interrupted"] and len(report["settings"]) == stopped
    # Four evaluations a setting: whatever is measured whole counts.
    measured = [json.dumps(key["vectors"]) for key in keys(tmp_path / "out")]
    assert stopped == sum(measured.count(one) == 4 for one in set(measured)) >= 7
    text = out.read_text("utf-8")
    [outcome] = report["outcomes"]
    chosen = [one["parameters"]["lambda"] for one in yaml.safe_load(text)["models"]]
    assert chosen == list(outcome["lambdas"].values())
    best = [
        min(s["margins"][f"{d} {v}"] for d, v in outcome["goal"].items())
        for s in report["settings"]
    ]
    assert outcome["margin"] <= max(best)
    # It goes on from there.
    small = [*given, *WANTED, *GRID[:4], "--step", "1", *options[-4:], "--overwrite"]
    assert search(*small).exit_code == 0
    again = [json.dumps(key) for key in keys(tmp_path / "out")]
    assert len(set(again)) == len(again)


def test_stopped_before_a_setting_is_measured_there_is_no_recipe(given, tmp_path):
    out = tmp_path / "mine.yml"
    options = [*given, *WANTED, *GRID[:2], "--range", "0.5:1", "--runs", tmp_path / "out"]
    process = start(tmp_path, [*options, "--out", out], 1)
    os.kill(process.pid, signal.SIGINT)
    ended = processes.finish(process)
    assert ended.code == 130
    stopped = int(re.search(r"Stopped after (\d+) of up to 36 settings", ended.err)[1])
    # The base is none of them, and comes first: everything is compared with it.
    assert {str(key["vectors"]) for key in keys(tmp_path / "out")[:4]} == {"[]"}
    assert out.exists() == (stopped > 0)


def test_a_recipe_that_came_meanwhile_stays_and_the_found_one_is_kept(given, tmp_path):
    out = tmp_path / "mine.yml"
    options = [*given, *WANTED, *GRID[:4], "--step", "1", "--runs", tmp_path / "out", "--out", out]
    process = start(tmp_path, options, 1)
    out.write_text("mine", "utf-8")
    os.kill(process.pid, signal.SIGCONT)
    ended = processes.finish(process)
    kept = tmp_path / "mine.new.yml"
    assert ended.code == 1 and ended.error.endswith(f"is whole, and is kept in {kept}")
    assert out.read_text("utf-8") == "mine" and yaml.safe_load(kept.read_text("utf-8"))["models"]


@pytest.mark.slow
def test_stopped_with_workers_it_keeps_the_best_so_far(given, tmp_path):
    options = [*given, *WANTED, *GRID, "--workers", 2, "--runs", tmp_path / "out"]
    process = start_running(tmp_path, [*options, "--out", tmp_path / "mine.yml"], 30)
    os.kill(process.pid, signal.SIGTERM)
    ended = processes.finish(process)
    assert ended.code == 143 and ended.error == "Interrupted"
    assert (tmp_path / "mine.yml").exists() and "Stopped after" in ended.err


def test_two_searches_do_not_write_the_same_recipes(given, tmp_path):
    process = start(tmp_path, [*given, "--all", "--budget", 24, "--out", tmp_path / "out"], 1)
    line = refused(*given, "--all", "--runs", tmp_path / "other", "--out", tmp_path / "out")
    assert "recipes is in use by another process" in line
    os.kill(process.pid, signal.SIGKILL)
    processes.finish(process)


@pytest.mark.slow
def test_two_workers_find_what_one_process_finds(given, tmp_path, uninterrupted):
    out = tmp_path / "out"
    process = processes.start(
        in_process, tmp_path, *given, "--all", "--budget", 24, "--workers", 2, "--out", out
    )
    ended = processes.finish(process)
    assert ended.code == 0, ended.err
    report = read(out, "combinations")
    assert report["workers"] == "2" and same(report, uninterrupted)


@pytest.mark.slow
def test_what_is_wrong_in_a_worker_is_one_line(given, base, tmp_path):
    other = shutil.copytree(base, tmp_path / "other")
    (other / "config.json").write_text("{}", "utf-8")
    options = ["--base", other, *given[2:]]
    process = processes.start(
        in_process, tmp_path, *options, *WANTED, "--workers", 2, "--out", "x.yml"
    )
    ended = processes.finish(process)
    assert ended.code == 1 and ended.error.startswith("Error: ") and ended.out == ""


# Bad input


@pytest.mark.parametrize(
    ("options", "says", "code"),
    [
        ([], "say what is wanted: --want DOMAIN=LEVEL for each domain, or --all", 2),
        ([*WANTED, "--all"], "say what is wanted", 2),
        (["--want", "medical"], "--want must be DOMAIN=LEVEL, not 'medical'", 2),
        (["--want", "medical="], "--want must be DOMAIN=LEVEL", 2),
        ([*WANTED, "--want", "legal=expert"], "two levels are wanted for legal: give one", 2),
        (["--want", "cooking=expert"], "no domain 'cooking': built in are", 1),
        (["--want", "legal=bold"], "legal has no level 'bold': there are expert, generic", 1),
        ([*WANTED, "--range", "1:-1"], "no multiple of 0.1 lies from 1 to -1", 2),
        ([*WANTED, "--range", "1"], "--range must be like -2:2", 2),
        ([*WANTED, "--range", "nan:1"], "--range must be like -2:2", 2),
        ([*WANTED, "--range", "tax=0:1"], "--range names 'tax', and the vectors are medical", 2),
        ([*WANTED, "--range", "0:1", "--range", "0:2"], "--range is given twice", 2),
        ([*WANTED, "--step", "0"], "the step 0 must be positive", 2),
        (
            [*WANTED, "--budget", "17"],
            "--budget 17 is too small: the strategy 'surface' needs 18",
            2,
        ),
        (
            [*WANTED, "--strategy", "grid", "--budget", "100"],
            "--budget 100 is too small: the strategy 'grid' needs 1681 settings here",
            2,
        ),
        ([*WANTED, "--strategy", "grid", "--step", "0.001"], "the grid has 16,008,001 settings", 1),
    ],
)
def test_what_does_not_work_ends_in_one_line(given, tmp_path, options, says, code):
    assert says in refused(*given, *options, "--out", tmp_path / "x.yml", code=code)
    assert not list(tmp_path.iterdir())


def test_a_recipe_that_is_there_stays(given, tmp_path):
    out = tmp_path / "mine.yml"
    out.write_text("mine", "utf-8")
    assert f"{out} exists: choose another name or pass --overwrite" in refused(
        *given, *WANTED, "--out", out
    )
    assert out.read_text("utf-8") == "mine"
    assert "--out must be a recipe, such as mine.yml" in refused(
        *given, *WANTED, "--out", "mine", code=2
    )


def test_vectors_of_another_base_are_refused(given, vectors, tmp_path, base):
    from tiny import make_model, make_tokenizer

    other = make_model(tmp_path / "other", seed=9)
    make_tokenizer(other)
    says = refused(
        "--base", other, *given[2:], *WANTED, "--out", tmp_path / "x.yml", "--runs", tmp_path
    )
    assert "is a vector of" in says and "these are not its weights" in says


def test_a_vector_that_was_not_trained_jointly_is_no_rival(given, vectors, tmp_path):
    says = refused(*given, *WANTED, "--joint", vectors["medical"], "--out", tmp_path / "x.yml")
    assert "was not trained by `av-train --joint`" in says


def test_a_folder_that_is_a_file_is_said_at_once(given, tmp_path):
    (tmp_path / "file").write_text("", "utf-8")
    assert "could not write" in refused(*given, *WANTED, "--out", tmp_path / "file" / "x.yml")


def test_a_large_search_is_asked_about(given, tmp_path):
    options = [*given, *WANTED, "--budget", 501, "--out", tmp_path / "x.yml"]
    result = search(*options, input="n\n")
    assert result.exit_code == 1 and "Up to 501 settings" in result.stderr
    assert not list(tmp_path.iterdir())
