"""Streams a tensor's values once and counts what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from qconv._sources import OpenedSource
    from qconv.plugin import TensorInfo

#: Values in hand at a time: 16 MB as float32.
_SLAB = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueSummary:
    """What a tensor's values are like. Rows flatten all but the last dimension.

    nans, infs: how many values
    zero_rows: rows of nothing but zeros
    constant_rows: rows, of two values at least, that are all the same number but not zero
    minimum, maximum, abs_max: over the finite values; None when there are none
    """

    nans: int
    infs: int
    zero_rows: int
    constant_rows: int
    minimum: float | None
    maximum: float | None
    abs_max: float | None


@dataclass(frozen=True, slots=True)
class _Extent:
    """Per row: the range of its finite values (inf to -inf without any), and the other ones.

    All of shape (rows,).
    """

    low: torch.Tensor
    high: torch.Tensor
    nans: torch.Tensor
    infs: torch.Tensor

    def joined(self, other: _Extent) -> _Extent:
        """The same rows, seen together with more of their columns."""
        return _Extent(
            self.low.minimum(other.low),
            self.high.maximum(other.high),
            self.nans + other.nans,
            self.infs + other.infs,
        )


def summarise(
    checkpoint: OpenedSource, info: TensorInfo, progress: Callable[[float], None]
) -> ValueSummary:
    """Read a tensor once, 16 MB of float32 values at a time.

    progress: called after each slab with the share of the tensor read so far, up to 1
    """
    columns = info.shape[-1] if info.shape else 1
    rows = info.numel // columns if columns else 0
    running = _Running(columns)
    if columns > _SLAB:
        for row in range(rows):
            running.add(reduce(_Extent.joined, _parts(checkpoint, info, row, progress)))
        return running.summary()
    step = max(1, _SLAB // max(1, columns))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        running.add(_extent(checkpoint.read_rows(info.name, start, stop)))
        progress(stop / rows)
    return running.summary()


def _parts(
    checkpoint: OpenedSource, info: TensorInfo, row: int, progress: Callable[[float], None]
) -> Iterable[_Extent]:
    """One row, of one column at least, in parts."""
    columns, block = info.shape[-1], checkpoint.block(info.name)
    step = _SLAB // block * block
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        yield _extent(checkpoint.read_part(info.name, row, start, stop).reshape(1, -1))
        progress((row * columns + stop) / info.numel)


def _extent(values: torch.Tensor) -> _Extent:
    """values: (rows, columns), at least one column, any stored dtype."""
    import torch

    values = _computable(values)
    # Two passes, as torch.aminmax takes three times as long along a dimension.
    low, high = values.amin(dim=1), values.amax(dim=1)
    none = torch.zeros(len(values), dtype=torch.int64)
    # NaN and infinity reach the extremes, so that sound rows need no second look.
    if bool((low.isfinite() & high.isfinite()).all()):
        return _Extent(low, high, none, none)
    odd = ~values.isfinite()
    nans = values.isnan().sum(dim=1)
    low = values.masked_fill(odd, math.inf).amin(dim=1)
    high = values.masked_fill(odd, -math.inf).amax(dim=1)
    return _Extent(low, high, nans, odd.sum(dim=1) - nans)


def _computable(values: torch.Tensor) -> torch.Tensor:
    """Types without extremes of their own in one that has them and holds their values."""
    import torch

    if values.dtype in {torch.uint16, torch.uint32, torch.uint64}:
        return values.to(torch.float64)
    if values.is_floating_point() and values.dtype.itemsize == 1:
        return values.to(torch.float32)
    return values


class _Running:
    """Sums extents up, row slab by row slab."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._nans = self._infs = self._zero_rows = self._constant_rows = 0
        self._low, self._high = math.inf, -math.inf

    def add(self, extent: _Extent) -> None:
        """Count the rows of one slab."""
        sound = (extent.nans + extent.infs) == 0
        level = sound & (extent.low == extent.high)
        zero = level & (extent.low == 0)
        self._nans += int(extent.nans.sum())
        self._infs += int(extent.infs.sum())
        self._zero_rows += int(zero.sum())
        if self._columns > 1:
            self._constant_rows += int((level & ~zero).sum())
        self._low = min(self._low, float(extent.low.min()))
        self._high = max(self._high, float(extent.high.max()))

    def summary(self) -> ValueSummary:
        """What was counted."""
        finite = self._low <= self._high
        return ValueSummary(
            nans=self._nans,
            infs=self._infs,
            zero_rows=self._zero_rows,
            constant_rows=self._constant_rows,
            minimum=self._low if finite else None,
            maximum=self._high if finite else None,
            abs_max=max(abs(self._low), abs(self._high)) if finite else None,
        )
