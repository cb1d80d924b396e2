"""What all commands share: usage errors, signals, output, each in one line."""

import contextlib
import functools
import io
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import click
from click.core import ParameterSource

from mergekit_av.errors import AVError, first_line, is_out_of_memory, one_line, printable
from mergekit_av.io.yaml import is_text


class _OneLine(click.Command):
    """A command whose usage errors are one line as well, without click's lines of usage above."""

    def main(self, *args, **kwargs):
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a λ on a terminal that has none
        return super().main(*args, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for argument in args:
            if not is_text(argument):
                raise click.UsageError(f"{argument!r} is no text that a file or its name can hold")
        return super().parse_args(ctx, args)

    def make_context(self, *args, **kwargs):
        with _usage_errors_in_one_line():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context):
        with _usage_errors_in_one_line():
            return super().invoke(ctx)


class CommandGroup(_OneLine, click.Group):
    """A command that has only subcommands."""


@contextlib.contextmanager
def _usage_errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        # click shows the usage of the context that an error has: this one has none.
        message = one_line(" ".join(error.format_message().split()))
        raise click.UsageError(message) from error


def command(function: Callable) -> click.Command:
    """A click command that shows its defaults and ends expected failures in one line.

    Exit code 2 for a usage error, 1 for any other that is expected; Ctrl-C ends with 130, and
    SIGTERM, which ends a command in the same way, with 143.
    """

    @functools.wraps(function)
    def run(*args, **kwargs):
        with _log_on_stderr(), _termination_as_interrupt() as terminated:
            try:
                _refuse_no_numbers(kwargs)
                return function(*args, **kwargs)
            except OSError as error:
                where = f"{error.filename}: " if error.filename else ""
                raise AVError(f"{where}{error.strerror or error}") from error
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise AVError(
                    f"{first_line(error)}: take a smaller model, batch or dtype, or a machine with more"
                ) from error
            except KeyboardInterrupt:
                click.echo("Interrupted", err=True)
                sys.exit(128 + (signal.SIGTERM if terminated.is_set() else signal.SIGINT))

    name = function.__name__.replace("_", "-")
    return click.command(name, cls=_OneLine, context_settings={"show_default": True})(run)


def say(text: str, err: bool = False) -> None:
    """Print what may quote a stranger's file: as text, whatever a terminal would make of it."""
    click.echo(printable(text), err=err)


class _Saying(logging.Handler):
    """Shows a log to the user of a command, as plain text."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record), err=True)


@contextlib.contextmanager
def _log_on_stderr() -> Iterator[None]:
    """Show on stderr what the package logs, from warnings on, while the block lasts."""
    # Where bitsandbytes is installed, PEFT imports it, and it says which kernels it misses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    log, handler = logging.getLogger("mergekit_av"), _Saying()
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _refuse_no_numbers(options: dict[str, Any]) -> None:
    """Raise UsageError for an option with a range that is nan, which click lets pass."""
    for option in click.get_current_context().command.params:
        value = options.get(option.name)
        if isinstance(option.type, click.FloatRange) and value is not None and math.isnan(value):
            raise click.UsageError(f"{option.opts[0]} is not a number: {value}")


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[threading.Event]:
    """Let SIGTERM do what Ctrl-C does: schedulers and containers send it, and a shell's background
    processes do not see Ctrl-C.

    Yields:
        What is set when it comes.
    """
    terminated, process = threading.Event(), os.getpid()

    def terminate(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # forked by a library, which wants it to end
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        terminated.set()
        interrupt = signal.getsignal(signal.SIGINT)
        if callable(interrupt):  # asyncio has its own
            interrupt(signal.SIGINT, frame)
        else:
            raise KeyboardInterrupt

    # Only the main thread gets signals; and who ignores this one, or has another use for it, may.
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield terminated
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield terminated
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def given() -> list[str]:
    """The options on the command line of the running command, rather than left at their defaults."""
    context = click.get_current_context()
    return [
        option.opts[0]
        for option in context.command.params
        if context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    ]


overwrite_option = click.option(
    "--overwrite",
    is_flag=True,
    help="Replace the output if it is there and ours; kept until all is done.",
)
