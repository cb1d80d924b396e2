"""`av-synth run`: a data set from its domain, in one go."""

import click

from mergekit_av.cli.command import command, given

from .options import begin, carry_out, maker_options, out_option
from .tree import OF_TREE, tree_options


@command
@click.option(
    "--domain", required=True, metavar="NAME|FILE.yml", help="What the records are about."
)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    required=True,
    help="Queries to make; cleaning leaves fewer records.",
)
@out_option
@click.option(
    "--from",
    "source",
    metavar="FILE|ID",
    help="Sample personas as av-synth personas does, instead of creating them.",
)
@tree_options
@maker_options
@click.option(
    "--push-to-hub", metavar="ID", help="Push the data set to this repository when it is done."
)
@click.option("--private", is_flag=True, help="With --push-to-hub: make the repository private.")
def run(domain, count, out, source, tree, plain, making, push_to_hub, private):
    """Make a data set: personas, queries, responses, clean records; go on where it was interrupted."""
    if private and not push_to_hub:
        raise click.UsageError("--private goes with --push-to-hub")
    if source and (shape := [option for option in given() if option in OF_TREE]):
        raise click.UsageError(f"{shape[0]} shapes created personas: with --from none is created")

    from mergekit_av.synthesis.clean.run import require_libraries
    from mergekit_av.synthesis.generate.personas import sample
    from mergekit_av.synthesis.pipeline import Pipeline

    require_libraries()  # of the last stage, before the first is paid for
    folder = begin(domain, out)
    maker = making.maker(folder)
    if source:
        sample(folder, source, count, maker.seed, maker.restart)
    pipeline = Pipeline(maker, count, tree, plain)
    if push_to_hub and not making.dry_run:
        from mergekit_av.export.hub import push
        from mergekit_av.hub.upload import check_access

        check_access(push_to_hub, repo_type="dataset")
    carry_out(maker, pipeline.estimates(), pipeline.make, making.dry_run)
    if push_to_hub and not making.dry_run:
        click.echo(push(folder.path, push_to_hub, private=private or None))
