"""`av-train`: from records to an alignment vector."""

import functools
import gc
import logging
import math
import os
import warnings
from dataclasses import replace
from pathlib import Path

import click

from mergekit_av.errors import AVError
from mergekit_av.training.settings import COMMON, HOLD, PATIENCE, SETTING, SETTINGS

from .check import summary
from .command import command, given, overwrite_option, say

RUNS, VECTORS = Path("runs"), Path("avs")


def _listed(values):
    """Fields and their values as they are typed."""
    texts = ((k, v if isinstance(v, list) else [v]) for k, v in values.items())
    return ", ".join(f"{key} {' '.join(map(str, value))}" for key, value in texts)


EPILOG = (
    "Every field of TRL's DPOConfig is an option as well, under its own name "
    "(--learning_rate 2e-5 --num_train_epochs 2). Defaults that are not TRL's: "
    f"{_listed(COMMON)}; bf16 where the processor or GPU has instructions for it; with "
    + "; with ".join(f"--setting {name} {_listed(values)}" for name, values in SETTINGS.items())
    + "."
)


@command
@click.option(
    "--domain", "domains", multiple=True, metavar="NAME|FILE.yml",
    help="What to train on; given several times, one vector after the other is made.",
)  # fmt: skip
@click.option(
    "--joint", metavar="DOMAIN=LEVEL,…",
    help="Instead of a domain: one model for one level in each of several, to compare sums of "
    "vectors with.",
)  # fmt: skip
@click.option("--base", help="Model to align: a folder or Hub id.  [default: the default base]")
@click.option(
    "--data",
    help="Records instead of the domain's own: a file, a folder of av-synth or a Hub dataset id.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder to write.  [default: avs/DOMAIN]"
)
@click.option(
    "--pairs", type=click.Choice(["adjacent", "all"]), default="adjacent",
    help="Which levels to compare: each with the next one, or each with all below it.",
)  # fmt: skip
@click.option(
    "--setting", type=click.Choice(list(SETTINGS)), default=SETTING, show_default=True,
    help="How to train: each level at a λ of its own, or as the paper does, at λ = 1 alone.",
)  # fmt: skip
@click.option(
    "--lambdas", metavar="λ,…",
    help="At which λ to train it. 1,-1 trains both directions: the best level at 1, the last at -1; "
    "1,-0.5,-1 the middle one of three as well.  [default: 1 in the paper's setting and with --joint; "
    "else these, without a middle level that the base prefers by itself]",
)  # fmt: skip
@click.option(
    "--hold", "held", multiple=True, metavar="NAME|FILE.yml",
    help="A domain in which the vector shall change nothing, so that it can be summed with that "
    "domain's own: beside each pair it learns to predict a text of it as the base does. Of several "
    "--domain each is left out where it is trained itself.",
)  # fmt: skip
@click.option(
    "--hold-weight", type=click.FloatRange(min=0, min_open=True), default=HOLD, show_default=True,
    help="The weight of that in the loss.",
)  # fmt: skip
@click.option("--max-records", type=click.IntRange(min=1), help="Train on the first so many only.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), default="bfloat16",
              help="What the vector is stored in.")  # fmt: skip
@click.option(
    "--patience", type=click.IntRange(min=1), default=PATIENCE,
    help="Evaluations without a lower validation loss after which training stops.",
)  # fmt: skip
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
def av_train(
    domains, joint, base, data, out, pairs, setting, lambdas, held, hold_weight, max_records, dtype, patience, config, keep_aligned,
    resume, push_to_hub, private, overwrite, dpo_options,
):  # fmt: skip
    """Train an alignment vector with DPO (IPO loss) on a domain's records.

    Several processes: torchrun --nproc_per_node 2 --no-python av-train --domain medical
    """
    # A bar that is full within a second is no news.
    os.environ.setdefault("TQDM_DELAY", "1")
    # TRL would report each training to the Hub; who wants that sets it to 0.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

    from mergekit_av.data.domain import load_domain
    from mergekit_av.data.records import dataset_of, load_records, require_splits
    from mergekit_av.training.joint import joint_domain, parse_goal, wanted_first
    from mergekit_av.training.lambdas import parse_lambdas

    lambdas = lambdas and parse_lambdas(lambdas)
    if bool(domains) == bool(joint):
        raise click.UsageError("say what to train on: --domain, or --joint")
    if ((joint or len(domains) > 1) and data) or (len(domains) > 1 and out):
        raise click.UsageError("--data and --out go with exactly one --domain")
    if push_to_hub and len(domains) > 1:
        raise click.UsageError("--push-to-hub goes with exactly one --domain")
    if private and not push_to_hub:
        raise click.UsageError("--private goes with --push-to-hub")
    if not held and "--hold-weight" in given():
        raise click.UsageError("--hold-weight goes with --hold")
    if not math.isfinite(hold_weight):
        raise click.UsageError(f"--hold-weight must be a number, not {hold_weight}")
    if joint and held:
        raise click.UsageError("--hold goes with --domain: a joint model is summed with nothing")
    if joint and lambdas not in (None, (1.0,)):
        raise click.UsageError("--lambdas goes with --domain: a joint model has no other side")
    goal = None
    if joint:
        goal, parts = parse_goal(joint)
        chosen, pairs = [joint_domain(goal)], "first"
        some = [(part.name, _first(load_records(part), max_records)) for part in parts]
        records = [[r for name, part in some for r in wanted_first(part, name, goal[name])]]
    else:
        chosen = [load_domain(name) for name in domains]
        records = [_first(load_records(domain, data), max_records) for domain in chosen]
    _once("--domain", [domain.name for domain in chosen])
    others = [load_domain(name) for name in held]
    _once("--hold", [domain.name for domain in others])
    still = {}
    for domain in others:
        texts = load_records(domain)
        require_splits(texts, "train", "validation", source=domain.name)
        still[domain.name] = [r for r in _first(texts, max_records) if r.split != "test"]
    if len(chosen) == 1 and chosen[0].name in still:
        raise click.UsageError(f"--hold: {chosen[0].name} is what is trained")

    from mergekit_av.models.default_base import DEFAULT_BASE, base_or_default
    from mergekit_av.training.arguments import training_arguments
    from mergekit_av.training.base import load_base
    from mergekit_av.training.dpo import Job, check, train
    from mergekit_av.training.processes import in_main_process
    from mergekit_av.training.settled import lambdas_for

    # transformers announces that fields which TRL uses are to be renamed; no user can help it.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.getLogger("trl.trainer.dpo_trainer").addFilter(_not_said_by_us)
    logging.getLogger("mergekit_av").setLevel(logging.INFO)
    jobs = [
        Job(
            base=base or str(DEFAULT_BASE),
            domain=domain,
            records=some,
            out=out or VECTORS / domain.name,
            # A DPOConfig is changed by its trainer: each job has its own.
            arguments=training_arguments(
                dpo_options, config, setting, output_dir=str(RUNS / domain.name)
            ),
            pairing=pairs,
            lambdas=lambdas or (1.0,),
            held={name: part for name, part in still.items() if name != domain.name},
            hold=hold_weight,
            dtype=dtype,
            patience=patience,
            keep_aligned=keep_aligned,
            resume=resume,
            overwrite=overwrite,
            joint=goal,
            dataset=dataset_of(domain, data),
        )
        for domain, some in zip(chosen, records, strict=True)
    ]
    if len({job.run.folder for job in jobs}) < len(jobs):
        raise click.UsageError("--output_dir goes with exactly one --domain")
    # Before hours go into the first, all must be able to end, and stay so until the last.
    hold = click.get_current_context().with_resource
    in_main_process(lambda: [hold(job.locked()) for job in jobs])
    in_main_process(lambda: [check(job) for job in jobs])
    if push_to_hub:
        from mergekit_av.hub.upload import check_access

        in_main_process(lambda: check_access(push_to_hub))
    in_main_process(lambda: base_or_default(base))
    for job in jobs:
        load = functools.cache(functools.partial(load_base, job.base))
        if setting == "spectrum" and not (lambdas or joint or job.done):
            job = replace(job, lambdas=lambdas_for(load, job.domain, job.records))
        vector = train(job, load)
        gc.collect()  # a Trainer is part of a cycle; the next model needs the room
        if vector is not None:
            say(summary(vector))
            say(_outcome(vector.metadata.training or {}))
            if push_to_hub:
                say(_push(vector, push_to_hub, private))


# What is not an option of ours is one of DPOConfig's.
av_train.context_settings["ignore_unknown_options"] = True
av_train.epilog = EPILOG


def _first(records, count):
    """The first so many training records, all where there is no count; and all others."""
    training = [record for record in records if record.split == "train"]
    return training[:count] + [record for record in records if record.split != "train"]


def _not_said_by_us(record):
    """Whether a message of TRL's is news: that prompts are cut, we say ourselves, and shorter."""
    return "is not a prefix of the tokenized" not in record.getMessage()


def _once(option, names):
    """Refuse a name that is given twice."""
    if len(set(names)) < len(names):
        raise click.UsageError(f"{option}: {max(names, key=names.count)} is given twice")


def _push(vector, repo, private):
    """Push a vector that is whole on disk, whatever comes of it."""
    try:
        return vector.push_to_hub(repo, private=private or None)
    except AVError as error:
        flag = " --private" if private else ""
        raise AVError(
            f"{error}; the vector is whole, push it with `av-push {vector.folder} {repo}{flag}`"
        ) from error


def _outcome(training):
    """How a training went, in a line."""
    losses = {e["step"]: e["eval_loss"] for e in training.get("losses", []) if "eval_loss" in e}
    text = f"  {training.get('records', '?')} records, {training.get('steps', '?')} steps"
    if losses:
        best = min(losses, key=losses.get)
        text += f", lowest validation loss {losses[best]:.4g} at step {best}"
    return text
