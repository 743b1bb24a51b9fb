"""The error of every tensor of an artifact in one picture: kinds of tensors down, blocks across."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._figures import figure
from ._frame import WIDTH, drawing, text
from ._markup import Markup, element

if TYPE_CHECKING:
    from qconv.validation import TensorResult

#: How many shades the style sheet has, ``h0`` the least.
SHADES = 6
#: Rows shown, those with the largest errors; what a mixture or a tower adds has no end.
_MOST_ROWS = 24
_ROW = 13
#: Of a label: the most letters, and pixels of each.
_LETTERS, _LETTER = 23, 6.3
_NUMBER = re.compile(r"(?:(?<=\.)|^)\d{1,6}(?=\.)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    """The worst tensor of one kind in one block. block: -1 where its name holds no number."""

    kind: str
    block: int
    name: str
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """Where cells lie and how they are shaded.

    left: of the first column, in pixels; wide: of each
    across: numbers of columns by block
    limits: between shades
    """

    left: float
    wide: float
    across: Mapping[int, int]
    limits: tuple[float, ...]

    def at(self, block: int) -> float:
        """The left side of a block's column."""
        return self.left + self.across[block] * self.wide


@dataclass(frozen=True, slots=True, kw_only=True)
class Heatmap:
    """The picture, the limits between its shades, and how many kinds of tensors it leaves out."""

    picture: Markup
    limits: tuple[float, ...]
    left_out: int


def heatmap(tensors: Sequence[TensorResult], name: str) -> Heatmap | None:
    """Relative errors of tensors, by kind and block; None where nothing was compared or lost.

    Experts of a block share a cell, which shows the worst of them.
    """
    cells = list(_cells(tensors))
    errors = [cell.error for cell in cells if cell.error > 0 and math.isfinite(cell.error)]
    if not errors:
        return None
    limits = _limits(errors)
    rows: dict[str, list[_Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.kind, []).append(cell)
    lossy = {kind: row for kind, row in rows.items() if any(cell.error != 0 for cell in row)}
    shown = _worst(lossy)
    blocks = sorted({cell.block for row in shown.values() for cell in row})
    across = {block: number for number, block in enumerate(blocks)}
    left = _LETTER * max(len(_short(kind)) for kind in shown) + 6
    columns = _Columns(left=left, wide=(WIDTH - left) / len(blocks), across=across, limits=limits)
    return Heatmap(
        picture=drawing(
            (_row(at, shown[kind], columns) for at, kind in enumerate(shown)),
            _numbers(columns, len(shown)),
            title=f"Relative error of the tensors of {name}, by kind and block",
            height=_ROW * len(shown) + 18,
        ),
        limits=limits,
        left_out=len(lossy) - len(shown),
    )


def _cells(tensors: Iterable[TensorResult]) -> Iterable[_Cell]:
    """One cell for each kind and block, in the order of the artifact."""
    worst: dict[tuple[str, int], _Cell] = {}
    for tensor in tensors:
        if tensor.relative_error is None:
            continue
        number = _NUMBER.search(tensor.name)
        cell = _Cell(
            kind=_NUMBER.sub("*", tensor.name),
            block=int(number[0]) if number else -1,
            name=tensor.name,
            error=math.inf if math.isnan(tensor.relative_error) else tensor.relative_error,
        )
        key = (cell.kind, cell.block)
        if key not in worst or worst[key].error < cell.error:
            worst[key] = cell
    yield from worst.values()


def _worst(rows: Mapping[str, list[_Cell]]) -> dict[str, list[_Cell]]:
    """The rows to show, in their order."""
    by_error = sorted(rows, key=lambda kind: -max(cell.error for cell in rows[kind]))
    chosen = set(by_error[:_MOST_ROWS])
    return {kind: row for kind, row in rows.items() if kind in chosen}


def _limits(errors: Sequence[float]) -> tuple[float, ...]:
    """Where one shade gives way to the next, equally far apart in the logarithm.

    They span a factor of two at least, so that small differences look small, and leave out the
    least twentieth, so that one tensor with hardly an error does not make all others look alike.
    """
    least = sorted(errors)[len(errors) // 20]
    most = max(*errors, least * 2)
    step = math.log(most / least) / SHADES
    return tuple(least * math.exp(step * number) for number in range(1, SHADES))


def _shade(error: float, limits: Sequence[float]) -> str:
    if error == 0:
        return "exact"
    if not math.isfinite(error):
        return "broken"
    return f"h{sum(error > limit for limit in limits)}"


def _row(at: int, cells: Sequence[_Cell], columns: _Columns) -> Iterable[Markup]:
    y = float(at * _ROW)
    yield text(columns.left - 5, y + 10, _short(cells[0].kind), anchor="end")
    for cell in cells:
        yield element(
            "rect",
            element("title", f"{cell.name}: {figure(cell.error)}"),
            x=columns.at(cell.block),
            y=y + 0.5,
            width=max(columns.wide - 0.7, 0.7),
            height=_ROW - 1.0,
            class_=_shade(cell.error, columns.limits),
        )


def _short(kind: str) -> str:
    """A kind without what all of them have; its end, if it is long."""
    label = kind.removesuffix(".weight")
    label = label.rpartition("*.")[2] or label
    return label if len(label) <= _LETTERS else "…" + label[1 - _LETTERS :]


def _numbers(columns: _Columns, rows: int) -> Iterable[Markup]:
    """Numbers of blocks below the last row, as many as there is room for."""
    numbered = [block for block in columns.across if block >= 0]
    every = max(1, math.ceil(18 / columns.wide))
    for block in numbered[::every]:
        x = columns.at(block) + columns.wide / 2
        yield text(x, rows * _ROW + 12.0, str(block), anchor="middle")
