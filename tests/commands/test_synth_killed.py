"""av-synth that is killed, interrupted, or out of disk: nothing is lost, nothing is paid twice."""

import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from processes import finish, start
from synthesizing import TINY, in_process, lines, novelist, synth, wait_for, write_domain

from mergekit_av.io.journal import Journal
from mergekit_av.synthesis.folder import DataFolder

STAGES = ("created", "queries", "responses")
COUNT = 12
# A tree that grows in many steps.
TREE = ("--roots", 1, "--children", 1, "--rounds", 1)


@pytest.fixture
def options(chat, tmp_path) -> list[object]:
    chat.write = novelist
    domain = write_domain(tmp_path)
    return [
        "run", "--domain", domain, "--out", tmp_path / "data", "--count", COUNT, "--plain", *TREE,
        "--base-url", chat.url, "--concurrency", 3, *TINY,
    ]  # fmt: skip


def begin(folder: Path, options: list[object], **how):
    return start(in_process, folder, *map(str, options), **how)


def complete(options: list[object]) -> None:
    result = synth(*options)
    assert result.exit_code == 0, result.output


def on_disk(folder: Path) -> dict[str, bytes]:
    files = [folder / "data" / f"{stage}.jsonl" for stage in STAGES]
    return {file.name: file.read_bytes() for file in files if file.exists()}


def texts(folder: Path) -> dict:
    responses = DataFolder(folder / "data").responses()
    return {(q, level): r.text for q, found in responses.items() for level, r in found.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_killed_in_any_stage_it_goes_on_and_asks_for_nothing_again(chat, options, tmp_path, stage):
    chat.delay = 0.05
    process = begin(tmp_path, options)
    wait_for(tmp_path / "data" / f"{stage}.jsonl", 4)
    os.kill(process.pid, signal.SIGKILL)
    assert finish(process).code == -signal.SIGKILL
    kept = on_disk(tmp_path)
    chat.delay = 0
    complete(options)
    for name, content in kept.items():
        assert (tmp_path / "data" / name).read_bytes().startswith(content)
    # Only what was under way is asked once more, one prompt of each that asks side by side; which
    # ones these are, the order of the requests does not tell on a busy machine.
    again = [times for times in Counter(chat.prompts).values() if times > 1]
    assert len(again) <= 3 and set(again) <= {2}
    assert len(lines(tmp_path / "data" / "records.jsonl")) == COUNT
    assert len(texts(tmp_path)) == 3 * COUNT


@pytest.mark.parametrize("stage", STAGES)
def test_half_a_line_is_made_again(chat, options, tmp_path, stage):
    complete(options)
    whole, asked = texts(tmp_path), len(chat.requests)
    file = tmp_path / "data" / f"{stage}.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    complete(options)
    assert len(chat.requests) == asked + 1
    assert texts(tmp_path) == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_keeps_what_is_done(chat, options, tmp_path, number):
    chat.delay = 0.1
    process = begin(tmp_path, options)
    wait_for(tmp_path / "data" / "responses.jsonl", 5)
    os.kill(process.pid, number)
    ended = finish(process)
    assert ended.code == 128 + number and ended.error.endswith("Interrupted")
    assert "are kept; the same command goes on from there" in ended.err
    done = len(lines(tmp_path / "data" / "responses.jsonl"))
    assert 5 <= done < 3 * COUNT
    asked, chat.delay = len(chat.requests), 0
    complete(options)
    assert len(chat.requests) == asked + 3 * COUNT - done


def test_a_full_disk_is_one_line_and_keeps_what_is_done(chat, options, tmp_path):
    ended = finish(begin(tmp_path, options, largest_file=6000))
    assert ended.code == 1 and "could not write" in ended.error
    assert "responses.jsonl: File too large" in ended.error
    kept = on_disk(tmp_path)
    assert len(kept["responses.jsonl"]) <= 6000 and kept["responses.jsonl"].endswith(b"\n")
    done = len(lines(tmp_path / "data" / "responses.jsonl"))
    assert done > 3
    complete(options)
    assert (tmp_path / "data" / "responses.jsonl").read_bytes().startswith(kept["responses.jsonl"])


def test_two_at_a_time_are_not_let_in(options, tmp_path):
    complete(options)
    with Journal(tmp_path / "data" / "responses.jsonl"):
        second = finish(begin(tmp_path, options))
    assert second.code == 1 and "responses.jsonl is in use by another process" in second.error


@pytest.mark.parametrize("stage", ["clean", "queries", "responses", "personas"])
def test_while_one_makes_a_data_set_no_other_stage_is_let_in(chat, options, tmp_path, stage):
    chat.delay = 0.05
    process = begin(tmp_path, options)
    wait_for(tmp_path / "data" / "responses.jsonl", 4)
    os.kill(process.pid, signal.SIGSTOP)
    arguments = {
        "clean": ["clean", tmp_path / "data"],
        "personas": ["personas", *options[1:5], "--create", "--base-url", chat.url, *TINY],
    }.get(stage, [stage, tmp_path / "data", "--base-url", chat.url, *TINY])
    result = synth(*arguments)
    os.kill(process.pid, signal.SIGCONT)
    assert result.exit_code == 1 and result.stderr == (
        f"Error: {tmp_path / 'data'} is in use by another process: wait for it, or choose another "
        "folder\n"
    )
    chat.delay = 0
    ended = finish(process)
    assert ended.code == 0, ended.err
    assert len(lines(tmp_path / "data" / "records.jsonl")) == COUNT
