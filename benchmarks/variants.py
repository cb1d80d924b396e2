"""Ways to train a vector, compared by what its usable range holds.

Each variant is trained on each domain with each seed (av-train), swept (av-sweep), and gets a line
of the table: the usable range, the best preference accuracy of each level within it, on validation
records, which chose its λ, and on test records, and what the training cost. What is there from an
earlier run is not done again.

    python benchmarks/variants.py --variant paper --variant default --domain medical
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import click

from mergekit_av import AlignmentVector, load_domain

BOTH = ["--lambdas", "1,-1", "--beta", "0.25"]
SPECTRUM = ["--lambdas", "1,-0.5,-1", "--beta", "0.25"]
SFT = ["--loss_type", "ipo", "sft", "--loss_weights", "0.5", "1"]
FAST = ["--learning_rate", "3e-4", "--per_device_train_batch_size", "2"]
BEST = [*SPECTRUM, *SFT, *FAST]
LORA = ["--learning_rate", "1e-3"]
VARIANTS = {
    "default": ["--setting", "spectrum"],
    "paper": [],
    "beta-0.5": ["--beta", "0.5"],
    "lora": LORA,
    "both": BOTH,
    "both-sft": [*BOTH, *SFT],
    "both-sft-fast": [*BOTH, *SFT, *FAST],
    "spectrum-sft-fast": BEST,
    "spectrum-sft-fast-27": [*BEST, "--max-records", "27"],
    "spectrum-sft-2e-4": [*BEST, "--learning_rate", "2e-4"],
    "spectrum-sft-more": [*BEST, "--loss_weights", "0.2", "1"],
    "spectrum-sft-only": [*BEST, "--loss_weights", "0.01", "1"],
    "spectrum-sft-decay": [*BEST, "--weight_decay", "1"],
}
# One whole epoch for all, and no variant stopped by a loss that is not comparable; float32 products on
# any machine.
WHOLE = [
    "--eval_strategy", "no", "--save_strategy", "no",
    "--load_best_model_at_end", "false", "--bf16", "false",
]  # fmt: skip


@click.command()
@click.option("--variant", "variants", type=click.Choice(list(VARIANTS)), multiple=True,
              help="By default all.")  # fmt: skip
@click.option("--domain", "domains", multiple=True, default=("medical", "financial", "legal"),
              show_default=True)  # fmt: skip
@click.option("--seed", "seeds", type=int, multiple=True, default=(42, 43), show_default=True)
@click.option("--lambda", "lambdas", default="-1,-0.7,-0.5,-0.4,-0.3,-0.2,0.2,0.3,0.4,0.5,0.75,1",
              show_default=True)  # fmt: skip
@click.option("--generate", default=10, show_default=True)
@click.option("--gen-kwargs", default="do_sample=true,temperature=0.7,top_p=0.9", show_default=True,
              help="How they are answered, as in av-sweep.")  # fmt: skip
@click.option("--max-records", type=int)
@click.option("--base", help="By default the default base.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("trials/variants"),
              show_default=True)  # fmt: skip
@click.option("--table-only", is_flag=True, help="Of what is there; train and sweep nothing.")
def main(
    variants, domains, seeds, lambdas, generate, gen_kwargs, max_records, base, out, table_only
):
    """Print a Markdown table of variants, domains and seeds."""
    on = ["--base", base] if base else []
    runs = [
        (variant, domain, seed, out / f"{variant}-{domain}-{seed}")
        for variant in variants or VARIANTS
        for domain in domains
        for seed in seeds
    ]
    for variant, domain, seed, folder in () if table_only else runs:
        vector, sweep = folder / "av", folder / "sweep"
        if not vector.exists():
            own = VARIANTS[variant]
            if own is LORA:
                program = [sys.executable, Path(__file__).with_name("lora_trained.py")]
            else:
                program = [
                    "av-train",
                    "--setting",
                    "paper",
                    "--output_dir",
                    folder / "run",
                    "--overwrite",
                ]
            command = [*program, "--domain", domain, "--out", vector, "--seed", seed, *WHOLE, *own]
            _run([*command, *on])
        if not (sweep / "sweep.json").exists():
            records = ["--max-records", max_records] if max_records else []
            answers = ["--generate", generate, "--gen-kwargs", gen_kwargs]
            command = ["av-sweep", "--av", f"{domain}={vector}", f"--lambda={lambdas}", *answers,
                       "--no-prompting", "--out", sweep, *records]  # fmt: skip
            _run([*command, *on])
    levels = [f"{level}: validation / test, λ" for level in load_domain(domains[0]).levels]
    head = ["variant", "domain", "seed", "usable range", *levels, "norm", "minutes"]
    click.echo()
    _row(head)
    _row(["---"] * len(head))
    for variant, domain, seed, folder in runs:
        if (folder / "sweep/sweep.json").exists():
            _line(variant, domain, seed, folder)


def _run(command: list) -> None:
    words = [str(word) for word in command]
    click.echo("$ " + shlex.join(words), err=True)
    program = Path(sys.executable).parent / words[0]
    subprocess.run([program, *words[1:]], check=True, stdout=subprocess.DEVNULL)


def _line(variant: str, domain: str, seed: int, folder: Path) -> None:
    found = json.loads((folder / "sweep/sweep.json").read_text("utf-8"))["sweeps"][0]
    metadata = AlignmentVector.open(folder / "av").metadata
    low, high = found["usable_range"]
    cells = [
        f"{best['validation']:.2f} / {best['test']['value']:.2f} "
        f"({best['test']['low']:.2f}–{best['test']['high']:.2f}) at {best['lambda']:g}"
        for best in found["best_usable"].values()
    ]
    minutes = ((metadata.training or {}).get("seconds") or float("nan")) / 60
    norm = metadata.statistics["norm"]
    _row([variant, domain, seed, f"{low:g} … {high:g}", *cells, f"{norm:.2f}", f"{minutes:.0f}"])


def _row(cells: list) -> None:
    click.echo("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
