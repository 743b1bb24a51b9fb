"""``qconv inspect``: tell what a checkpoint or artifact holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _options as given  # noqa: TC001 - Typer reads the annotations
from ._output import results_only, warn, write_json


def inspect(
    *,
    path: Annotated[
        Path, typer.Argument(metavar="PATH", show_default=False, help="Checkpoint or artifact.")
    ],
    no_values: Annotated[
        bool, typer.Option("--no-values", help="Read no weights, only what describes them.")
    ] = False,
    topology: Annotated[
        bool,
        typer.Option(
            "--topology",
            help="Run one block of each kind instead, and show which linears share an input and "
            "where scales can be folded in.",
        ),
    ] = False,
    tensors: given.Tensors = False,
    quiet: given.Quiet = False,
    as_json: given.Json = False,
    debug: given.Debug = False,  # noqa: ARG001 - read before parsing, so that it always works
) -> None:
    """Show a checkpoint or artifact: its tensors, their types, and what is wrong with them."""
    if topology:
        return _topology(path, as_json=as_json)
    import qconv

    from ._progress import reading

    with results_only(), reading(quiet=quiet) as progress:
        inspection = qconv.inspect(path, values=not no_values, progress=progress)
    warn(inspection.warnings)
    if as_json:
        return write_json(inspection.to_json())
    from ._render import render_inspection

    return render_inspection(inspection, every_tensor=tensors)


def _topology(path: Path, *, as_json: bool) -> None:
    from qconv.inspection import inspect_topology

    with results_only():
        found = inspect_topology(path)
    if as_json:
        return write_json(found.to_json())
    from ._render_topology import render_topology

    return render_topology(found)
