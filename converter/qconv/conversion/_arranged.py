"""Reads tensors that lie otherwise in the source than in the artifact: transposed, or flat.

Peak memory: the slab, and one piece of :data:`_PIECE` values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from qconv.conversion._slabs import Job

    Read = Callable[[str, int, int], torch.Tensor]

#: Values of a transposed tensor that are read at once: 4 MiB as float32.
_PIECE = 1 << 20


def read_arranged(job: Job, start: int, stop: int, read: Read) -> torch.Tensor:
    """Artifact rows ``start:stop`` of a job whose arrangement is not ``rows``, (rows, columns)."""
    ((name, _),) = job.sources
    if job.arrangement == "flat":
        return _flat(job, name, start, stop, read)
    return _transposed(job, name, start, stop, read)


def _flat(job: Job, name: str, start: int, stop: int, read: Read) -> torch.Tensor:
    """Rows of the source follow one another: many of them are one of the artifact."""
    each = job.source_rows // job.rows if job.rows else 0
    return read(name, start * each, stop * each).reshape(stop - start, -1)


def _transposed(job: Job, name: str, start: int, stop: int, read: Read) -> torch.Tensor:
    step = max(1, _PIECE // max(1, job.rows))
    out: torch.Tensor | None = None
    for first in range(0, max(1, job.columns), step):
        last = min(first + step, job.columns)
        piece = read(name, first, last)[:, start:stop]
        if out is None:
            out = piece.new_empty((stop - start, job.columns))
        out[:, first:last] = piece.t()
    if out is None:
        raise RuntimeError(f"tensor {name!r}: nothing was read")
    return out
