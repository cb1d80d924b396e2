"""av-synth annotate and agreement: in a real terminal, in a sheet, killed and gone on with."""

import codecs
import contextlib
import csv
import io
import itertools
import json
import os
import pty
import re
import signal
import sys
import termios
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from sklearn.metrics import cohen_kappa_score

from mergekit_av.cli.synth import av_synth

COMMAND = Path(sys.executable).with_name("av-synth")
LEVELS = {"warm": "Full of welcome.", "neutral": "Plain and factual.", "cold": ""}
COUNT = 8


@pytest.fixture
def folder(tmp_path) -> Path:
    """A data folder of eight records."""
    folder = tmp_path / "data"
    folder.mkdir()
    listed = "".join(f"  {level}: {text}\n" for level, text in LEVELS.items())
    (folder / "domain.yml").write_text(
        f"name: hosting\ndescription: how warm a host is\nlevels:\n{listed}records: records.jsonl\n",
        "utf-8",
    )
    rows = [
        {
            "id": f"r{i}",
            "query": f"May guest {i} come?",
            "responses": {level: f"Reply {i}, the {level} one." for level in LEVELS},
        }
        for i in range(COUNT)
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


def run(*arguments):
    return CliRunner().invoke(av_synth, [*map(str, arguments)])


def refused(*arguments, code: int = 1) -> str:
    result = run(*arguments)
    assert result.exit_code == code and isinstance(result.exception, SystemExit), result.output
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


def sheet_of(folder: Path, name: str, *more) -> list[dict[str, str]]:
    """The rows of a sheet, with the columns' first words as names."""
    file = folder.parent / f"{name}.csv"
    result = run("annotate", folder, "--annotator", name, "--sheet", file, *more)
    assert result.exit_code == 0, result.output
    head, *rows = csv.reader(io.StringIO(file.read_text("utf-8-sig"), newline=""))
    return [dict(zip([cell.split()[0] for cell in head], row, strict=True)) for row in rows]


def fill_in(folder: Path, name: str, choose, *more):
    """Write a sheet, fill in what `choose` says of a response, and take it in."""
    rows, file = sheet_of(folder, name, *more), folder.parent / f"{name}.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(rows[0])
        writer.writerows([*list(row.values())[:-1], choose(row["response"])] for row in rows)
    return run("annotate", folder, "--annotator", name, "--read", file, *more)


def intended(response: str) -> str:
    return re.search(r"the (\w+) one", response)[1]


class Terminal:
    """av-synth in a terminal of its own."""

    def __init__(self, *arguments: object):
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.execv(COMMAND, [str(COMMAND), *map(str, arguments)])
        self.screen = ""
        # What is read may end within a character.
        self.decode = codecs.getincrementaldecoder("utf-8")().decode

    def until(self, text: str) -> str:
        """What is written until a text comes; the next call begins after it."""
        while text not in self.screen:
            try:
                read = os.read(self.fd, 4096)
            except OSError:  # the other end is closed
                read = b""
            assert read, f"{text!r} has not come: {self.screen}"
            self.screen += self.decode(read)
        before, _, self.screen = self.screen.partition(text)
        return before + text

    def choose(self, level: str | None = None, key: str | None = None) -> str:
        """Press the key of a level (by default of the intended one), and return the response."""
        shown = self.until("stops; all is kept")
        response = re.search(r"Reply \d+, the \w+ one\.", shown)[0]
        keys = {level: number for number, level in re.findall(r"(\d)  (\w+)", shown)}
        assert set(keys) == set(LEVELS)
        self.press(key or keys[level or intended(response)])
        return response

    def press(self, key: str) -> None:
        """Press a key once one is waited for: what is typed before is thrown away."""
        while termios.tcgetattr(self.fd)[3] & termios.ICANON:
            time.sleep(0.01)
        os.write(self.fd, key.encode())

    def end(self) -> tuple[int, str]:
        """Exit code, and what else was written."""
        with contextlib.suppress(OSError):
            while read := os.read(self.fd, 4096):
                self.screen += self.decode(read)
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status), self.screen


def annotating(folder: Path, *more) -> Terminal:
    return Terminal("annotate", folder, "--annotator", "ann", "--sample", 2, *more)


def lines(folder: Path, name: str = "ann") -> list[dict]:
    text = (folder / "annotations" / f"{name}.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


# --- in a terminal -----------------------------------------------------------------------------


def test_a_terminal_shows_one_response_at_a_time_without_its_level(folder):
    terminal = annotating(folder)
    shown = terminal.until("stops; all is kept")
    assert "1 of 6" in shown and re.search(r"May guest \d come\?", shown)
    assert len(re.findall(r"Reply \d", shown)) == 1
    assert "how warm a host is" in shown and "warm: Full of welcome." in shown
    terminal.screen = shown + terminal.screen
    seen = [terminal.choose() for _ in range(6)]
    code, rest = terminal.end()
    assert code == 0 and "6 of 6 responses annotated" in rest
    assert len(set(seen)) == 6
    assert all(line["chosen"] == line["intended"] for line in lines(folder))


def test_every_choice_is_kept_at_once_and_a_killed_session_goes_on(folder):
    terminal = annotating(folder)
    first = [terminal.choose("cold"), terminal.choose("warm")]
    terminal.until("3 of 6")
    assert [line["chosen"] for line in lines(folder)] == ["cold", "warm"]
    os.kill(terminal.pid, signal.SIGKILL)
    assert terminal.end()[0] == -9
    terminal = annotating(folder)
    assert "3 of 6" in terminal.until("3 of 6")
    rest = [terminal.choose() for _ in range(4)]
    assert terminal.end()[0] == 0
    assert len({*first, *rest}) == 6 and len(lines(folder)) == 6


def test_a_choice_can_be_taken_back_and_q_stops(folder):
    terminal = annotating(folder)
    first = terminal.choose("cold")
    terminal.until("stops; all is kept")
    terminal.press("x")  # no level
    terminal.until("\a")
    terminal.press("u")
    assert terminal.choose("warm") == first
    terminal.choose(key="q")
    code, rest = terminal.end()
    assert code == 0 and "1 of 6 responses annotated" in rest
    assert [line["chosen"] for line in lines(folder)] == ["cold", None, "warm"]
    # Also one of the session before.
    terminal = annotating(folder)
    terminal.choose(key="u")
    assert terminal.choose("neutral") == first
    terminal.choose(key="q")
    terminal.end()
    assert lines(folder)[-1]["chosen"] == "neutral"


def test_ctrl_c_keeps_what_was_chosen(folder):
    terminal = annotating(folder)
    terminal.choose()
    terminal.choose(key="\x03")
    code, rest = terminal.end()
    assert code == 130 and "Interrupted" in rest and "Traceback" not in rest
    assert len(lines(folder)) == 1


def test_without_a_terminal_a_sheet_is_suggested(folder):
    message = refused("annotate", folder, "--annotator", "ann", "--sample", 2)
    assert "no terminal to ask in" in message and "--sheet" in message
    assert not (folder / "annotations").exists()


# --- what is drawn -----------------------------------------------------------------------------


def test_half_of_the_queries_are_shared_by_every_pair_and_the_order_is_ones_own(folder):
    sheets = {n: sheet_of(folder, n, "--sample", 5) for n in ("ann", "bob", "cy")}
    queries = {name: {row["query"] for row in rows} for name, rows in sheets.items()}
    assert all(len(found) == 5 for found in queries.values())
    assert all(len(rows) == 15 for rows in sheets.values())
    common = set.intersection(*queries.values())
    assert len(common) >= 3
    for one, other in itertools.combinations(queries.values(), 2):
        assert common <= one & other
    assert len({tuple(row["item"] for row in rows) for rows in sheets.values()}) == 3
    # Again the same; with another seed not.
    (folder.parent / "ann.csv").unlink()
    assert sheet_of(folder, "ann", "--sample", 5) == sheets["ann"]
    (folder.parent / "ann.csv").unlink()
    assert sheet_of(folder, "ann", "--sample", 5, "--seed", 1) != sheets["ann"]


def test_the_shared_part_can_be_all(folder):
    sheets = [sheet_of(folder, n, "--sample", 4, "--shared", 4) for n in ("ann", "bob")]
    ids = [{row["item"] for row in rows} for rows in sheets]
    assert ids[0] == ids[1]


def test_a_sheet_does_not_tell_the_level_and_says_what_may_be_filled_in(folder):
    rows = sheet_of(folder, "ann", "--sample", 3)
    assert all(row["level"] == "" for row in rows)
    assert all(not {*LEVELS} & {row["item"]} and row["item"].isalnum() for row in rows)
    head = (folder.parent / "ann.csv").read_text("utf-8-sig").splitlines()[0]
    assert "warm = Full of welcome.; neutral = Plain and factual.; cold" in head


# --- sheets ------------------------------------------------------------------------------------


def test_a_sheet_that_is_filled_in_counts_as_annotation(folder):
    result = fill_in(folder, "ann", lambda text: f" {intended(text).upper()} ", "--sample", 3)
    assert result.exit_code == 0, result.output
    assert "9 of 9 responses annotated" in result.stdout
    assert [line["chosen"] for line in lines(folder)] == [
        line["intended"] for line in lines(folder)
    ]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_sheet_may_come_back_as_spreadsheets_of_other_languages_write_it(folder, delimiter):
    rows, file = sheet_of(folder, "ann", "--sample", 2), folder.parent / "ann.csv"
    head = next(csv.reader(io.StringIO(file.read_text("utf-8-sig"))))
    with file.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerow(head)
        writer.writerows([*list(row.values())[:-1], "cold"] for row in rows)
        writer.writerow([""] * 4)  # spreadsheets like to leave empty rows
    result = run("annotate", folder, "--annotator", "ann", "--sample", 2, "--read", file)
    assert result.exit_code == 0, result.output
    assert {line["chosen"] for line in lines(folder)} == {"cold"}


def spoil_cell(row: int, column: int, text: str):
    def spoil(rows):
        rows[row][column] = text
        return rows

    return spoil


SPOILT = {
    "an unknown label": (spoil_cell(2, 3, "tepid"), "line 3: 'tepid' is none of the levels warm, "),
    "no label": (spoil_cell(4, 3, " "), "line 5: no level is filled in; nothing was taken in"),
    "a missing row": (lambda rows: rows[:-1], "lacks 1 of the 6 items, the first of them "),
    "an unknown item": (spoil_cell(1, 0, "abc"), "line 2: 'abc' is none of this annotator's items"),
    "a row twice": (lambda rows: [*rows, rows[1]], "line 8: the item "),
    "no head": (lambda rows: rows[1:], "has no columns 'item' and 'level'"),
    "nothing": (lambda rows: [], "has no columns 'item' and 'level'"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "says"), SPOILT.values(), ids=SPOILT)
def test_a_spoilt_sheet_is_one_line_and_nothing_is_taken_in(folder, spoil, says):
    assert fill_in(folder, "ann", intended, "--sample", 2).exit_code == 0
    file, before = folder.parent / "ann.csv", lines(folder)
    rows = spoil(list(csv.reader(io.StringIO(file.read_text("utf-8"), newline=""))))
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    message = refused("annotate", folder, "--annotator", "ann", "--sample", 2, "--read", file)
    assert says in message
    assert lines(folder) == before


def test_a_sheet_is_read_with_the_sample_it_was_written_with(folder):
    sheet_of(folder, "ann", "--sample", 2)
    file = folder.parent / "ann.csv"
    message = refused("annotate", folder, "--annotator", "bob", "--sample", 1, "--read", file)
    assert "--sample, --shared and --seed must be those that the sheet was written with" in message


def test_a_sheet_that_is_there_is_not_written_over(folder):
    sheet_of(folder, "ann", "--sample", 2)
    file = folder.parent / "ann.csv"
    message = refused("annotate", folder, "--annotator", "ann", "--sample", 2, "--sheet", file)
    assert message == f"Error: {file} is there already: choose another name"


def test_what_cannot_be_annotated_is_one_line(folder, tmp_path):
    who = ("--annotator", "ann")
    message = refused("annotate", folder, *who)
    assert message == "Error: there are 8 records to sample 30 from: pass a smaller --sample"
    assert "--shared 3 is more than --sample 2" in refused(
        "annotate", folder, *who, "--sample", 2, "--shared", 3, code=2
    )
    both = ("--sheet", tmp_path / "a.csv", "--read", tmp_path / "b.csv")
    assert "not both" in refused("annotate", folder, *who, *both, code=2)
    assert "Missing option '--annotator'" in refused("annotate", folder, code=2)
    for name in ("", "a/b", "..", ".x"):
        assert "is no name for an annotator" in refused(
            "annotate", folder, "--annotator", name, "--sample", 2
        )
    assert "is no data folder" in refused("annotate", tmp_path, *who)
    (folder / "records.jsonl").unlink()
    assert "has no records.jsonl" in refused("annotate", folder, *who)
    missing = refused("annotate", folder, *who, "--read", tmp_path / "none.csv")
    assert "has no records.jsonl" in missing


# --- agreement ---------------------------------------------------------------------------------


def test_agreement_of_three_annotators(folder):
    """Numbers again from the choices themselves."""
    wrong = {"warm": "neutral", "neutral": "warm", "cold": "cold"}

    def careless(response: str) -> str:
        number = int(re.search(r"\d+", response)[0])
        return wrong[intended(response)] if number % 3 == 0 else intended(response)

    for name, choose in (("ann", intended), ("bob", intended), ("cy", careless)):
        assert fill_in(folder, name, choose, "--sample", 6).exit_code == 0
    out = folder.parent / "agreement.json"
    result = run("agreement", folder, "--json", out)
    assert result.exit_code == 0, result.output

    chosen = {n: {line["item"]: line["chosen"] for line in lines(folder, n)} for n in ("ann", "bob", "cy")}  # fmt: skip
    report = json.loads(out.read_text("utf-8"))
    assert report["annotators"] == {"ann": 18, "bob": 18, "cy": 18}
    kappas = []
    for pair in report["pairs"]:
        one, other = (chosen[name] for name in pair["annotators"])
        shared = one.keys() & other.keys()
        kappas.append(cohen_kappa_score([one[i] for i in shared], [other[i] for i in shared]))
        assert pair["shared"] == len(shared) >= 9
        assert pair["kappa"] == pytest.approx(kappas[-1])
    assert len(kappas) == 3 and report["kappa"] == pytest.approx(sum(kappas) / 3)
    every = [line for name in chosen for line in lines(folder, name)]
    for level, row in report["confusion"].items():
        for other, count in row.items():
            pairs = [(line["intended"], line["chosen"]) for line in every]
            assert count == pairs.count((level, other))
    assert sum(sum(row.values()) for row in report["confusion"].values()) == 54
    # The paper's table 7: rows add up to 100 %.
    table = [line.split() for line in result.stdout.splitlines()[-3:]]
    assert [row[0] for row in table] == list(LEVELS)
    assert all(sum(map(float, row[1:])) == pytest.approx(100, abs=0.02) for row in table)
    assert table[2][1:] == ["0.00", "0.00", "100.00"]
    assert re.search(r"^ann, bob +\d+ +1\.00$", result.stdout, re.MULTILINE)


def test_one_annotator_has_a_confusion_and_no_kappa(folder):
    fill_in(folder, "ann", lambda text: "cold", "--sample", 2)
    result = run("agreement", folder)
    assert result.exit_code == 0, result.output
    assert "Only ann has annotated: Cohen's κ needs two (--annotator)." in result.stdout
    assert "% of 6 judgements, 33.33 % as intended" in result.stdout


def test_annotators_who_share_nothing_have_no_kappa(folder):
    for name in ("ann", "bob"):
        fill_in(folder, name, intended, "--sample", 1, "--shared", 0, "--seed", len(name) + 2)
    result = run("agreement", folder)
    shared = {line["item"] for line in lines(folder)} & {line["item"] for line in lines(folder, "bob")}  # fmt: skip
    assert not shared
    assert re.search(r"^ann, bob +0 +–$", result.stdout, re.MULTILINE)
    assert re.search(r"^average +–$", result.stdout, re.MULTILINE)


def test_what_is_taken_back_does_not_count(folder):
    terminal = annotating(folder)
    terminal.choose()
    terminal.choose(key="u")
    terminal.choose(key="q")
    terminal.end()
    message = refused("agreement", folder)
    assert message.startswith("Error: nobody has annotated yet")


def test_agreement_about_levels_that_are_gone_is_one_line(folder):
    fill_in(folder, "ann", intended, "--sample", 2)
    domain = folder / "domain.yml"
    domain.write_text(domain.read_text("utf-8").replace("neutral:", "lukewarm:"), "utf-8")
    assert "ann has annotated 'neutral', which is none of the levels warm, lukewarm, cold" in (
        refused("agreement", folder)
    )
    (folder / "annotations/ann.jsonl").write_text('{"item": "a"}\n', "utf-8")
    assert "line 1 is no annotation: remove the line" in refused("agreement", folder)


def test_two_at_one_annotators_file_are_told_apart(folder):
    terminal = annotating(folder)
    terminal.until("stops; all is kept")
    sheet_of(folder, "ann", "--sample", 2)
    message = refused(
        "annotate", folder, "--annotator", "ann", "--sample", 2, "--read",
        fill(folder.parent / "ann.csv"),
    )  # fmt: skip
    assert "is in use by another process" in message
    terminal.press("q")
    terminal.end()


def fill(file: Path) -> Path:
    rows = list(csv.reader(io.StringIO(file.read_text("utf-8-sig"), newline="")))
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([rows[0], *([*row[:3], "warm"] for row in rows[1:])])
    return file
