"""Options for the tree in which personas are created."""

import functools
from collections.abc import Callable
from typing import Any

import click

from mergekit_av.synthesis.generate.tree import TreeShape

SHAPE = TreeShape()
OF_TREE = ("--roots", "--children", "--rounds", "--plain")


def tree_options(function: Callable) -> Callable:
    """Add the options; the command gets them as `shape`, a TreeShape of no given depth, and `plain`."""
    many = click.IntRange(min=1)

    @click.option("--roots", type=many, default=SHAPE.roots, help="Personas to start from.")
    @click.option("--children", type=many, default=SHAPE.children, help="Relations of each.")
    @click.option("--rounds", type=many, default=SHAPE.rounds, help="So often, from other roots.")
    @click.option(
        "--plain",
        is_flag=True,
        help="Ask for lines of text instead of JSON, for models that keep to no schema.",
    )
    @functools.wraps(function)
    def run(*args: Any, roots, children, rounds, **options: Any):
        return function(*args, shape=TreeShape(roots, children, None, rounds), **options)

    return run
