"""What the operating system refuses while writing, as errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

from qconv.errors import NotEnoughResources, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def told_apart(out: Path) -> Iterator[None]:
    """Turn every ``OSError`` into an error of qconv's about the output directory ``out``.

    Raises:
        NotEnoughResources: the disk or a quota is full.
        UsageError: anything else, with the next step that may help.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NotEnoughResources(
                f"output directory {str(out)!r}: the disk is full; nothing was written under its "
                "final name; free space and run the same command again: it goes on where it stopped"
            ) from error
        if error.errno == errno.ENOENT:
            raise UsageError(
                f"output directory {str(out)!r}: {str(error.filename)!r} vanished while qconv was "
                "writing; find out what removes files there, and run the same command again"
            ) from error
        raise UsageError(
            f"cannot write to output directory {str(out)!r}: {error.strerror or error}; "
            f"{_next_step(error)}"
        ) from error


def _next_step(error: OSError) -> str:
    if error.errno == errno.ENAMETOOLONG:
        return "give the model's directory or file a shorter name, or choose another --out"
    if error.errno == errno.EFBIG:
        return "the file system or a limit (ulimit -f) allows no larger files; choose another --out"
    return "choose another with --out"
