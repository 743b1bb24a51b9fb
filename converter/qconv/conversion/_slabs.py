"""Slabs: runs of artifact rows that are read, quantized, encoded and written together.

Tensors of different targets that take the same rows of the same sources share one job, so that
weights are read once however many targets there are.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from qconv.conversion._arranged import read_arranged
from qconv.planning import arranged_shape, matrix_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

    from qconv.planning import TargetPlan
    from qconv.plugin import Arrangement, ModelInfo, RowOrder, TensorPlan

    Read = Callable[[str, int, int], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Rows of some sources in some order, and what every target makes of them.

    sources: name and row count of each source, whose rows follow one another
    uses: target index and that target's plan of the tensor
    arrangement: of the source; ``source_rows`` are its rows as it is stored
    """

    sources: tuple[tuple[str, int], ...]
    order: RowOrder | None
    rows: int
    columns: int
    uses: tuple[tuple[int, TensorPlan], ...]
    arrangement: Arrangement = "rows"
    source_rows: int = 0

    def slabs(self, weights: int, together: int = 1) -> Iterator[tuple[int, int]]:
        """Row ranges of at most ``weights`` values each, in multiples of ``together`` rows."""
        together = max(1, together)
        step = max(1, weights // max(1, self.columns * together)) * together
        for start in range(0, max(1, self.rows), step):
            yield start, min(start + step, self.rows)

    def origin(self, row: int) -> tuple[str, int] | None:
        """The source tensor, and its row, that artifact row ``row`` is; None when generated."""
        at = row if self.order is None else self.order.index[row]
        for name, rows in self.sources:
            if at < rows:
                return name, at
            at -= rows
        return None


def make_jobs(model: ModelInfo, targets: Sequence[TargetPlan]) -> list[Job]:
    """Group all targets' tensors by the rows they take; in the first target's file order."""
    groups: dict[tuple[object, ...], list[tuple[int, TensorPlan]]] = {}
    for number, target in enumerate(targets):
        for plan in target.tensors.tensors:
            groups.setdefault(_key(number, plan), []).append((number, plan))
    jobs = []
    for uses in groups.values():
        first = uses[0][1]
        rows, columns = matrix_shape(first.shape)
        shapes = [model.tensors[name].shape for name in first.sources]
        jobs.append(
            Job(
                sources=tuple(
                    (name, arranged_shape(shape, first.arrangement)[0])
                    for name, shape in zip(first.sources, shapes, strict=True)
                ),
                order=first.row_order,
                rows=rows,
                columns=columns,
                uses=tuple(uses),
                arrangement=first.arrangement,
                source_rows=sum(matrix_shape(shape)[0] for shape in shapes),
            )
        )
    return jobs


def _key(target: int, plan: TensorPlan) -> tuple[object, ...]:
    if not plan.sources:
        return ("generated", target, plan.name)
    order = tuple(plan.row_order.index) if plan.row_order else None
    return (plan.sources, matrix_shape(plan.shape), order, plan.arrangement)


def read_slab(job: Job, start: int, stop: int, read: Read) -> torch.Tensor:
    """Artifact rows ``start:stop`` of the job, (rows, columns or bytes per row), as ``read`` gives.

    Peak memory: the slab, twice when rows must be put in order.
    """
    import torch

    if job.arrangement != "rows":
        return read_arranged(job, start, stop, read)
    if job.order is None:
        parts = [read(name, low, high) for name, low, high in _split(job.sources, start, stop)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    wanted = torch.as_tensor(list(job.order.index[start:stop]), dtype=torch.int64)
    runs = _close_runs(wanted)
    base, kept = 0, []
    position = torch.empty_like(wanted)
    for low, high, members in runs:
        parts = [read(name, a, b) for name, a, b in _split(job.sources, low, high)]
        kept += parts
        position[members] = wanted[members] - low + base
        base += high - low
    rows = kept[0] if len(kept) == 1 else torch.cat(kept)
    return rows.index_select(0, position.to(rows.device))


def _split(
    sources: Sequence[tuple[str, int]], start: int, stop: int
) -> Iterator[tuple[str, int, int]]:
    """Rows ``start:stop`` over all sources, as row ranges of each source."""
    ends = list(accumulate(rows for _, rows in sources))
    number = bisect_right(ends, start)
    while start < stop:
        name, rows = sources[number]
        first = ends[number] - rows
        end = min(stop, ends[number])
        yield name, start - first, end - first
        start, number = end, number + 1


def _close_runs(wanted: torch.Tensor) -> list[tuple[int, int, torch.Tensor]]:
    """Row ranges to read so that all ``wanted`` rows come in, and who is in which.

    Gaps of up to as many rows as are wanted are read along: one read is cheaper than two.
    """
    import torch

    order = torch.argsort(wanted)
    rows = wanted[order]
    breaks = torch.nonzero(rows.diff() > len(wanted)).flatten().tolist()
    edges = [0, *(at + 1 for at in breaks), len(rows)]
    return [(int(rows[a]), int(rows[b - 1]) + 1, order[a:b]) for a, b in pairwise(edges)]
