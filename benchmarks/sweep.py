"""A sweep of one vector over one domain against scoring alone.

What a sweep adds to its scoring: setting the knob, keeping each evaluation, summing up. The answers
for the usable range are left out: they are another measurement, not overhead.
"""

import tempfile
import time
from pathlib import Path

import click
from measure import Run, interleaved, machine, ratios, spread, verdict
from merge import fabricate

TARGET = 1.2


@click.command(context_settings={"show_default": True})
@click.option("--repeat", type=click.IntRange(min=1), default=3, help="Measured runs of each side.")
@click.option("--base", help="Base model: a folder or Hub id.  [default: the default base]")
@click.option("--records", default=2, help="Test records of the medical domain.")
@click.option("--points", default=31, help="λ of the sweep.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32")
def main(repeat, base, records, points, dtype):
    """Time of a sweep over `--points` λ, against as many times `mean_log_probs`."""
    from mergekit_av import Knobs, load_domain, load_records, mean_log_probs
    from mergekit_av.evaluation.measure.cache import Cache, Identity
    from mergekit_av.evaluation.measure.engine import Engine
    from mergekit_av.evaluation.measure.store import Store
    from mergekit_av.evaluation.sweep.sweep import sweep
    from mergekit_av.evaluation.tasks import make_task
    from mergekit_av.models.load import load_model, load_tokenizer

    with tempfile.TemporaryDirectory() as scratch:
        folder = fabricate(base, Path(scratch))
        model, tokenizer = load_model(folder, dtype=dtype), load_tokenizer(folder)
        domain = load_domain("medical")
        task = make_task(model, tokenizer, domain, load_records(domain), "test", limit=records)
        knobs = Knobs(model, {"medical": Path(scratch) / "vectors" / "medical"})
        engine = Engine(knobs, model, tokenizer)
        lambdas = [(i - points // 2) / 10 for i in range(points)]

        def swept() -> Run:
            store = Path(scratch) / f"{time.monotonic_ns()}.jsonl"
            start = time.perf_counter()
            with Store(store) as kept:
                cache = Cache(
                    engine,
                    Identity.of("base", knobs.vectors, knobs.rounding, knobs.seed, model.dtype),
                    kept,
                )
                list(sweep(cache, "medical", lambdas, [task]))
            return Run(time.perf_counter() - start)

        def scored() -> Run:
            start = time.perf_counter()
            mean_log_probs(model, tokenizer, task.records)
            return Run(time.perf_counter() - start)

        runs = interleaved({"sweep": swept, "scoring": scored}, repeat)

    click.echo(machine())
    click.echo(f"{records} records at {points} λ in {dtype}, {repeat} rounds")
    times = {name: [run.seconds for run in side] for name, side in runs.items()}
    alone = [points * seconds for seconds in times["scoring"]]
    click.echo(f"sweep: {spread(times['sweep'])} s; {points} × mean_log_probs: {spread(alone)} s")
    ratio = ratios(times["sweep"], alone)
    click.echo(f"  time ratio {spread(ratio)}, {verdict(ratio, TARGET)}")


if __name__ == "__main__":
    main()
