"""``qconv plugins``: list what is installed, and why what is broken is broken."""

from __future__ import annotations

from . import _options as given  # noqa: TC001 - Typer reads the annotations
from ._output import write_json


def plugins(
    *,
    as_json: given.Json = False,
    debug: given.Debug = False,  # noqa: ARG001 - read before parsing, so that it always works
) -> None:
    """List plugins with their methods, backends and formats, and why a broken one is broken."""
    from qconv._host import load_plugins

    records = load_plugins().listing()
    if as_json:
        return write_json({"plugins": [record.to_json() for record in records]})
    from ._render import render_plugins

    return render_plugins(records)
