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

    folder: made where it is missing; None: nothing is written
    """
    try:
        yield
    except Exception as error:
        if folder is not None:
            _keep(error, folder)
        raise


def _keep(error: Exception, folder: Path) -> None:
    """That it cannot be kept must not hide it."""
    file = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError as problem:
        say(f"warning: the error could not be kept in {file}: {problem.strerror}")
    else:
        say(f"the whole error: {file}")
