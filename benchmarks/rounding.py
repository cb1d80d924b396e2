"""What rounding to bfloat16 does to λ: each way of rounding against the float32 result.

For every λ the same test records are scored three times, with the weights base + λ·AV in float32,
rounded to bfloat16 stochastically, and rounded to nearest. Computation is in float32 throughout:
only the weights differ. `kept` is the share of the float32 change against the base that is left,
as the slope of a line through the origin over all mean log-probabilities.
"""

from pathlib import Path

import click
import torch

from mergekit_av import AlignmentVector, load_domain, load_records, mean_log_probs
from mergekit_av.hub.source import resolve
from mergekit_av.io.checkpoint import Checkpoint
from mergekit_av.models.default_base import base_or_default
from mergekit_av.models.load import load_model, load_tokenizer
from mergekit_av.stats import votes
from mergekit_av.vectors.arithmetic import add_vectors


@click.command()
@click.option("--av", default="avs/medical", show_default=True)
@click.option("--base", help="By default the default base.")
@click.option("--domain", default="medical", show_default=True)
@click.option(
    "--lambda", "lambdas", multiple=True, type=float, default=(-1, -0.5, -0.2, 0.2, 0.5, 1),
    show_default=True,
)  # fmt: skip
@click.option("--seed", default=0, show_default=True)
def main(av, base, domain, lambdas, seed):
    """Print a Markdown table: λ, rounding, accuracies, mean log-probabilities, share kept."""
    folder = resolve(base_or_default(base))
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    records = [r for r in load_records(load_domain(domain)) if r.split == "test"]
    vector, weights = AlignmentVector.open(av), Checkpoint(folder)
    vector.check_base(Path(folder))

    def score(value: float, rounding: str) -> torch.Tensor:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                before = weights.read(name)
                if rounding == "float32":
                    before = before.float()
                terms = [(value, vector.delta.dense(name).to(before.device))]
                how = "stochastic" if rounding == "float32" else rounding
                parameter.copy_(add_vectors(before, terms, name=name, rounding=how, seed=seed))
        return mean_log_probs(model, tokenizer, records, progress=f"λ {value:+g} {rounding}")

    at_base = score(0, "float32")
    levels = list(records[0].responses)
    click.echo(f"{vector.metadata.base.id}, {av}, {len(records)} test records of {domain}\n")
    click.echo(f"| λ | weights | accuracy {'/'.join(levels)} | mean log-probability | kept |")
    click.echo("| --- | --- | --- | --- | --- |")
    _row(0, "base", at_base, None)
    for value in lambdas:
        exact = score(value, "float32")
        _row(value, "float32", exact, 1.0)
        for rounding in ("stochastic", "nearest"):
            rounded = score(value, rounding)
            wanted, found = (exact - at_base).flatten(), (rounded - at_base).flatten()
            _row(
                value, f"bfloat16, {rounding}", rounded, (wanted @ found / (wanted @ wanted)).item()
            )


def _row(value: float, weights: str, scores: torch.Tensor, kept: float | None) -> None:
    wins = votes(scores.numpy()) / len(scores)
    shares = " / ".join(f"{share:.2f}" for share in wins.tolist())
    means = " / ".join(f"{mean:.2f}" for mean in scores.mean(0).tolist())
    click.echo(
        f"| {value:+g} | {weights} | {shares} | {means} | {'' if kept is None else f'{kept:.0%}'} |"
    )


if __name__ == "__main__":
    main()
