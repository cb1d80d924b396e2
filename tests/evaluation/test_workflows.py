"""What av-eval, av-sweep and av-search do, as calls of the library."""

import json
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import yaml
from searching import search, short_rows
from sweeping import few, row, rows, write_rows

from mergekit_av import AVError
from mergekit_av.cli.eval import av_eval
from mergekit_av.cli.search import av_search
from mergekit_av.cli.sweep import av_sweep
from mergekit_av.errors import UsageError
from mergekit_av.evaluation.accuracy import evaluate
from mergekit_av.evaluation.judge.judge import JudgeConfig
from mergekit_av.evaluation.run import EvalConfig, run_eval
from mergekit_av.evaluation.search.run import SearchConfig, run_search
from mergekit_av.evaluation.sweep.grid import parse_grid
from mergekit_av.evaluation.sweep.run import SweepConfig, run_sweep
from mergekit_av.io.journal import Journal
from mergekit_av.models.decoding import Decoding
from mergekit_av.models.load import load_model, load_tokenizer


@pytest.mark.parametrize(
    ("command", "config"),
    [
        (av_eval, EvalConfig),
        (av_eval, JudgeConfig),
        (av_sweep, SweepConfig),
        (av_search, SearchConfig),
    ],
)
def test_a_call_has_the_defaults_of_the_command(command, config):
    options = command.make_context("x", [], resilient_parsing=True).params
    compared = 0
    for field in fields(config):
        default = field.default
        if default is MISSING and field.default_factory is not MISSING:
            default = field.default_factory()
        if isinstance(default, Decoding):
            assert default == Decoding(options["max_new_tokens"])
        elif field.name == "lambdas":
            assert list(default) == parse_grid(options["lambdas"])
        elif options.get(field.name) not in (None, ()) and default is not MISSING:
            assert options[field.name] == default, field.name
            compared += 1
    assert compared >= 3


def test_an_evaluation_is_a_call(base, tmp_path, capsys):
    data, shown = write_rows(tmp_path / "few.jsonl", rows()), []
    config = EvalConfig(model=str(base), domains=["medical"], data=str(data), answers=1)
    found = run_eval(config, show=shown.append)
    domain, records = few(tmp_path)
    model, tokenizer = load_model(base), load_tokenizer(base)
    assert found.results == [evaluate(model, tokenizer, domain, records, progress=False)]
    assert list(found.answers["medical"]) == ["t0"] and found.judged == []
    assert len(shown) == 1 and "medical (4)" in shown[0]
    assert capsys.readouterr().out == ""
    with pytest.raises(UsageError, match="--data goes with exactly one --domain"):
        run_eval(EvalConfig(model=str(base), data=str(data)))


def test_a_sweep_is_a_call(base, vectors, tmp_path, capsys):
    asked = []
    config = SweepConfig(
        avs=[str(vectors["medical"])],
        base=str(base),
        data={"medical": str(write_rows(tmp_path / "few.jsonl", rows()))},
        lambdas=[1.0],
        generate=0,
        prompting=False,
        out=tmp_path / "out",
    )
    found = run_sweep(config, confirm=asked.append)
    # Two λ, test and validation records.
    assert asked == [4] and found.sweeps[0].lambdas == [0.0, 1.0]
    report = json.loads((tmp_path / "out/sweep.json").read_text("utf-8"))
    assert report["command"] == repr(config) and capsys.readouterr().out == ""

    def refuse(evaluations: int) -> None:
        raise AVError(f"{evaluations} are too many")

    with pytest.raises(AVError, match="4 are too many"):
        run_sweep(config, confirm=refuse)


def search_config(base: Path, vectors: dict[str, Path], folder: Path, **options) -> SearchConfig:
    names = ("medical", "legal")
    data = {name: write_rows(folder / f"{name}.jsonl", short_rows(name)) for name in names}
    return SearchConfig(
        avs=[str(vectors[name]) for name in names],
        base=str(base),
        want={"medical": "expert"},
        data={name: str(file) for name, file in data.items()},
        span=(-1, 1),
        step=1,
        generate=0,
        out=folder / "mine.yml",
        runs=folder / "runs",
        **{"strategy": "grid", **options},
    )


def test_a_search_is_a_call(base, vectors, tmp_path, capsys):
    config = search_config(base, vectors, tmp_path, ranges={"legal": (0, 0)})
    found = run_search(config)
    assert capsys.readouterr().out == ""
    assert [setting.point for setting in found.settings] == [(0, 0), (-1, 0), (1, 0)]
    [outcome] = found.outcomes
    models = yaml.safe_load((tmp_path / "mine.yml").read_text("utf-8"))["models"]
    assert [one["parameters"]["lambda"] for one in models] == list(outcome.lambdas.values())
    with pytest.raises(AVError, match="exists: choose another name"):
        run_search(config)
    with pytest.raises(UsageError, match="say what is wanted"):
        run_search(search_config(base, vectors, tmp_path, every=True))
    with pytest.raises(UsageError, match="no strategy 'random': there are surface"):
        run_search(search_config(base, vectors, tmp_path, strategy="random", overwrite=True))


def test_a_search_that_an_error_ends_leaves_its_best_so_far(base, vectors, tmp_path, monkeypatch):
    config = search_config(base, vectors, tmp_path)
    append = Journal.append

    def append_some(self: Journal, *entries: dict) -> None:
        if len(self.entries) == 6:
            raise AVError("the disk is full")
        append(self, *entries)

    monkeypatch.setattr(Journal, "append", append_some)
    options = ["--base", base, "--want", "medical=expert", "--strategy", "grid", "--step", 1]
    options += ["--range", "-1:1", "--generate", 0, "--out", config.out, "--runs", config.runs]
    for av in config.avs:
        options += ["--av", av]
    for name, file in config.data.items():
        options += ["--data", f"{name}={file}"]
    result = search(*options)
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.splitlines()[-1] == "Error: the disk is full"
    assert "Stopped after 6 of up to 9 settings. What was measured is kept in" in result.stderr
    assert f"Recipe: {config.out}   Report: {config.runs / 'mine.md'}" in result.stderr
    text = config.out.read_text("utf-8")
    assert "# INTERRUPTED after 6 of up to 9 settings: the best so far" in text
    report = json.loads((config.runs / "mine.json").read_text("utf-8"))
    assert report["interrupted"] and len(report["settings"]) == 6


def test_an_error_before_the_first_setting_leaves_nothing(base, vectors, tmp_path, monkeypatch):
    def fail(self: Journal, *entries: dict) -> None:
        raise AVError("the disk is full")

    monkeypatch.setattr(Journal, "append", fail)
    with pytest.raises(AVError, match="the disk is full"):
        run_search(search_config(base, vectors, tmp_path))
    assert not (tmp_path / "mine.yml").exists()
    assert [file.name for file in (tmp_path / "runs").iterdir()] == ["evaluations.jsonl"]


def test_records_that_are_no_ones_are_named(base, vectors, tmp_path):
    data = {"legal": str(write_rows(tmp_path / "x.jsonl", [row("a")]))}
    with pytest.raises(UsageError, match="--data names 'legal', which is not among the domains"):
        run_sweep(SweepConfig(avs=[str(vectors["medical"])], data=data, out=tmp_path / "out"))
