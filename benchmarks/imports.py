"""What the plugin costs a program that imports pydantic or mergekit.

pydantic loads the plugin when the first model is made, in every program of the environment. The
other side tells it to leave this one plugin out (PYDANTIC_DISABLE_PLUGINS=mergekit_av), which is
what an environment without the package does. Times are of whole `python -c` processes.
"""

import os
import sys

import click
from measure import interleaved, machine, ratios, run_command, spread, verdict

PROGRAMS = {
    "pydantic and a model": "import pydantic\nclass Model(pydantic.BaseModel):\n    field: int",
    "mergekit.config": "import mergekit.config",
}
TARGET = 1.05


@click.command(context_settings={"show_default": True})
@click.option(
    "--repeat", type=click.IntRange(min=1), default=20, help="Measured runs of each side."
)
def main(repeat):
    """Import time of pydantic and of mergekit with the plugin, against without."""
    click.echo(machine())
    for name, program in PROGRAMS.items():
        sides = {
            "with": lambda program=program: start(program, {}),
            "without": lambda program=program: start(
                program, {"PYDANTIC_DISABLE_PLUGINS": "mergekit_av"}
            ),
        }
        runs = interleaved(sides, repeat)
        seconds = {side: [run.seconds for run in some] for side, some in runs.items()}
        ratio = ratios(seconds["with"], seconds["without"])
        click.echo(f"{name}, {repeat} rounds")
        for side, values in seconds.items():
            click.echo(f"  {side} the plugin: {spread(values, digits=3)} s")
        click.echo(f"  time ratio {spread(ratio)}, {verdict(ratio, TARGET)}")


def start(program: str, settings: dict[str, str]):
    inherited = {k: v for k, v in os.environ.items() if k != "PYDANTIC_DISABLE_PLUGINS"}
    return run_command([sys.executable, "-c", program], {**inherited, **settings})


if __name__ == "__main__":
    main()
