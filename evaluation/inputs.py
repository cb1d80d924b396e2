"""What av-sweep and av-search are given: vectors, domains and their records."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import click

from mergekit_av.cli.command import say
from mergekit_av.data.domain import Domain, built_in_domains, load_domain
from mergekit_av.errors import AVError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mergekit_av.data.records import Record
    from mergekit_av.vectors.vector import AlignmentVector

    from .tasks import Task


def open_vectors(avs: tuple[str, ...]) -> "dict[str, AlignmentVector]":
    """Name → vector; its own name where none was given."""
    from mergekit_av.vectors.vector import AlignmentVector

    vectors = {}
    for text in avs:
        name, sign, source = text.partition("=")
        if not sign or "/" in name:  # a path may hold the sign
            name, source = "", text
        vector = AlignmentVector.open(source)
        name = name or vector.metadata.name
        if name in vectors:
            raise click.UsageError(f"two vectors are called {name!r}: write --av NAME={source}")
        vectors[name] = vector
    return vectors


def load_domains(names: tuple[str, ...], vectors: Mapping[str, Any]) -> list[Domain]:
    """Those named; without any, each vector's own."""
    chosen = [load_domain(name) for name in names]
    if not chosen:
        known = built_in_domains()
        chosen = [load_domain(name) for name in vectors if name in known]
    if not chosen:
        raise AVError(
            f"none of the vectors ({', '.join(vectors)}) has the name of a built-in domain: pass "
            "--domain, and the vector as NAME=AV where NAME is its domain's"
        )
    if len({domain.name for domain in chosen}) < len(chosen):
        raise click.UsageError("two of the domains have the same name")
    return chosen


def load_all_records(domains: list[Domain], data: tuple[str, ...]) -> "dict[str, list[Record]]":
    """Domain → its records, or those that --data names; some of them for testing."""
    from mergekit_av.data.records import load_records, require_splits

    sources = {}
    for text in data:
        name, sign, source = text.partition("=")
        if not (name and sign and source):
            raise click.UsageError(f"--data must be DOMAIN=SOURCE, not {text!r}")
        if name not in {domain.name for domain in domains}:
            raise click.UsageError(f"--data names {name!r}, which is not among the domains")
        if name in sources:
            raise click.UsageError(f"--data names {name!r} twice")
        sources[name] = source
    records = {domain.name: load_records(domain, sources.get(domain.name)) for domain in domains}
    for name, some in records.items():
        require_splits(some, "test", source=name)
    return records


def tokenizer_of(base: str) -> "PreTrainedTokenizerBase":
    """Its tokenizer; where that has no chat template, with ours, which stderr is told."""
    from mergekit_av.models.chat import ensure_chat_template
    from mergekit_av.models.load import load_tokenizer

    tokenizer = load_tokenizer(base)
    if notice := ensure_chat_template(tokenizer):
        say(f"{base}: {notice}", err=True)
    return tokenizer


def tell(tokenizer: "PreTrainedTokenizerBase", tasks: "Iterable[Task]") -> None:
    """Say on stderr, once for all tasks, what of their records is not scored as it stands there."""
    from mergekit_av.models.chat import cut_notice

    from .accuracy import left_out

    scored = {(task.name, task.split): task for task in tasks}.values()
    for task in scored:
        for line in left_out(f"{task.name} {task.split}", task.too_long, task.equal):
            say(line, err=True)
    if notice := cut_notice(tokenizer, [record for task in scored for record in task.records]):
        say(notice, err=True)
