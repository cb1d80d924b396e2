"""Options of the stages that ask a model, and what they say before they begin and when they end."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mergekit_av.cli.options.completions import ClientOptions, completion_options
from mergekit_av.io.locks import locked

if TYPE_CHECKING:
    from mergekit_av.synthesis.folder import DataFolder
    from mergekit_av.synthesis.stage import Estimate, Maker

out_option = click.option(
    "--out", type=click.Path(path_type=Path), help="Folder to write.  [default: data/DOMAIN]"
)
folder_argument = click.argument("folder", type=click.Path(path_type=Path))
seed_option = click.option("--seed", type=int, default=0, help="Of all that is drawn.")
restart_option = click.option(
    "--restart", is_flag=True,
    help="Start a stage over whose settings have changed; what it made is kept in FOLDER/old.",
)  # fmt: skip


@dataclass(frozen=True)
class MakerOptions:
    """What the options say."""

    client: ClientOptions
    seed: int
    temperature: float
    max_tokens: int | None
    restart: bool
    dry_run: bool

    def maker(self, folder: "DataFolder") -> "Maker":
        """The model that is named, or else the one with which the folder was made so far.

        Raises:
            AVError: see `ClientOptions.client`.
        """
        from mergekit_av.endpoints.budget import Usage
        from mergekit_av.synthesis.stage import Maker

        options = self.client.or_else(folder.made_with("model"), folder.made_with("base_url"))
        before = sum(folder.spending().values(), Usage())
        client = options.client(before, temperature=self.temperature, needs_key=not self.dry_run)
        return Maker(folder, client, self.seed, self.restart, self.max_tokens)


def maker_options(function: Callable) -> Callable:
    """The options; the command gets them as one argument, `making`, a MakerOptions."""

    @completion_options()
    @seed_option
    @click.option("--temperature", type=click.FloatRange(min=0), default=1.0, help="Of sampling.")
    @click.option(
        "--max-tokens", type=click.IntRange(min=1),
        help="The most an answer may have, with what a model thinks.  [default: by what is asked]",
    )  # fmt: skip
    @restart_option
    @click.option(
        "--dry-run", is_flag=True, help="Make the folder, say what it will cost, ask nothing."
    )
    @functools.wraps(function)
    def run(*args, client_options, seed, temperature, max_tokens, restart, dry_run, **options: Any):
        making = MakerOptions(client_options, seed, temperature, max_tokens, restart, dry_run)
        return function(*args, making=making, **options)

    return run


def begin(domain: str, out: Path | None) -> "DataFolder":
    """The data folder of a domain, by name or file; begun where it is not there."""
    from mergekit_av.data.domain import load_domain
    from mergekit_av.synthesis.folder import DataFolder

    chosen = load_domain(domain)
    path = out or Path("data") / chosen.name
    hold(path)
    return DataFolder.begin(path, chosen)


def take(path: Path) -> "DataFolder":
    """The data folder that is there, for a command that writes to it."""
    from mergekit_av.synthesis.folder import DataFolder

    folder = DataFolder(path)
    hold(path)
    return folder


def hold(path: Path) -> None:
    """Lock a data folder, there or not, until the command ends: each stage reads what the ones before
    it made.

    Raises:
        AVError: another process is at it.
    """
    click.get_current_context().with_resource(locked(path, "choose another folder"))


def carry_out(
    maker: "Maker",
    estimates: Mapping[str, "Estimate"],
    make: Callable[[], Mapping[str, str]],
    dry_run: bool,
) -> None:
    """Say on stderr what stages will cost; unless that is all, make them, and say on stdout what has
    become of each, and what it has cost so far. That is kept as well where one fails."""
    _announce(maker, estimates)
    if dry_run:
        return
    folder = maker.folder
    try:
        results = make()
    finally:
        folder.keep_spending()
    spent = folder.spending()
    for stage, result in results.items():
        click.echo(f"{result}; {spent[stage]}" if stage in spent else result)


def _announce(maker: "Maker", estimates: Mapping[str, "Estimate"]) -> None:
    usages = {stage: estimate.usage(maker) for stage, estimate in estimates.items()}
    for stage, usage in usages.items():
        if usage.calls:
            click.echo(f"{stage}: about {usage}", err=True)
    spending = maker.client.spending
    if spending.budget:
        click.echo(f"of a budget of {spending.budget}, {spending.before} so far", err=True)
        if not spending.budget.covers(sum(usages.values(), spending.before)):
            click.echo("WARNING: the budget will not be enough for all of it", err=True)
