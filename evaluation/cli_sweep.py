"""`av-sweep`: what does λ do?"""

import importlib.metadata
import platform
import sys
from pathlib import Path

import click

from mergekit_av.arithmetic import ROUNDINGS
from mergekit_av.cli import command
from mergekit_av.domains import Domain, built_in_domains, load_domain
from mergekit_av.errors import AVError

VERSIONS = ("mergekit-av", "mergekit", "torch", "transformers")
STORE = "evaluations.jsonl"
# More evaluations than this are asked about first.
MANY = 500


@command
@click.option("--base", help="Base model: a folder or Hub id.  [default: the default base]")
@click.option(
    "--av", "avs", multiple=True, required=True, metavar="[NAME=]AV",
    help="Alignment vector, a folder or Hub id; several are swept one after the other.",
)  # fmt: skip
@click.option(
    "--lambda", "lambdas", default="-1.5:1.5:0.1", metavar="LOW:HIGH:STEP|A,B,C",
    help="The λ of each vector; 0 is always among them.",
)  # fmt: skip
@click.option(
    "--domain", "domains", multiple=True, metavar="NAME|FILE.yml",
    help="Domain to score; may be given several times.  [default: the vectors' own]",
)  # fmt: skip
@click.option(
    "--data", multiple=True, metavar="DOMAIN=SOURCE",
    help="Records of a domain instead of its own: a file or a Hub dataset id.",
)  # fmt: skip
@click.option("--max-records", type=click.IntRange(min=1), help="At most so many of each split.")
@click.option(
    "--generate", type=click.IntRange(min=0), default=8,
    help="Queries to answer at each λ, for the usable range; 0 leaves it unmeasured.",
)  # fmt: skip
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=80, help="Where answers are cut."
)
@click.option("--prompting/--no-prompting", default=True, help="Compare with asking in words.")
@click.option("--rounding", type=click.Choice(ROUNDINGS), default="stochastic")
@click.option("--seed", default=0, help="Of the stochastic rounding.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16", "auto"]), default="float32",
    help="What the model computes in; auto is the checkpoint's own, as mergekit writes it.",
)  # fmt: skip
@click.option("--device", help="A torch device.  [default: the accelerator if there is one]")
@click.option("--transfer", is_flag=True, help="The base is meant to be another than the vectors'.")
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the report; started again with it, a sweep goes on where it was.",
)  # fmt: skip
@click.option(
    "--write-card", is_flag=True,
    help="Store each level's λ in the vectors' folders, for Knobs and the model card.",
)  # fmt: skip
@click.option("--yes", is_flag=True, help=f"Do not ask before more than {MANY} evaluations.")
def av_sweep(
    base, avs, lambdas, domains, data, max_records, generate, max_new_tokens, prompting, rounding,
    seed, dtype, device, transfer, out, write_card, yes,
):  # fmt: skip
    """Preference accuracy, and the state of the language, at every λ of alignment vectors.

    Each vector is moved on its own, the others at 0. Its own domain is scored on validation
    records, which choose the best λ of each level, and on test records, which report it; other
    domains on test records. Writes report.md, sweep.csv, sweep.json and the figure to OUT; every
    evaluation is kept there when it is done.
    """
    from .sweep import parse_lambdas

    values = parse_lambdas(lambdas)
    sources = dict(_pair(text, "--data", "DOMAIN=SOURCE") for text in data)

    from mergekit_av.base import base_or_default
    from mergekit_av.chat import ensure_chat_template
    from mergekit_av.checkpoint import Checkpoint, fingerprint
    from mergekit_av.knobs import Knobs
    from mergekit_av.models import load_model, load_tokenizer, resolve
    from mergekit_av.records import load_records
    from mergekit_av.vector import AlignmentVector

    from .calibration import calibrate, for_card
    from .prompting import costs
    from .report import Report, Sweep
    from .store import Store
    from .sweep import Evaluator, make_task, sweep

    vectors = {}
    for text in avs:
        name, _, source = text.rpartition("=")
        vector = AlignmentVector.open(source)
        name = name or vector.metadata.name
        if name in vectors:
            raise click.UsageError(f"two vectors are called {name!r}: write --av NAME={source}")
        vectors[name] = vector
    scored = _domains(domains, vectors)
    if unknown := sorted(set(sources) - {domain.name for domain in scored}):
        raise click.UsageError(f"--data names {unknown[0]!r}, which is not among the domains")
    records = {d.name: load_records(d, sources.get(d.name)) for d in scored}

    source = base_or_default(base)
    model = load_model(source, dtype=dtype, device=device)
    tokenizer = load_tokenizer(source)
    if notice := ensure_chat_template(tokenizer):
        click.echo(f"{source}: {notice}", err=True)
    knobs = Knobs(model, vectors, rounding=rounding, seed=seed, transfer=transfer)

    def task(
        domain: Domain, split: str, limit: int | None = max_records, prompt: str | None = None
    ):
        return make_task(model, tokenizer, domain, records[domain.name], split, limit, prompt)

    tests = {domain.name: task(domain, "test") for domain in scored}
    validations = {
        d.name: task(d, "validation")
        for d in scored
        if d.name in vectors and any(r.split == "validation" for r in records[d.name])
    }
    plans = {name: [*tests.values(), *_of(validations, name)] for name in vectors}
    points = len({0.0, *values})
    count = points * sum(len(plan) + bool(generate) for plan in plans.values())
    if count > MANY and not yes:
        click.confirm(
            f"{points} λ of {len(vectors)} vectors: {count} evaluations. Go on?",
            abort=True,
            err=True,
        )

    report = Report(
        {
            "base": source,
            "base fingerprint": fingerprint(Checkpoint(resolve(source))),
            "vectors": {name: str(vector.folder) for name, vector in vectors.items()},
            "transfer": transfer,
            "dtype": str(model.dtype).removeprefix("torch."),
            "rounding": f"{rounding}, seed {seed}",
            "records": {
                f"{t.name} {t.split}": f"{len(t.records)}"
                + (f" ({len(t.too_long)} too long)" if t.too_long else "")
                for t in [*tests.values(), *validations.values()]
            },
            "device": _machine(model),
            "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
            "command": " ".join(["av-sweep", *sys.argv[1:]]),
        },
        scored,
        [],
    )
    done = 0
    with Store(out / STORE) as store:
        evaluator = Evaluator(knobs, model, tokenizer, report.source["base fingerprint"], store)
        try:
            if prompting:
                for domain in scored:
                    if domain.name in vectors and domain.prompts:
                        asked = [tests[domain.name]]
                        asked += [task(domain, "test", prompt=level) for level in domain.prompts]
                        results = [evaluator.result({}, one) for one in asked]
                        spent = costs(model, tokenizer, asked)
                        report.prompting[domain.name] = {
                            one.prompt: pair
                            for one, pair in zip(
                                asked, zip(results, spent, strict=True), strict=True
                            )
                        }
            for name in vectors:
                own = name if name in tests else None
                written = None
                if generate:
                    domain = next(d for d in scored if d.name == (own or scored[0].name))
                    written = task(domain, "test", generate)
                current = Sweep(name, own, [])
                for point in sweep(evaluator, name, values, plans[name], written, max_new_tokens):
                    if not current.points:
                        report.sweeps.append(current)
                    current.points.append(point)
                    current.points.sort(key=lambda p: p.lambdas[name])
                    done += 1
                    if own in validations:
                        current.calibration = calibrate(
                            current.points, name, own, current.usable_range
                        )
        except KeyboardInterrupt:
            if report.sweeps:
                report.write(out)
            click.echo(
                f"Interrupted after {done} of {points * len(vectors)} points. They are in {out}; the "
                "same command goes on from there",
                err=True,
            )
            sys.exit(130)
    report.write(out)
    for current in report.sweeps:
        click.echo(summary(current))
        if write_card and current.calibration is not None:
            about = {
                "domain": current.domain,
                "records": {
                    t.split: len(t.records)
                    for t in plans[current.vector]
                    if t.name == current.domain
                },
                "base": report.source["base fingerprint"],
                "dtype": report.source["dtype"],
                "lambdas": [point.lambdas[current.vector] for point in current.points],
                "versions": report.source["versions"],
            }
            vectors[current.vector].write_calibration(
                for_card(current.calibration, current.usable_range, about)
            )
            click.echo(f"  written to {vectors[current.vector].folder}")
    click.echo(
        f"Report: {out / 'report.md'}   Figure: {out / 'sweep.png'}   Numbers: {out / 'sweep.csv'}"
    )


def summary(sweep) -> str:
    """The best λ of each level, in a few lines."""
    usable = sweep.usable_range
    span = f"λ {usable[0]:g} … {usable[1]:g}" if usable else "not measured"
    lines = [f"{sweep.vector}: usable range {span}"]
    if sweep.calibration is not None:
        kinds = (("", sweep.calibration.best), (", usable", sweep.calibration.best_usable))
        for suffix, bests in kinds:
            for level, best in bests.items():
                share = best.test.accuracy[level]
                lines.append(
                    f"  {level}{suffix}: λ {best.value:+g}, test accuracy {share.value:.2f} "
                    f"({share.low:.2f}–{share.high:.2f}){', dominant' if best.dominant else ''}"
                )
    return "\n".join(lines)


def _pair(text: str, option: str, form: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise click.UsageError(f"{option} must be {form}, not {text!r}")
    return name, value


def _domains(names: tuple[str, ...], vectors: dict) -> list[Domain]:
    """Those named; without any, each vector's own."""
    chosen = [load_domain(name) for name in names]
    if not chosen:
        known = built_in_domains()
        chosen = [load_domain(name) for name in vectors if name in known]
    if not chosen:
        raise AVError(
            f"none of the vectors ({', '.join(vectors)}) has the name of a built-in domain: pass "
            "--domain, and the vector as NAME=AV where NAME is its domain's"
        )
    if len({domain.name for domain in chosen}) < len(chosen):
        raise click.UsageError("two of the domains have the same name")
    return chosen


def _of(tasks: dict, name: str) -> list:
    return [tasks[name]] if name in tasks else []


def _machine(model) -> str:
    if model.device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(model.device)
    return f"{model.device}, {platform.machine()}"
