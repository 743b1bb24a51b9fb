"""``qconv report``: what can be done with reports that are written already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _options as given  # noqa: TC001 - Typer reads the annotations
from ._output import write_json, write_line


def merge(
    *,
    reports: Annotated[
        list[Path],
        typer.Argument(
            metavar="REPORT...",
            show_default=False,
            help="report.json of 'qconv validate --report'.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the page goes.")],
    as_json: given.Json = False,
    debug: given.Debug = False,  # noqa: ARG001 - read before parsing, so that it always works
) -> None:
    """Join reports on artifacts of one source into one page, one JSON document and one JUnit file.

    They must have been scored on the same text, for figures to be comparable.
    """
    from qconv.reports import merge as join
    from qconv.reports import read_report, write

    merged = join([read_report(path) for path in reports])
    written = write(merged, out)
    if as_json:
        return write_json(merged.to_json())
    return write_line(f"{written.page}: {len(merged.artifacts)} artifacts, {merged.status}")
