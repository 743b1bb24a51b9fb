"""Which tensors, and which of their rows, a look that must be cheap decodes and compares.

Of every kind of tensor (a name without its numbers) the first, then the last; of each, runs of rows
spread evenly from the first to the last.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from qconv.planning import matrix_shape
from qconv.validation._stored import cost

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qconv.plugin import ArtifactReader

#: Values compared of one tensor, and rows that follow one another in a run.
_VALUES, _RUN = 1 << 19, 8

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")

Runs = tuple[tuple[int, int], ...]


def whole(rows: int) -> Runs:
    """All rows in one run."""
    return ((0, rows),)


def chosen_runs(rows: int, columns: int) -> Runs:
    """Runs of rows, first and last included: all where that is few enough."""
    count = max(2, _VALUES // max(1, columns * _RUN))
    if rows <= count * _RUN:
        return whole(rows)
    last = rows - _RUN
    starts = sorted({number * last // (count - 1) for number in range(count)})
    return tuple((start, start + _RUN) for start in starts)


def chosen_tensors(
    names: Sequence[str], reader: ArtifactReader, budget: int | None
) -> Mapping[str, Runs]:
    """The tensors to look at, and their rows; the cheapest kinds first, and one at least.

    budget: values to decode and compare at most; None: everything
    """
    shapes = {name: matrix_shape(reader.tensors[name].shape) for name in names}
    if budget is None:
        return {name: whole(rows) for name, (rows, _) in shapes.items()}
    runs = {name: chosen_runs(*shapes[name]) for name in names}
    costs = {name: cost(reader, name, _values(runs[name], shapes[name][1])) for name in names}
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(_NUMBER.sub("*", name), []).append(name)
    firsts = sorted((each[0] for each in kinds.values()), key=costs.__getitem__)
    lasts = sorted((each[-1] for each in kinds.values()), key=costs.__getitem__)
    chosen: dict[str, Runs] = {}
    spent = 0
    for name in dict.fromkeys([*firsts, *lasts]):
        if not chosen or spent + costs[name] <= budget:
            chosen[name] = runs[name]
            spent += costs[name]
    return chosen


def _values(runs: Runs, columns: int) -> int:
    return sum(stop - start for start, stop in runs) * columns
