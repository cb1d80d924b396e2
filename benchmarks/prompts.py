"""A training step with each prompt computed once a batch, against TRL's, which computes it in every row.

Both sides train the same loaded base on the same batches: forward and backward of the default
setting's losses, without the step of the optimizer, which is the same for both. Of two pairs a
batch, they are one record's, as at a λ whose level has two neighbours, or two records', as at the
ends of the spectrum.
"""

import tempfile
import time

import click
import torch
from datasets import Dataset
from measure import Run, interleaved, machine, ratios, spread, verdict
from trl import DPOConfig, DPOTrainer

from mergekit_av import load_domain, load_records
from mergekit_av.models.default_base import base_or_default
from mergekit_av.models.load import load_model, load_tokenizer
from mergekit_av.training.pairs import preference_pairs
from mergekit_av.training.settings import COMMON, SETTINGS
from mergekit_av.training.shared_prompts import SharedPromptsTrainer

OURS, TRL = "prompts once", "TRL"
TARGET = 0.9


@click.command(context_settings={"show_default": True})
@click.option("--repeat", type=click.IntRange(min=1), default=5, help="Measured runs of each side.")
@click.option("--base", help="Base model: a folder or Hub id.  [default: the default base]")
@click.option("--domain", default="medical", help="On whose training records.")
@click.option("--batches", type=click.IntRange(min=1), default=2, help="Of each kind, in a run.")
@click.option("--bf16", is_flag=True, help="Matrix products in bfloat16.")
def main(repeat, base, domain, batches, bf16):
    """Time of training steps with shared prompts, against TRL's own."""
    records = [record for record in load_records(load_domain(domain)) if record.split == "train"]
    pairs = preference_pairs(records[: 2 * batches])
    folder = base_or_default(base)
    trainers = {
        OURS: trainer(SharedPromptsTrainer, folder, pairs, bf16),
        TRL: trainer(DPOTrainer, folder, pairs, bf16),
    }
    click.echo(machine())
    click.echo(
        f"{base or 'SmolLM2-135M-Instruct (default base)'}, "
        f"{'bfloat16 products' if bf16 else 'float32'}, {torch.get_num_threads()} threads, {domain}, "
        f"{batches} batches of 2 pairs, {repeat} rounds"
    )
    # Two pairs a record, one after the other.
    kinds = {
        "pairs of one record": [[2 * n, 2 * n + 1] for n in range(batches)],
        "pairs of two records": [[4 * n, 4 * n + 2] for n in range(batches)],
    }
    for kind, rows in kinds.items():
        losses = {}

        def timed(name: str, rows=rows, losses=losses) -> Run:
            start = time.perf_counter()
            losses[name] = [step(trainers[name], some) for some in rows]
            return Run(time.perf_counter() - start)

        runs = interleaved({name: lambda name=name: timed(name) for name in trainers}, repeat)
        seconds = {name: [run.seconds for run in some] for name, some in runs.items()}
        off = max(abs(a - b) / abs(b) for a, b in zip(losses[OURS], losses[TRL], strict=True))
        ratio = ratios(seconds[OURS], seconds[TRL])
        tokens = {
            name: sum(counted(made, some) for some in rows) for name, made in trainers.items()
        }
        click.echo(f"{kind}: {tokens[OURS]} tokens for {tokens[TRL]}, losses off by {off:.0e}")
        for name, values in seconds.items():
            click.echo(f"  {name}: {spread([value / batches for value in values])} s a step")
        click.echo(f"  time ratio: {spread(ratio)}, {verdict(ratio, TARGET)}")


def trainer(kind: type[DPOTrainer], base, pairs, bf16: bool) -> DPOTrainer:
    """Return a trainer of the default setting, its reference computed."""
    # Another column: else TRL finds the reference that was computed in the other way.
    rows = Dataset.from_list([{**pair, "way": kind.__name__} for pair in pairs])
    with tempfile.TemporaryDirectory() as folder:
        made = kind(
            load_model(base, dtype="float32"),
            args=DPOConfig(output_dir=folder, bf16=bf16, **(COMMON | SETTINGS["spectrum"])),
            train_dataset=rows,
            processing_class=load_tokenizer(base),
        )
    made.model.train()
    return made


def step(trainer: DPOTrainer, rows: list[int]) -> float:
    """Compute loss and gradients of a batch; return the loss."""
    batch = trainer.data_collator([trainer.train_dataset[row] for row in rows])
    batch = {name: value.to(trainer.model.device) for name, value in batch.items()}
    trainer.model.zero_grad()
    with trainer.accelerator.autocast():
        loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item()  # on the CPU: the device has finished


@torch.no_grad()
def counted(trainer: DPOTrainer, rows: list[int]) -> int:
    """Return how many tokens of a batch go through the model's layers, padding among them."""
    seen = []
    handle = trainer.model.base_model.register_forward_hook(
        lambda module, args, output: seen.append(output.last_hidden_state[..., 0].numel())
    )
    batch = trainer.data_collator([trainer.train_dataset[row] for row in rows])
    trainer.compute_loss(
        trainer.model, {name: value.to(trainer.model.device) for name, value in batch.items()}
    )
    handle.remove()
    return sum(seen)


if __name__ == "__main__":
    main()
