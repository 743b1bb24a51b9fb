"""Writes the files of a report into a folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qconv.errors import UsageError

from ._document import json_text
from ._junit import junit
from ._page import page

if TYPE_CHECKING:
    from qconv.validation import Validation


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Where a report lies."""

    report: Path
    junit: Path
    page: Path


def write(validation: Validation, folder: Path | str) -> Written:
    """Write ``report.json``, ``junit.xml`` and ``report.html``.

    The same validation gives the same bytes.

    folder: made if it is not there; earlier reports in it are replaced

    Raises:
        UsageError: it cannot be written.
    """
    folder = Path(folder)
    write_files(
        folder,
        {
            "report.json": json_text(validation.to_json()),
            "junit.xml": junit(validation),
            "report.html": page(validation),
        },
    )
    return Written(
        report=folder / "report.json", junit=folder / "junit.xml", page=folder / "report.html"
    )


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write text files, each of them whole or not at all.

    Raises:
        UsageError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            _replace(folder / name, text)
    except OSError as error:
        raise UsageError(
            f"{folder}: the report cannot be written there ({error.strerror}); name another folder"
        ) from error


def _replace(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
