"""`av-eval`: what does a model prefer?"""

import importlib.metadata
import json
from pathlib import Path

import click

from mergekit_av.cli import command
from mergekit_av.domains import built_in_domains, load_domain
from mergekit_av.files import write_whole

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
    help="Show the model's greedy answers to so many records of each domain.",
)  # fmt: skip
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write everything here.")
def av_eval(model, domains, data, split, dtype, device, answers, json_file):
    """Preference accuracy of MODEL, a folder or a Hub id; without MODEL, of the default base.

    For each record, the level whose response has the highest mean log-probability is preferred;
    a level's accuracy is the share of records that prefer it.
    """
    chosen = [load_domain(name) for name in domains] or _with_records()
    if data and len(chosen) != 1:
        raise click.UsageError("--data goes with exactly one --domain")

    from mergekit_av.base import base_or_default
    from mergekit_av.chat import ensure_chat_template
    from mergekit_av.checkpoint import Checkpoint, fingerprint
    from mergekit_av.models import load_model, load_tokenizer, resolve
    from mergekit_av.records import load_records

    from .accuracy import as_json, evaluate, table

    records = {domain.name: load_records(domain, data) for domain in chosen}
    source = base_or_default(model)
    network = load_model(source, dtype=dtype, device=device)
    tokenizer = load_tokenizer(source)
    if notice := ensure_chat_template(tokenizer):
        click.echo(f"{source}: {notice}", err=True)

    results, written = [], {}
    for domain in chosen:
        result = evaluate(network, tokenizer, domain, records[domain.name], split=split)
        results.append(result)
        if answers:
            from .answers import greedy_answers

            shown = [record for record in records[domain.name] if record.split == split][:answers]
            written[domain.name] = greedy_answers(network, tokenizer, shown)
    click.echo(f"{source} ({dtype} on {network.device}), {split} records")
    click.echo(table(results))
    for result in results:
        if result.too_long:
            click.echo(
                f"{result.domain}: {len(result.too_long)} records left out, longer than the context"
            )
    for name, pairs in written.items():
        for id, answer in pairs.items():
            click.echo(f"\n{name}, {id}: {answer}")
    if json_file:
        report = {
            "model": source,
            "fingerprint": fingerprint(Checkpoint(resolve(source))),
            "dtype": dtype,
            "device": str(network.device),
            "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
            "domains": [as_json(result) for result in results],
            "answers": written,
        }
        write_whole(json_file, json.dumps(report, indent=2, allow_nan=False) + "\n")


def _with_records():
    domains = [load_domain(name) for name in built_in_domains()]
    return [domain for domain in domains if domain.records and Path(domain.records).is_file()]
