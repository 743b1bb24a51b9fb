"""Where the command line writes: results to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from qconv._words import printable

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "UNBOUNDED",
    "StderrHandler",
    "abandon_stdout",
    "console",
    "logged_to_stderr",
    "printable",
    "replace_closed_streams",
    "results_only",
    "say",
    "tolerate_any_text",
    "warn",
    "write_json",
    "write_line",
]

#: Columns enough for any line: nothing is folded or cut.
UNBOUNDED = 10_000


@contextlib.contextmanager
def results_only() -> Iterator[None]:
    """Send what libraries print while they work to stderr: stdout is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def write_json(document: Mapping[str, Any]) -> None:
    """Print the one JSON document of this command."""
    print(json.dumps(document, indent=2, allow_nan=False))  # noqa: T201 - the result


def write_line(line: str) -> None:
    """Print one line of a result."""
    print(printable(line).rstrip())  # noqa: T201 - the result


def say(line: str) -> None:
    """Tell the user something that is not the result."""
    print(printable(line), file=sys.stderr, flush=True)  # noqa: T201 - messages are for people


def warn(warnings: Iterable[str]) -> None:
    """Tell the user what they should know."""
    for warning in warnings:
        say(f"warning: {warning}")


def console(file: TextIO, *, width: int | None = None) -> Console:
    """A console that prints text as it is: no markup, no emoji, no highlighting."""
    from rich.console import Console

    if not file.isatty():
        width = UNBOUNDED
    return Console(file=file, width=width, markup=False, emoji=False, highlight=False)


class StderrHandler(logging.Handler):
    """Shows log records as messages. Finds stderr when it writes: a progress bar may wrap it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        say(f"{record.levelname.lower()}: {record.getMessage()}")


@contextlib.contextmanager
def logged_to_stderr() -> Iterator[None]:
    """Show qconv's own log on stderr."""
    logger, handler = logging.getLogger("qconv"), StderrHandler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def tolerate_any_text() -> None:
    """Escape what the terminal's encoding lacks instead of failing on it."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def replace_closed_streams() -> None:
    """Give stdin, stdout and stderr somewhere to go if the caller has closed them.

    The numbers 0 to 2 would otherwise be given to the next files that are opened, artifacts among
    them, and whatever a library prints would be written into those.
    """
    for number in range(3):
        if not _is_open(number):
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdout = sys.stdout or _nowhere()
    sys.stderr = sys.stderr or _nowhere()


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def abandon_stdout() -> None:
    """Point stdout at nothing, so that Python's own flush at exit stays quiet."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
