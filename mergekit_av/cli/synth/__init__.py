"""`av-synth`: records for a domain of one's own, or more of them."""

import click

from mergekit_av.cli.command import CommandGroup

from .agreement import agreement
from .annotate import annotate
from .clean import clean
from .personas import personas
from .run import run
from .stages import queries, responses


@click.group("av-synth", cls=CommandGroup)
def av_synth():
    """Make records with a language model: personas, their queries, a response per level."""


for command in (run, personas, queries, responses, clean, annotate, agreement):
    av_synth.add_command(command)
