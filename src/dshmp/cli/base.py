"""What the commands share: the application, options, progress, and how things are told."""

import contextlib
import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from dshmp import __version__
from dshmp.common.errors import one_line, printable
from dshmp.common.options import Options
from dshmp.common.progress import Progress
from dshmp.common.signals import exit_if_signalled

plain: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None}
helped = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(**plain, add_completion=False, pretty_exceptions_enable=False, context_settings=helped)
Out = Annotated[Path, typer.Option(help="Folder for the results, made where it is missing.")]
Json = Annotated[bool, typer.Option("--json", help="Answers as JSON on stdout, all else on stderr.")]
Name = Annotated[str, typer.Argument(help="Data set: mevis (a synthetic data set too), ref-youtube-vos, a2d ...")]
Root = Annotated[Path, typer.Argument(help="Folder of the data set.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes that score; all cores by default.")]


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the fields of `Options` as parameters, in place of its own parameter `options`."""
    own, shared = (inspect.signature(each).parameters for each in (command, Options))

    @functools.wraps(command)
    def run(**given: Any) -> None:
        options = Options(**{name: given.pop(name) for name in shared})
        if options.quiet:
            logging.getLogger("dshmp").setLevel(logging.ERROR)
        command(**given, options=options)

    parameters = [*(parameter for name, parameter in own.items() if name != "options"), *shared.values()]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _version(wanted: bool) -> None:
    if wanted:
        say(f"dshmp {__version__}")
        raise typer.Exit


@app.callback()
def _dshmp(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Referring video segmentation: a video and a sentence in, the masks of what the sentence means out.

    Example: dshmp segment clip.mp4 "the one that turns back"
    """


@contextlib.contextmanager
def shown_progress(name: str) -> Iterator[Progress]:
    """A progress bar on stderr: one line per phase, with a spinner where it is not known how many steps there are. None
    where warnings are not wanted either."""
    if not logging.getLogger("dshmp").isEnabledFor(logging.WARNING):
        yield lambda phase, done, total: exit_if_signalled()
        return
    from dshmp.common.progress import progress_bars

    with progress_bars() as bars:
        tasks: dict[str, Any] = {}

        def show(phase: str, done: int, total: int | None) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(printable(f"{name} {phase}"), total=total)
            bars.update(tasks[phase], completed=done, total=total)
            exit_if_signalled()

        yield show


def say(*lines: str, err: bool = False) -> None:
    """Lines on stdout or stderr, without control codes, which names may hold."""
    for line in lines:
        typer.echo(printable(line), err=err)


@contextlib.contextmanager
def stdout_alone() -> Iterator[Callable[[str], None]]:
    """A way to stdout, where nothing else appears: Ray tells there what its processes die of."""
    stdout = sys.stdout
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield lambda line: typer.echo(printable(line), file=stdout)


def tell(*messages: str) -> None:
    for message in messages:
        print(f"dshmp: {one_line(message)}", file=sys.stderr, flush=True)
