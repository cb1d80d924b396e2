"""What a user is told: one line, of bounded length, that a terminal shows as it is."""

import json
import os
import subprocess
import sys
import time

import click
import pytest
import torch
from click.testing import CliRunner
from damage import edit_json

from mergekit_av import AVError
from mergekit_av.cli.check import av_check
from mergekit_av.cli.command import command
from mergekit_av.cli.extract import av_extract
from mergekit_av.cli.search import av_search
from mergekit_av.errors import LONGEST, first_line, is_out_of_memory, printable
from mergekit_av.models.limits import within


def test_a_message_is_one_line_of_bounded_length_with_its_end():
    message = AVError("a\nb " + "x" * 10**6 + ": do this").message
    assert message.startswith("a b x")
    assert message.endswith("x: do this")
    assert "\n" not in message and len(message) < LONGEST + 10


def test_control_characters_are_shown_not_obeyed():
    assert AVError("a\x1b[31m\x07\u202eb\ud800").message == r"a\x1b[31m\x07\u202eb\ud800"
    assert printable("λ …\nzwei שלום 👩‍⚕️") == "λ …\nzwei שלום 👩‍⚕️"


def hostile(folder, **changes) -> None:
    edit_json(folder / "alignment_vector.json", lambda metadata: metadata.update(changes))


@pytest.fixture
def av(vectors, tmp_path):
    import shutil

    return shutil.copytree(vectors["legal"], tmp_path / "av")


def test_a_vectors_own_words_do_not_reach_the_terminal_raw(av):
    hostile(av, name="x\x1b]0;title\x07", training={"warning": "y\x1b[2J\u202e"})
    ended = CliRunner().invoke(av_check, [str(av)])
    assert ended.exit_code == 0
    assert "y\\x1b[2J\\u202e" in ended.output
    assert not {"\x1b", "\x07", "\u202e"} & set(ended.output)


@pytest.mark.parametrize(
    "number", ["1" + "0" * 400, "1e400", "-1e400", "NaN", "Infinity", "1" + "0" * 5000]
)
def test_numbers_that_no_float_holds_are_one_line(av, number):
    file = av / "alignment_vector.json"
    content = json.loads(file.read_text("utf-8"))
    content["statistics"]["norm"] = "here"
    file.write_text(json.dumps(content).replace('"here"', number), "utf-8")
    ended = CliRunner().invoke(av_check, [str(av)])
    assert ended.exit_code == 1 and isinstance(ended.exception, SystemExit)
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
@pytest.mark.parametrize("place", range(5))
def test_what_no_file_can_be_called_is_a_usage_error(base, aligned, tmp_path, name, place):
    arguments = [str(base), str(aligned), str(tmp_path / "out"), "--name", "x"]
    arguments[place] = name
    ended = CliRunner().invoke(av_extract, arguments)
    assert ended.exit_code == 2 and "is no text" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_tolerance_that_is_no_number_is_a_usage_error(vectors):
    options = [
        "--av",
        str(vectors["legal"]),
        "--want",
        "legal=expert",
        "--out",
        "out.yml",
        "--tolerance",
        "nan",
    ]
    ended = CliRunner().invoke(av_search, options)
    assert ended.exit_code == 2 and "tolerance is not a number" in ended.stderr
    for step in ("1e-7", "1e-99", "1e-999999999"):
        ended = CliRunner().invoke(av_search, [*options[:-1], "1", "--step", step])
        assert ended.exit_code == 2 and "take a larger step" in ended.stderr


def too_much_in_torch():
    torch.empty(1 << 60, dtype=torch.uint8)


def too_much_in_python():
    bytearray(1 << 60)


@pytest.mark.parametrize("allocate", [too_much_in_torch, too_much_in_python])
def test_memory_that_runs_out_is_one_line(allocate):
    @command
    def av_greedy():
        allocate()

    ended = CliRunner().invoke(av_greedy)
    assert ended.exit_code == 1 and isinstance(ended.exception, SystemExit)
    assert ended.stderr.startswith("Error: memory ran out: take ")
    assert len(ended.stderr.splitlines()) == 1


def test_memory_of_an_accelerator_counts_and_other_errors_do_not():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    assert is_out_of_memory(error) and first_line(error) == "memory ran out"
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert first_line(RuntimeError("shapes:\n  1 and 2\n")) == "shapes: 1 and 2"


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "ascii"}]
)
def test_a_terminal_without_a_lambda_is_written_to(environment):
    program = "from mergekit_av.cli.sweep import av_sweep; av_sweep(['--help'])"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        timeout=200,
    )
    assert ended.returncode == 0 and (rb"\u03bb" in ended.stdout or "λ".encode() in ended.stdout), (
        ended.stderr
    )


def test_work_that_takes_too_long_is_stopped():
    steps = []

    def work():
        while True:
            steps.append(1)

    with pytest.raises(TimeoutError, match="longer than"):
        within(0.2, work)
    time.sleep(0.2)
    done = len(steps)
    time.sleep(0.2)
    assert len(steps) == done > 0


def test_work_that_fails_in_time_fails_as_it_does():
    with pytest.raises(click.UsageError):
        within(10, lambda: (_ for _ in ()).throw(click.UsageError("x")))
    assert within(10, lambda: 3) == 3
