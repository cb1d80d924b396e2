"""An epoch of `av-train --setting lora` against one of `--setting spectrum`, on the same records.

Both are whole commands, with the same records, λ and losses. Each is run for one epoch and for three, and
what an epoch takes is half of the difference: loading, scoring and the reference are left out. Memory is the
process's own peak.
"""

import os
import sys
import tempfile
from pathlib import Path

import click
from measure import Run, interleaved, machine, ratios, run_command, spread, verdict

from mergekit_av.models.default_base import base_or_default

FASTER, SMALLER = 1 / 2.5, 0.6  # targets


@click.command(context_settings={"show_default": True})
@click.option("--repeat", type=click.IntRange(min=1), default=3, help="Measured runs of each side.")
@click.option("--base", help="Base model: a folder or Hub id.  [default: the default base]")
@click.option("--domain", default="medical", help="On whose training records.")
@click.option("--records", type=click.IntRange(min=1), default=4, help="So many of them.")
@click.option("--lambdas", default="1,-0.5,-1", help="At which λ.")
@click.option("--bf16/--no-bf16", default=False, help="Matrix products in bfloat16.")
@click.option("--program", type=click.Path(), help="Another av-train, for the side `spectrum`.")
def main(repeat, base, domain, records, lambdas, bf16, program):
    """Time of an epoch, and peak memory, of low-rank training against training all weights."""
    folder = Path(base_or_default(base)).absolute()
    own = str(Path(sys.executable).with_name("av-train"))
    programs = {"lora": own, "spectrum": program or own}
    click.echo(machine())
    threads = os.environ.get("OMP_NUM_THREADS", "default")
    click.echo(f"{folder.name}, {records} {domain} records at λ {lambdas}, {threads} threads")

    def train(setting: str, epochs: int) -> Run:
        with tempfile.TemporaryDirectory() as scratch:
            environment = {**os.environ, "TQDM_DISABLE": "1"}
            options = {
                "--domain": domain,
                "--base": folder,
                "--setting": setting,
                "--lambdas": lambdas,
                "--max-records": records,
                "--num_train_epochs": epochs,
                "--bf16": str(bf16).lower(),
                "--save_strategy": "no",
                "--out": f"{scratch}/av",
                "--output_dir": f"{scratch}/run",
            }
            words = [str(word) for pair in options.items() for word in pair]
            return run_command([programs[setting], *words], environment)

    def epoch(setting: str) -> Run:
        short, long = train(setting, 1), train(setting, 3)
        return Run((long.seconds - short.seconds) / 2, long.peak)

    runs = interleaved({name: lambda name=name: epoch(name) for name in programs}, repeat)
    for name, some in runs.items():
        seconds, peak = [run.seconds for run in some], max(run.peak for run in some)
        click.echo(f"  {name}: {spread(seconds)} s an epoch, {peak / 1e9:.2f} GB at most")
    faster = ratios(*([run.seconds for run in runs[n]] for n in ("lora", "spectrum")))
    smaller = ratios(*([float(run.peak) for run in runs[n]] for n in ("lora", "spectrum")))
    click.echo(f"  time ratio {spread(faster)}, {verdict(faster, FASTER)}")
    click.echo(f"  memory ratio {spread(smaller)}, {verdict(smaller, SMALLER)}")


if __name__ == "__main__":
    main()
