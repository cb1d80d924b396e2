"""What the tests of sweeps share: few short records, a vector that was trained, the command."""

import json
from pathlib import Path

import torch
from click.testing import CliRunner, Result

from mergekit_av.cli.sweep import av_sweep
from mergekit_av.data.domain import Domain, load_domain
from mergekit_av.data.records import Record, load_records
from mergekit_av.models.load import load_model, load_tokenizer
from mergekit_av.vectors.extraction import extract

RESPONSES = {"expert": "Take 5 mg.", "generic": "See a doctor.", "avoidance": "I can't say."}


def row(id: str, split: str = "test", **responses: str) -> dict:
    query = f"What helps against {id}?"
    return {"id": id, "split": split, "query": query, "responses": {**RESPONSES, **responses}}


def rows(test: int = 4, validation: int = 4) -> list[dict]:
    tests = [row(f"t{i}") for i in range(test)]
    return tests + [row(f"v{i}", "validation") for i in range(validation)]


def write_rows(path: Path, content: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content), "utf-8")
    return path


def few(folder: Path, **counts: int) -> tuple[Domain, list[Record]]:
    """The medical domain with few records."""
    domain = load_domain("medical")
    return domain, load_records(domain, write_rows(folder / "few.jsonl", rows(**counts)))


def train(
    base: Path, out: Path, name: str = "medical", wanted: dict[str, str] = RESPONSES,
    query: str = "What helps?",
) -> Path:  # fmt: skip
    """A vector that was trained towards the expert's answer to a query and away from avoidance."""
    model, tokenizer = load_model(base), load_tokenizer(base)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(15):
        for level, sign in (("expert", 1), ("avoidance", -1)):
            text = f"<|user|>{query}<|end|>\n<|assistant|>{wanted[level]}<|end|>\n"
            ids = tokenizer(text, return_tensors="pt").input_ids
            (sign * model(ids, labels=ids).loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    aligned = out.with_name(out.name + "-aligned")
    model.save_pretrained(aligned)
    return extract(base, aligned, out, name=name).folder


def in_process(*options: object) -> None:
    """To be run in another process (`processes.start`)."""
    av_sweep.main([str(option) for option in options], prog_name="av-sweep")


def sweep(*options: object, **how: object) -> Result:
    """Run av-sweep in this process."""
    return CliRunner().invoke(av_sweep, [str(option) for option in options], **how)
