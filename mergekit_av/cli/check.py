"""`av-check`: read a whole alignment vector and say whether it is sound."""

import click

from .command import command, say


@command
@click.argument("av")
@click.option("--base", help="Check as well that this model, folder or Hub id, is its base.")
def av_check(av, base):
    """Read the whole alignment vector AV, a folder or Hub id, and say whether it is sound."""
    from mergekit_av.hub.source import resolve
    from mergekit_av.io.checkpoint import Checkpoint
    from mergekit_av.io.json import read_json
    from mergekit_av.vectors.vector import AlignmentVector

    vector = AlignmentVector.open(av)
    read_json(vector.folder / "config.json")
    vector.check()
    vector.check_finite()
    if base:
        folder = resolve(base)
        vector.check_fit(Checkpoint(folder), base)
        vector.check_base(folder)
    say(summary(vector))
    if limits := vector.limits():
        say(f"  LIMITS: Knobs, apply_to, av-sweep, av-search and av-export refuse it: {limits}")


def summary(vector) -> str:
    """What a person wants to know of a vector, in a few lines."""
    metadata, statistics = vector.metadata, vector.metadata.statistics
    relative = ""
    if statistics.get("base_norm"):
        relative = f" ({statistics['norm'] / statistics['base_norm']:.2%} of the base's)"
    warning = (metadata.training or {}).get("warning")
    return "\n".join(
        [
            f"{vector.folder}: alignment vector {metadata.name!r} of {metadata.base.id}",
            f"  {statistics['weights']:,} weights in {metadata.precision['dtype']}{_rank(metadata)}, "
            f"difference {metadata.precision['difference']}",
            f"  norm {statistics['norm']:.4g}{relative}, "
            f"{statistics['unchanged']:.1%} of the weights unchanged",
            *([f"  WARNING: {warning}"] if warning else []),
        ]
    )


def _rank(metadata) -> str:
    """Of a low-rank vector its rank, in words."""
    return f", of rank {metadata.low_rank['rank']}" if metadata.low_rank else ""
