"""Options for the tree in which personas are created."""

import functools
from collections.abc import Callable
from typing import Any

import click

from mergekit_av.synthesis.generate.tree import Tree

SHAPE = Tree()
OF_TREE = ("--roots", "--children", "--rounds", "--plain")


def tree_options(function: Callable) -> Callable:
    """The options; the command gets them as `tree`, a Tree of no given depth, and `plain`."""
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
        tree = Tree(roots, children, None, rounds)
        return function(*args, tree=tree, **options)

    return run
