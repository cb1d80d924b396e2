"""`av-train`: from records to an alignment vector."""

import logging
import os
import warnings
from pathlib import Path

import click

from mergekit_av.training.settings import COMMON, HOLD, PAIRING, PATIENCE, SETTING, SETTINGS

from .check import summary
from .command import command, given, overwrite_option, say


def _listed(values):
    """Return fields and their values as they are typed."""
    texts = ((k, v if isinstance(v, list) else [v]) for k, v in values.items())
    return ", ".join(f"{key} {' '.join(map(str, value))}" for key, value in texts)


EPILOG = (
    "Every field of TRL's DPOConfig is an option as well, under its own name "
    "(--learning_rate 2e-5 --num_train_epochs 2), and those of its ModelConfig for LoRA: --use_peft, "
    "--lora_r, --lora_alpha, --lora_dropout, --lora_target_modules, --use_rslora, --load_in_4bit, "
    "--load_in_8bit, --bnb_4bit_quant_type, --use_bnb_nested_quant; and --lora_layers, the share of the layers, "
    "from the output on, that get factors. Defaults that are not TRL's: "
    f"{_listed(COMMON)}; bf16 where the processor or GPU has instructions for it; with "
    + "; with ".join(f"--setting {name} {_listed(values)}" for name, values in SETTINGS.items())
    + "."
)


@command
@click.option(
    "--domain",
    "domains",
    multiple=True,
    metavar="NAME|FILE.yml",
    help="What to train on; given several times, one vector after the other is made.",
)
@click.option(
    "--joint",
    metavar="DOMAIN=LEVEL,…",
    help="Instead of a domain: one model for one level in each of several, to compare sums of "
    "vectors with.",
)
@click.option("--base", help="Model to align: a folder or Hub id.  [default: the default base]")
@click.option(
    "--data",
    help="Records instead of the domain's own: a file, a folder of av-synth or a Hub dataset id.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder to write.  [default: avs/DOMAIN]"
)
@click.option(
    "--pairs",
    type=click.Choice(["adjacent", "all"]),
    help="Which levels to compare: neighbours alone, or the preferred one with all others.  [default: "
    + ", ".join(f"{pairing} with {name}" for name, pairing in PAIRING.items())
    + "]",
)
@click.option(
    "--setting",
    type=click.Choice(list(SETTINGS)),
    default=SETTING,
    help="How to train: each level at a λ of its own, in factors of low rank (lora) or in all weights "
    "(spectrum); or as the paper does, all weights at λ = 1 alone.",
)
@click.option(
    "--lambdas",
    metavar="λ,…",
    help="At which λ to train it. 1,-1 trains both directions: the best level at 1, the last at -1; "
    "1,-0.5,-1 the middle one of three as well.  [default: 1 in the paper's setting and with --joint; "
    "else these, without a middle level that the base prefers by itself]",
)
@click.option(
    "--hold",
    multiple=True,
    metavar="NAME|FILE.yml",
    help="A domain in which the vector shall change nothing, so that it can be summed with that "
    "domain's own: beside each pair it learns to predict a text of it as the base does. Of several "
    "--domain each is left out where it is trained itself.",
)
@click.option(
    "--hold-weight",
    type=click.FloatRange(min=0, min_open=True),
    default=HOLD,
    show_default=True,
    help="The weight of that in the loss.",
)
@click.option("--max-records", type=click.IntRange(min=1), help="Train on the first so many only.")
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float32"]),
    default="bfloat16",
    help="What the vector is stored in.",
)
@click.option(
    "--patience",
    type=click.IntRange(min=1),
    default=PATIENCE,
    help="Evaluations without a lower validation loss after which training stops.",
)
@click.option("--config", type=click.Path(path_type=Path), help="YAML file of DPOConfig's fields.")
@click.option("--keep-aligned", is_flag=True, help="Keep the aligned model in runs/DOMAIN/aligned.")
@click.option(
    "--resume",
    is_flag=True,
    help="Continue a run that was interrupted; keep a vector that is done.",
)
@click.option(
    "--push-to-hub", metavar="ID", help="Push the vector to this repository when it is done."
)
@click.option("--private", is_flag=True, help="With --push-to-hub: make the repository private.")
@overwrite_option
@click.argument("dpo_options", nargs=-1, type=click.UNPROCESSED)
def av_train(lambdas, hold_weight, dpo_options, **options):
    """Train an alignment vector with DPO (IPO loss) on a domain's records.

    Several processes: torchrun --nproc_per_node 2 --no-python av-train --domain medical
    """
    # A bar that is full within a second is no news.
    os.environ.setdefault("TQDM_DELAY", "1")
    # TRL would report each training to the Hub; who wants that sets it to 0.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

    from mergekit_av.training.config import TrainConfig
    from mergekit_av.training.lambdas import parse_lambdas

    config = TrainConfig(
        lambdas=parse_lambdas(lambdas) if lambdas else None,
        hold_weight=hold_weight if "--hold-weight" in given() else None,
        arguments=dpo_options,
        **options,
    )

    from mergekit_av.training.train import train

    # transformers announces that fields which TRL uses are to be renamed; no user can help it.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.getLogger("mergekit_av").setLevel(logging.INFO)
    commit = train(config, on_vector=_show).commit
    if commit:
        say(commit)


# What is not an option of ours is one of DPOConfig's.
av_train.context_settings["ignore_unknown_options"] = True
av_train.epilog = EPILOG


def _show(vector):
    """Print a vector, and how its training went."""
    say(summary(vector))
    training = vector.metadata.training or {}
    losses = {e["step"]: e["eval_loss"] for e in training.get("losses", []) if "eval_loss" in e}
    text = f"  {training.get('records', '?')} records, {training.get('steps', '?')} steps"
    if losses:
        best = min(losses, key=losses.__getitem__)
        text += f", lowest validation loss {losses[best]:.4g} at step {best}"
    say(text)
