"""What operations on a finished vector do to its usable range.

Each variant of a vector is written as a vector of its own and measured, as by av-sweep, at some λ:
preference accuracies on validation records, the smooth margins behind them, and the damage that the
guard of the usable range sees in the model's own answers (1 is its limit). Beside it stands the damage
of the plain vector at the λ that gives the same margin of the best level over the worst. An operation
earns its place where it does less; one that only stretches λ does not.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import torch
from mergekit.sparsify import RescaleNorm, SparsificationMethod, sparsify

from mergekit_av import AlignmentVector, Knobs, load_domain, load_records
from mergekit_av.errors import AVError
from mergekit_av.evaluation.measure.cache import Cache, Identity
from mergekit_av.evaluation.measure.engine import Engine
from mergekit_av.evaluation.measure.store import EVALUATIONS, Store
from mergekit_av.evaluation.sweep.sweep import Point, sweep
from mergekit_av.evaluation.tasks import make_task
from mergekit_av.hub.source import resolve
from mergekit_av.io.checkpoint import Checkpoint, blocks_of
from mergekit_av.io.fingerprint import fingerprint
from mergekit_av.models.decoding import Decoding
from mergekit_av.models.default_base import base_or_default
from mergekit_av.models.load import load_model, load_tokenizer
from mergekit_av.vectors.low_rank import low_rank
from mergekit_av.vectors.origin import Origin
from mergekit_av.vectors.writing import write_vector

Operation = Callable[[str, torch.Tensor], torch.Tensor]
DENSITIES = (0.5, 0.2, 0.1)
RANKS = (8, 32, 128)
# recipes/layers.yml: mergekit's gradient over the layers.
LAYERS = (0.0, 0.5, 1.0, 1.0)
# λ of the plain vector, with which everything else is compared.
YARDSTICK = (-1.0, -0.5, 0.5, 1.0)


def operations(others: list[AlignmentVector], layers: int) -> dict[str, Operation]:
    """Name → what is done with each tensor (its name, its values in float32)."""

    def sparse(density: float, rescale: RescaleNorm | None = None) -> Operation:
        method = SparsificationMethod.magnitude
        return lambda _, delta: sparsify(delta, density, method, rescale_norm=rescale)

    def truncated(rank: int) -> Operation:
        def truncate(_: str, delta: torch.Tensor) -> torch.Tensor:
            if delta.dim() != 2:
                return delta
            b, a, _ = low_rank(delta, rank)
            return b @ a

        return truncate

    def without_shared(name: str, delta: torch.Tensor) -> torch.Tensor:
        shared = torch.stack([other.delta.dense(name).double().flatten() for other in others])
        flat = delta.double().flatten()
        # The part of it in the span of the others, by their Gram matrix.
        weights = torch.linalg.lstsq(shared @ shared.T, (shared @ flat)[:, None]).solution[:, 0]
        return (flat - weights @ shared).float().reshape(delta.shape)

    def without_embeddings(name: str, delta: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(delta) if "embed_tokens" in name else delta

    def profiled(name: str, delta: torch.Tensor) -> torch.Tensor:
        number = next((int(part) for part in name.split(".") if part.isdigit()), None)
        if number is None:
            # As mergekit: embeddings are before the layers, the last norm after them.
            return delta * LAYERS[0 if "embed_tokens" in name else -1]
        place = number / (layers - 1) * (len(LAYERS) - 1)
        low = min(int(place), len(LAYERS) - 2)
        return delta * (LAYERS[low] + (place - low) * (LAYERS[low + 1] - LAYERS[low]))

    return {
        "plain": lambda _, delta: delta,
        **{f"density {d}": sparse(d) for d in DENSITIES},
        **{f"density {d}, rescaled": sparse(d, RescaleNorm.l1) for d in DENSITIES},
        **{f"rank {r}": truncated(r) for r in RANKS},
        "without what it shares": without_shared,
        "without embeddings": without_embeddings,
        "layers 0 → 1": profiled,
    }


def write_variant(vector: AlignmentVector, operation: Operation, out: Path) -> AlignmentVector:
    """The vector after an operation, in the folder `out`; what is there already is opened."""
    if out.exists():
        return AlignmentVector.open(out)

    class Changed:
        shapes = vector.delta.shapes()

        def blocks(self, name: str) -> Iterator[torch.Tensor]:
            yield from blocks_of(operation(name, vector.delta.dense(name).float()))

        def origin(self) -> Origin:
            return Origin(vector.metadata.base)

    write_vector(
        out,
        Changed(),
        name=vector.metadata.name,
        config=vector.folder / "config.json",
        dtype=vector.metadata.precision["dtype"],
        precision={"difference": f"{vector.metadata.name}, {out.name}"},
    )
    return AlignmentVector.open(out)


def margins(point: Point) -> list[float]:
    """Mean log-probability of the best level over that of each other, in nats per token."""
    (result,) = point.results.values()
    best, *others = (estimate.value for estimate in result.mean_log_prob.values())
    return [best - other for other in others]


def row(name: str, norm: float, point: Point, plain: list[Point]) -> str:
    """One line of the table: what a variant does at one λ, against the plain vector's points."""
    (value,), (result,) = point.lambdas.values(), point.results.values()
    base = next(some for some in plain if some.lambdas == {"av": 0})
    damage = point.fluency.damage(base.fluency)
    curve = sorted((margins(some)[-1], some.fluency.damage(base.fluency)) for some in plain)
    same = np.interp(margins(point)[-1], *zip(*curve, strict=True))
    shares = " / ".join(f"{estimate.value:.2f}" for estimate in result.accuracy.values())
    over = " / ".join(f"{margin:+.2f}" for margin in margins(point))
    return f"| {name} | {norm:.0%} | {value:+g} | {shares} | {over} | {damage:.2f} | {same:.2f} |"


@click.command(context_settings={"show_default": True})
@click.option("--av", default="avs/medical", help="The vector; its name is that of a domain.")
@click.option(
    "--other", "others", multiple=True, default=("avs/financial", "avs/legal"),
    help="Vectors of the same base: what they share with it is removed.",
)  # fmt: skip
@click.option("--base", help="Base model: a folder or Hub id.  [default: the default base]")
@click.option("--lambda", "lambdas", multiple=True, type=float, default=(-1, 1))
@click.option("--only", multiple=True, help="Variants to measure.  [default: all]")
@click.option("--records", default=8, help="Validation records scored.")
@click.option("--generate", default=6, help="Of them answered by the model itself.")
@click.option("--max-new-tokens", default=60)
@click.option("--out", type=click.Path(path_type=Path), default=Path("trials/vector_side"))
def main(av, others, base, lambdas, only, records, generate, max_new_tokens, out):
    """Print a Markdown table: variant, its norm, λ, accuracies, margins, damage, plain's damage.

    Variants and evaluations are kept in OUT; the same command goes on where it was.
    """
    source = base_or_default(base)
    vector = AlignmentVector.open(av)
    model, tokenizer = load_model(source), load_tokenizer(source)
    chosen = operations(
        [AlignmentVector.open(other) for other in others], model.config.num_hidden_layers
    )
    if unknown := set(only) - set(chosen):
        raise AVError(f"no variant {unknown.pop()!r}: there are {', '.join(chosen)}")
    domain = load_domain(vector.metadata.name)
    given = load_records(domain)
    task = make_task(model, tokenizer, domain, given, "validation", limit=records)
    asked = make_task(
        model, tokenizer, domain, given, "validation", limit=generate, new_tokens=max_new_tokens
    )
    levels = "/".join(domain.levels)
    click.echo(f"{vector.metadata.base.id}, {av}, {len(task.records)} validation records,")
    click.echo(f"{len(asked.records)} answers of up to {max_new_tokens} tokens, float32\n")
    click.echo(f"| variant | norm | λ | accuracy {levels} | margins | damage | of plain |")
    click.echo("| --- | --- | --- | --- | --- | --- | --- |")
    identity = fingerprint(Checkpoint(resolve(source)))
    plain: list[Point] = []
    with Store(out / EVALUATIONS) as store:
        for name in ("plain", *(only or list(chosen)[1:])):
            variant = write_variant(vector, chosen[name], out / name)
            norm = variant.metadata.statistics["norm"] / vector.metadata.statistics["norm"]
            knobs = Knobs(model, {"av": variant}, rounding="nearest")
            cache = Cache(
                Engine(knobs, model, tokenizer),
                Identity.of(identity, knobs.vectors, knobs.rounding, knobs.seed, model.dtype),
                store,
            )
            values = lambdas if plain else YARDSTICK
            points = list(sweep(cache, "av", values, [task], asked, Decoding(max_new_tokens)))
            points.sort(key=lambda point: point.lambdas["av"])
            for point in points:
                if not plain or point.lambdas["av"]:
                    click.echo(row(name, norm, point, plain or points))
            plain = plain or points
            knobs.detach()


if __name__ == "__main__":
    main()
