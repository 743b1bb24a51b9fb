"""Keeps the whole of an error in a file, of which the terminal shows one line."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

from ._output import say

#: In the folder of ``--report``.
FILE = "error.txt"


@contextlib.contextmanager
def kept_in(folder: Path | None) -> Iterator[None]:
    """Write an error that passes, with all it was raised from, to ``error.txt`` in the folder.

    One that is there from before is removed where nothing passes.

    folder: made where it is missing; None: nothing is written
    """
    try:
        yield
    except Exception as error:
        if folder is not None:
            _keep(error, folder)
        raise
    if folder is not None:
        with contextlib.suppress(OSError):
            (folder / FILE).unlink(missing_ok=True)


def _keep(error: Exception, folder: Path) -> None:
    """That it cannot be kept must not hide it."""
    file = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        whole = "".join(traceback.format_exception(error))
        # names of files may hold bytes that are no UTF-8
        file.write_text(whole, encoding="utf-8", errors="backslashreplace")
    except OSError as problem:
        say(f"warning: the error could not be kept in {file}: {problem.strerror}")
    else:
        say(f"the whole error: {file}")
