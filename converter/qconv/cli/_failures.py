"""What a failure looks like: message, exit code, and whether it is our bug."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any

from qconv.errors import QconvError

WRONG_USAGE = 2
#: What shells report for a process that a signal ended: 128 + its number.
INTERRUPTED, PIPE_CLOSED, TERMINATED = 130, 141, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM, which stops the work exactly as Ctrl-C does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An exception as the command line tells it.

    kind: the exception's type
    label: how the message on stderr begins
    bug: qconv itself is at fault
    """

    kind: str
    label: str = "error"
    message: str
    exit_code: int
    bug: bool = False

    def to_json(self) -> dict[str, Any]:
        """The document that ``--json`` prints instead of a result."""
        return {"error": {"type": self.kind, "message": self.message, "exit_code": self.exit_code}}


def explain(error: BaseException, *, writes: bool) -> Failure:
    """What to tell of ``error``.

    writes: the command was one that writes files
    """
    kind = type(error).__name__
    if isinstance(error, KeyboardInterrupt):
        return _stopped(error, writes=writes)
    if isinstance(error, QconvError):
        return Failure(kind=kind, message=str(error), exit_code=error.exit_code)
    if isinstance(error, MemoryError):
        message = "out of memory; lower --threads or --max-ram, or close other programs"
        return Failure(kind=kind, message=message, exit_code=5)
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        # without a name it is stdout: artifacts have errors of their own
        where = f"for {error.filename!r}" if error.filename else "under the standard output"
        message = f"the disk is full {where} ({error.strerror}); free space there, then try again"
        return Failure(kind=kind, message=message, exit_code=5)
    if callable(getattr(error, "format_message", None)):  # Typer's own: the command line is wrong
        return _wrong_usage(error)
    return Failure(
        kind=kind,
        message=f"{kind}: {error}" if str(error) else kind,
        exit_code=1,
        bug=True,
    )


def _stopped(error: KeyboardInterrupt, *, writes: bool) -> Failure:
    terminated = isinstance(error, Terminated)
    message = (
        "nothing was written under its final name; run the same command again to resume"
        if writes
        else "nothing was written"
    )
    return Failure(
        kind="Terminated" if terminated else "Interrupted",
        label="terminated" if terminated else "interrupted",
        message=message,
        exit_code=TERMINATED if terminated else INTERRUPTED,
    )


def _wrong_usage(error: BaseException) -> Failure:
    """Typer's exceptions, which lie in private modules of it: known by what they offer."""
    message = " ".join(str(getattr(error, "format_message")()).split())  # noqa: B009
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", "qconv")
    return Failure(
        kind="UsageError",
        message=f"{message.rstrip('.')}; see '{path} --help'",
        exit_code=WRONG_USAGE,
    )
