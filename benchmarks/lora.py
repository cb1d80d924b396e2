"""What a LoRA adapter keeps of its alignment vector, by rank.

The vector is exported at each rank, loaded with PEFT, and scored at some λ on the records that the
vector itself is scored on at the same λ. `effect kept` is the share of the vector's change against
the base that is left, as the slope of a line through the origin over all mean log-probabilities;
`off by` is the mean absolute difference between adapter and vector, in nats per token.
"""

import tempfile
from pathlib import Path

import click
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from mergekit_av import (
    AlignmentVector,
    Knobs,
    export_lora,
    load_domain,
    load_records,
    mean_log_probs,
)
from mergekit_av.models.default_base import base_or_default
from mergekit_av.models.load import load_model, load_tokenizer
from mergekit_av.stats import votes


@click.command(context_settings={"show_default": True})
@click.option("--av", default="avs/medical", help="The vector; its name is that of a domain.")
@click.option("--base", help="Base model: a folder or Hub id.  [default: the default base]")
@click.option("--rank", "ranks", multiple=True, type=int, default=(8, 16, 32, 64, 128, 256))
@click.option("--lambda", "lambdas", multiple=True, type=float, default=(-0.5, 0.5))
@click.option("--records", default=8, help="Validation records scored.")
def main(av, base, ranks, lambdas, records):
    """Print a Markdown table: rank, size, share of the squared norm, and what that does at λ."""
    source = base_or_default(base)
    model, tokenizer = load_model(source), load_tokenizer(source)
    vector = AlignmentVector.open(av)
    domain = load_domain(vector.metadata.name)
    chosen = [r for r in load_records(domain) if r.split == "validation"][:records]
    levels = "/".join(domain.levels)

    def score(scored, name: str) -> torch.Tensor:
        return mean_log_probs(scored, tokenizer, chosen, progress=name)

    at_base = score(model, "base")
    knobs = Knobs(model, {"av": vector}, rounding="nearest")
    whole = {}
    for value in lambdas:
        with knobs.at(av=value):
            whole[value] = score(model, f"vector, λ {value:+g}")
    knobs.detach()

    click.echo(f"{vector.metadata.base.id}, {av}, {len(chosen)} validation records, float32\n")
    click.echo(
        f"| rank | MB | squared norm | λ | accuracy {levels} | margins | effect kept | off by |"
    )
    click.echo("| --- | --- | --- | --- | --- | --- | --- | --- |")
    files = sum(file.stat().st_size for file in vector.delta.files)
    for value in lambdas:
        _row("vector", files, 1.0, value, whole[value], whole[value], at_base)
    with tempfile.TemporaryDirectory() as scratch:
        for rank in ranks:
            export = export_lora(vector, Path(scratch) / str(rank), rank)
            adapted = PeftModel.from_pretrained(model, export.folder).eval()
            for value in lambdas:
                for module in adapted.modules():
                    if isinstance(module, LoraLayer):
                        module.set_scale("default", value)
                found = score(adapted.get_base_model(), f"rank {rank}, λ {value:+g}")
                _row(rank, export.nbytes, export.kept, value, found, whole[value], at_base)
            model = adapted.unload()


def _row(
    rank: int | str,
    nbytes: int,
    kept: float,
    value: float,
    found: torch.Tensor,
    wanted: torch.Tensor,
    at_base: torch.Tensor,
) -> None:
    wins = votes(found.numpy()) / len(found)
    shares = " / ".join(f"{share:.2f}" for share in wins.tolist())
    best, *worse = found.mean(0).tolist()
    margins = " / ".join(f"{best - other:+.2f}" for other in worse)
    change, full = (found - at_base).flatten(), (wanted - at_base).flatten()
    effect, off = (full @ change / (full @ full)).item(), (found - wanted).abs().mean().item()
    click.echo(
        f"| {rank} | {nbytes / 1e6:.0f} | {kept:.0%} | {value:+g} | {shares} | {margins} | "
        f"{effect:.0%} | {off:.2f} |"
    )


if __name__ == "__main__":
    main()
