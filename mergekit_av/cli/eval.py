"""`av-eval`: what does a model prefer?"""

import contextlib
import importlib.metadata
import json
from pathlib import Path

import click

from mergekit_av.cli.options.decoding import decoding_options
from mergekit_av.cli.options.judge import judge_options
from mergekit_av.data.domain import built_in_domains, load_domain
from mergekit_av.io.atomic import check_file, write_whole

from .command import command, say

VERSIONS = ("mergekit-av", "torch", "transformers")


@command
@click.argument("model", required=False)
@click.option(
    "--domain", "domains", multiple=True, metavar="NAME|FILE.yml",
    help="Domain to score; may be given several times.  [default: all whose records are built in]",
)  # fmt: skip
@click.option("--data", help="Records instead of the domain's own: a file or a Hub dataset id.")
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="test")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16", "auto"]), default="float32",
    help="What the model computes in; auto is the checkpoint's own.",
)  # fmt: skip
@click.option("--device", help="A torch device.  [default: the accelerator if there is one]")
@click.option(
    "--answers", type=click.IntRange(min=0), default=0,
    help="Show the model's answers to so many records of each domain.",
)  # fmt: skip
@decoding_options(max_new_tokens=256)
@judge_options
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write everything here.",
)  # fmt: skip
def av_eval(model, domains, data, split, dtype, device, answers, decoding, judging, json_file):
    """Preference accuracy of MODEL, a folder or a Hub id; without MODEL, of the default base.

    For each record, the level whose response has the highest mean log-probability is preferred;
    a level's accuracy is the share of records that prefer it.

    With --judge a language model also labels what MODEL answers. Beside the shares of the levels
    stands how far the same judge agrees with the known levels of the records' own responses.
    """
    if data and len(domains) != 1:
        raise click.UsageError("--data goes with exactly one --domain")
    chosen = [load_domain(name) for name in domains] or _with_records(split)
    if len({domain.name for domain in chosen}) < len(chosen):
        raise click.UsageError("two of the domains have the same name")

    from mergekit_av.data.records import load_records, require_splits
    from mergekit_av.evaluation.accuracy import as_json, evaluate, left_out, table
    from mergekit_av.evaluation.judge.run import judge_model
    from mergekit_av.evaluation.judge.tally import judged_table
    from mergekit_av.hub.source import resolve
    from mergekit_av.io.checkpoint import Checkpoint
    from mergekit_av.io.fingerprint import fingerprint
    from mergekit_av.models.chat import cut_notice, ensure_chat_template
    from mergekit_av.models.default_base import base_or_default
    from mergekit_av.models.generation import write_answers
    from mergekit_av.models.load import load_model, load_tokenizer

    if json_file:
        check_file(json_file)
    records = [load_records(domain, data) for domain in chosen]
    for domain, some in zip(chosen, records, strict=True):
        require_splits(some, split, source=domain.name)
    with judging.judge() if judging else contextlib.nullcontext() as judge:
        source = base_or_default(model)
        network = load_model(source, dtype=dtype, device=device)
        tokenizer = load_tokenizer(source)
        if notice := ensure_chat_template(tokenizer):
            say(f"{source}: {notice}", err=True)
        if notice := cut_notice(
            tokenizer, [r for some in records for r in some if r.split == split]
        ):
            say(notice, err=True)

        identity = fingerprint(Checkpoint(resolve(source))) if json_file or judge else None
        report = {
            "model": source,
            "fingerprint": identity,
            "dtype": str(network.dtype).removeprefix("torch."),
            "device": str(network.device),
            "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
        }
        results, written = [], {}
        for domain, some in zip(chosen, records, strict=True):
            result = evaluate(network, tokenizer, domain, some, split=split)
            results.append(result)
            if answers:
                shown = [record for record in some if record.id in result.scores][:answers]
                answered = write_answers(network, tokenizer, shown, decoding)
                written[domain.name] = {id: answer.text for id, answer in answered.items()}
        say(f"{source} ({report['dtype']} on {report['device']}), {split} records")
        say(table(results))
        for result in results:
            for line in left_out(result.domain, result.too_long, result.equal):
                say(line)
        for name, pairs in written.items():
            for id, answer in pairs.items():
                say(f"\n{name}, {id}: {answer}")
        report.update(domains=[as_json(result) for result in results], answers=written)
        if judge:
            judged = [
                judge_model(
                    network, tokenizer, identity, domain, some, judge,
                    split=split, sample=judging.sample, decoding=decoding,
                )
                for domain, some in zip(chosen, records, strict=True)
            ]  # fmt: skip
            say(f"\njudged by {judge.client.endpoint.model}\n{judged_table(judged)}")
            report["judge"] = {**judge.as_json(), "domains": [one.as_json() for one in judged]}
    if json_file:
        write_whole(json_file, json.dumps(report, indent=2, allow_nan=False) + "\n")


def _with_records(split):
    """The built-in domains whose records come with the package, where some are in the split."""
    domains = [load_domain(name) for name in built_in_domains()]
    return [
        domain
        for domain in domains
        if domain.records and Path(domain.records).is_file() and domain.split in (None, split)
    ]
