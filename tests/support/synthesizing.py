"""What the tests of av-synth share: a model that writes what it is asked for, and the command."""

import hashlib
import json
import re
import time
from pathlib import Path

from click.testing import CliRunner, Result

from mergekit_av.cli.synth import av_synth


def wait_for(file: Path, count: int, seconds: int = 60) -> None:
    """Until a file has so many lines."""
    for _ in range(100 * seconds):
        if file.exists() and file.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"{file} has not grown to {count} lines")


DOMAIN = """\
name: hosting
description: how warmly a host answers guests
levels:
  warm: Friendly and personal, full of welcome.
  neutral: Plain and factual.
  cold: Curt and distant.
prompts:
  cold: Answer the following question curtly and keep your distance.
words:
  domain_lingo: staying with us
"""
LEVELS = ["warm", "neutral", "cold"]
# Who asks nobody outside: the address goes into the options.
TINY = ("--model", "tiny", "--retries", "0", "--timeout", "120")


def novelist(body: dict) -> str:
    """Writes people, a question, or an answer, as the prompt asks; the same for the same prompt."""
    asked = body["messages"][-1]["content"]
    name = hashlib.sha256(asked.encode()).hexdigest()[:8]
    if found := re.search(r"Think of (\d+)", asked):
        people = [f"Guest {name}{i}, who travels with {i} dogs." for i in range(int(found[1]))]
        if "JSON schema" not in asked:
            return "\n".join(f"{i}. {person}" for i, person in enumerate(people, 1))
        pairs = [{"persona": p, "query": f"I am {p} May they all come?"} for p in people]
        return json.dumps({"people": pairs})
    if "as the person would" in asked:
        return f"I arrive at {name}. Is the door open then?"
    return "\n\n".join([f"This is what I say to {name}."] * count_of(asked))


def count_of(asked: str) -> int:
    """How many paragraphs a prompt asks for."""
    (number,) = re.findall(r"Write (one|two|three) paragraphs?", asked)
    return ["one", "two", "three"].index(number) + 1


def write_domain(folder: Path, text: str = DOMAIN) -> Path:
    path = folder / "hosting.yml"
    path.write_text(text, "utf-8")
    return path


def write_personas(folder: Path, count: int = 6) -> Path:
    path = folder / "personas.txt"
    path.write_text("".join(f"A guest with {i} suitcases.\n" for i in range(count)), "utf-8")
    return path


def synth(*options: object) -> Result:
    """Run av-synth in this process."""
    return CliRunner().invoke(av_synth, [str(option) for option in options])


def in_process(*options: object) -> None:
    """To be run in another process (`processes.start`)."""
    av_synth.main([str(option) for option in options], prog_name="av-synth")


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]
