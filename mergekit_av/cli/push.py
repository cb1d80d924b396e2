"""`av-push`: to the Hub."""

from pathlib import Path

import click

from .command import command, say


@command
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repo")
@click.option("--private", is_flag=True, help="Make the repository private.")
@click.option("--revision", metavar="BRANCH", help="Branch to push to; made if it is not there.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead.")
@click.option("--commit-message", help="First line of the commit.")
@click.option(
    "--base", metavar="ID", help="Hub id that a vector's base has, where it was made of a folder."
)
@click.option("--dry-run", is_flag=True, help="Check everything, list what would go, send nothing.")
def av_push(folder, repo, private, revision, create_pr, commit_message, base, dry_run):
    """Push FOLDER, an alignment vector, a merged checkpoint or a data set, to REPO on the Hub.

    It is checked whole first, and becomes visible in one commit, whose address is printed. The
    token is that of `hf auth login`, or HF_TOKEN. Interrupted, the same command goes on.
    """
    if create_pr and revision:
        raise click.UsageError("--create-pr goes to main: pass either it or --revision")

    from mergekit_av.export.hub import prepare, push

    if dry_run:
        upload = prepare(folder, repo, base=base)
        for warning in upload.warnings:
            say(f"WARNING: {warning}", err=True)
        for path, content in upload.contents().items():
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            say(f"{size:>15,}  {path}")
        return
    address = push(
        folder,
        repo,
        private=private or None,
        revision=revision,
        commit_message=commit_message,
        create_pr=create_pr,
        base=base,
    )
    say(address)
