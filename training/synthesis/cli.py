"""`av-synth`: records for a domain of one's own, or more of them."""

import click

from mergekit_av.cli import CommandGroup

from .cli_agreement import agreement
from .cli_annotate import annotate
from .cli_clean import clean
from .cli_personas import personas
from .cli_run import run
from .cli_stages import queries, responses


@click.group("av-synth", cls=CommandGroup)
def av_synth():
    """Make records with a language model: personas, their queries, a response per level."""


for command in (run, personas, queries, responses, clean, annotate, agreement):
    av_synth.add_command(command)
