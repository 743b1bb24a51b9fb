"""Tables on stdout, without frames."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ._output import UNBOUNDED, console, printable

if TYPE_CHECKING:
    from rich.table import Table


def make_table(*headings: str) -> Table:
    """A table without frames; a heading that starts with ``>`` aligns to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(
            heading.removeprefix(">"),
            justify="right" if heading.startswith(">") else "left",
            overflow="fold",
        )
    return table


def print_table(table: Table) -> None:
    """Print a table, its rows on one line each: a terminal wraps them better than cells would.

    Without the spaces that fill its last column.
    """
    terminal = console(sys.stdout, width=UNBOUNDED)
    with terminal.capture() as captured:
        terminal.print(table)
    for line in captured.get().splitlines():
        print(line.rstrip())  # noqa: T201 - the result; its cells are printable already


def add_row(table: Table, *cells: str) -> None:
    """Add cells, whatever they hold made printable."""
    table.add_row(*(printable(cell) for cell in cells))
