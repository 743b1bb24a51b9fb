"""Rounding the columns of one fit with feedback: numba on the CPU, the same steps in torch on CUDA.

Columns are taken in batches: within one, each column takes up the errors of those before it one by
one; what earlier batches ask for is one matrix product ("lazy batch updates", section 3.3 of
https://arxiv.org/abs/2210.17323).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

    from ._steps import Steps

#: Columns rounded one by one before their errors are multiplied out; a tile of them and of their
#: errors stays in the first-level cache.
BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rounded:
    """What came of it, in the order of rounding.

    codes: (columns, rows), one byte each
    loss: (rows,) float32: squared errors, weighed by what columns still to come cannot make good
    """

    codes: torch.Tensor
    loss: torch.Tensor


class Batch(NamedTuple):
    """Columns to round one by one; the last three are written to, the loss added to.

    target: (columns, rows) float32: what errors are counted from
    goal: (columns, rows) float32: the target less what earlier batches ask for
    run: (columns,) int64: which of the steps' runs each column belongs to
    factor: (columns, columns) float32, unit upper triangular
    d: (columns,) float32
    codes: (columns, rows), one byte each
    error: (columns, rows) float32
    loss: (rows,) float32
    """

    target: torch.Tensor
    goal: torch.Tensor
    run: torch.Tensor
    factor: torch.Tensor
    d: torch.Tensor
    codes: torch.Tensor
    error: torch.Tensor
    loss: torch.Tensor


def round_columns(
    target: torch.Tensor,
    steps: Steps,
    place: torch.Tensor,
    factor: torch.Tensor,
    d: torch.Tensor,
) -> Rounded:
    """Round ``target`` column by column, in the order it comes.

    target: (columns, rows) float32, contiguous: the weights, as columns before them left them
    place: (columns,) int64: where each column stands in the fit
    factor: (columns, columns) float32, unit upper triangular, and ``d``: (columns,) float32
    """
    import torch

    codes = torch.empty(target.shape, dtype=steps.dtype, device=target.device)
    error = torch.empty_like(target)
    loss = target.new_zeros(target.shape[1])
    run = place // steps.run
    round_batch = _round_batch if target.device.type == "cpu" else round_batch_reference
    for start in range(0, len(target), BATCH):
        part = slice(start, start + BATCH)
        goal = target[part]
        if start:
            goal = torch.addmm(goal, factor[:start, part].t(), error[:start], alpha=-1.0)
        batch = Batch(
            target=target[part],
            goal=goal,
            run=run[part],
            factor=factor[part, part].contiguous(),
            d=d[part],
            codes=codes[part],
            error=error[part],
            loss=loss,
        )
        round_batch(batch, steps)
    return Rounded(codes=codes, loss=loss)


def _round_batch(batch: Batch, steps: Steps) -> None:
    import numpy as np

    from . import _kernels

    arrays = [each.numpy() for each in batch]
    of_steps = [each.numpy() for each in (steps.scale, steps.inverse, steps.offset)]
    if steps.book is None:
        ends = np.float32(steps.lowest), np.float32(steps.highest)
        _kernels.round_even_steps(*of_steps, *ends, *arrays)
    else:
        book = [each.numpy() for each in (steps.book.values, steps.book.codes, steps.book.bounds)]
        _kernels.round_codebook(*of_steps, *book, *arrays)


def round_batch_reference(batch: Batch, steps: Steps) -> None:
    """What the kernels do, in torch, on any device."""
    import torch

    scale, inverse, offset = (
        each[batch.run] for each in (steps.scale, steps.inverse, steps.offset)
    )
    wanted = batch.goal.clone()
    for i in range(len(wanted)):
        step = (wanted[i] - offset[i]) * inverse[i]
        if steps.book is None:
            step = step.clamp(steps.lowest, steps.highest).round()
            batch.codes[i] = step.to(steps.dtype)
        else:
            place = torch.bucketize(step, steps.book.bounds)
            step = steps.book.values[place]
            batch.codes[i] = steps.book.codes[place].to(steps.dtype)
        value = scale[i] * step + offset[i]
        batch.error[i] = value - batch.target[i]
        batch.loss.add_(batch.d[i] * (value - wanted[i]).square())
        wanted[i + 1 :] -= batch.factor[i, i + 1 :, None] * batch.error[i]
