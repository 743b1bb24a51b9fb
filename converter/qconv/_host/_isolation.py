"""Runs a plugin's code so that whatever it does wrong becomes a sentence about that plugin."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


class PluginFault(Exception):
    """A plugin did something wrong; the message says what, for its user and its author."""


@contextlib.contextmanager
def contained(doing: str, *passing: type[Exception]) -> Iterator[None]:
    """Turn whatever a plugin raises into PluginFault, and keep its prints off stdout.

    doing: what the plugin was asked to do, e.g. ``import``; starts the message
    passing: errors that speak to the user, and so pass as they are
    KeyboardInterrupt passes: it comes from the user, not from the plugin.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except PluginFault:
        raise
    except SystemExit as error:
        raise PluginFault(f"{doing} called sys.exit({error.code!r})") from error
    except Exception as error:
        if isinstance(error, passing):
            raise
        raise PluginFault(f"{doing} failed: {describe(error)}") from error


def describe(error: BaseException, limit: int = 300) -> str:
    """An exception in one line, at most ``limit`` characters, even if it cannot print itself."""
    kind = type(error).__name__
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - a plugin's __str__ may do anything
        text = "(its message cannot be printed)"
    line = f"{kind}: {text}" if text else kind
    return line if len(line) <= limit else line[: limit - 3] + "..."
