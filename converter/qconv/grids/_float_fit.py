"""The scales of a float grid: from the largest magnitude, or searched.

A scale moves the places where the spacing of the values doubles; up to a factor of two nothing
clips more than before. Candidates are spread over that octave and a little below it, and each is
scored as in :mod:`qconv.grids._uniform_fit`: with the scale of least error for its values,
``s = sum(h x q) / sum(h q^2)``. Then come a few to either side of the best one. The winner's ``s``
is taken where it errs less than the plain scale.

Sums over a row's tile are :mod:`qconv.kernels.floats`; rows are added up halves to halves: the same
on CPU and CUDA, on however many threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qconv.grids import _e4m3
from qconv.grids._uniform_fit import over, stored_scale

if TYPE_CHECKING:
    import torch

#: Candidates as multiples of the plain scale, and finer ones as multiples of the best. Measured on
#: language-model weights: within 0.8 % of the error of four times as many; the plain scale errs up
#: to 16 % more per channel, up to 92 % where inputs matter very unevenly.
_RATIOS = tuple(2.0 ** (step / 24) for step in range(-8, 24))
_FINE = tuple(2.0 ** (step / 72) for step in (-1, 0, 1))

#: Weights worked on at once: they and a few temporaries stay in the second-level cache.
_CPU_SLAB = 1 << 16
_GPU_SLAB = 1 << 25


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tiles:
    """A matrix cut into tiles of ``height`` by ``width``, the last ones smaller where it ends.

    weight: (rows, in)
    Values per tile are (tiles down, tiles across).
    """

    weight: torch.Tensor
    height: int
    width: int

    def parts(self, scale: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Rows to work on at once, and the scales of their weights, which broadcast over them.

        scale: (tiles down, tiles across) float32
        """
        for rows in self._slabs():
            yield rows, self._of_rows(scale, rows)

    def largest(self) -> torch.Tensor:
        """The largest magnitude of every tile, float32."""
        import torch

        parts = [self._across(self.weight[rows].abs()).amax(2) for rows in self._slabs()]
        return self._stacked(torch.cat(parts)).amax(-2)

    def of_rows(self, scale: torch.Tensor) -> torch.Tensor:
        """(..., tiles down, tiles across) as (..., rows, tiles across)."""
        rows = len(self.weight)
        return scale.repeat_interleave(self.height, -2)[..., :rows, :].contiguous()

    def down(self, values: torch.Tensor) -> torch.Tensor:
        """Sums over the rows of each tile: of (..., rows, tiles across)."""
        return _sum(self._stacked(values), -2)

    def _stacked(self, values: torch.Tensor) -> torch.Tensor:
        """(..., rows, tiles across) as (..., tiles down, height, tiles across), padded by zeros."""
        import torch

        missing = -values.shape[-2] % self.height
        padded = torch.nn.functional.pad(values, (0, 0, 0, missing)) if missing else values
        return padded.reshape(*values.shape[:-2], -1, self.height, values.shape[-1])

    def _slabs(self) -> Iterator[slice]:
        rows, columns = self.weight.shape
        slab = _CPU_SLAB if self.weight.device.type == "cpu" else _GPU_SLAB
        step = max(1, slab // columns)
        for start in range(0, rows, step):
            yield slice(start, min(start + step, rows))

    def _of_rows(self, scale: torch.Tensor, rows: slice) -> torch.Tensor:
        """(rows, in), or (rows, 1) where a row has one scale."""
        import torch

        down = torch.arange(rows.start, rows.stop, device=scale.device) // self.height
        own = scale[down]  # (rows, tiles across)
        if own.shape[1] == 1:
            return own
        return own.repeat_interleave(self.width, 1)[:, : self.weight.shape[1]]

    def _across(self, values: torch.Tensor) -> torch.Tensor:
        """(rows, in) as (rows, tiles across, width), zeros where the last tile ends early."""
        import torch

        rows, columns = values.shape
        missing = -columns % self.width
        padded = torch.nn.functional.pad(values, (0, missing)) if missing else values
        return padded.reshape(rows, -1, self.width)


def plain(tiles: Tiles, dtype: torch.dtype) -> torch.Tensor:
    """The scale that puts the largest magnitude on 448, as ``dtype`` holds it, in float32.

    1 where all weights are zero.
    """
    import torch

    largest = tiles.largest()
    scale = stored_scale(over(largest, _e4m3.LARGEST), dtype).float()
    return torch.where(largest == 0, 1.0, scale)


def searched(
    tiles: Tiles, importance: torch.Tensor, start: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """The scale of least weighted squared error, shaped and stored like ``start``.

    importance: (in,) float32, at most 1
    start: the plain scale

    Peak memory: a value per candidate, row and tile.
    """
    import torch

    best = _best_of(tiles, importance, start, _RATIOS, dtype)
    best = _best_of(tiles, importance, best, _FINE, dtype)
    wins = _error(tiles, importance, best) < _error(tiles, importance, start)
    return torch.where(wins, best, start)


def _best_of(
    tiles: Tiles,
    importance: torch.Tensor,
    scale: torch.Tensor,
    ratios: tuple[float, ...],
    dtype: torch.dtype,
) -> torch.Tensor:
    """The refined scale of the best multiple of ``scale``, per tile; ``scale`` where none is."""
    import torch

    from qconv.kernels import floats

    candidates = torch.stack([stored_scale(scale * ratio, dtype).float() for ratio in ratios])
    inverse = tiles.of_rows(1.0 / candidates)
    sums = floats.sums(tiles.weight.contiguous(), importance, inverse, tiles.width)
    dot, square = (tiles.down(each) for each in sums)  # (candidates, tiles down, tiles across)
    best, highest = scale, torch.zeros_like(scale)
    # One after another: which of equal ones a maximum takes depends on the device. 0 / 0, where all
    # values are zero, is NaN and loses.
    for refined, score in zip(dot / square, dot * (dot / square), strict=True):
        wins = score > highest
        best = torch.where(wins, stored_scale(refined, dtype).float(), best)
        highest = torch.where(wins, score, highest)
    return best


def _error(tiles: Tiles, importance: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``sum h (x - s q)^2`` per tile."""
    from qconv.kernels import floats

    weight, spread = tiles.weight.contiguous(), tiles.of_rows(scale)
    return tiles.down(floats.errors(weight, importance, spread, tiles.width))


def _sum(terms: torch.Tensor, dim: int) -> torch.Tensor:
    """Sums over ``dim``: what is in the upper half is added to the lower one, until one is left."""
    import torch

    while (size := terms.shape[dim]) > 1:
        half = size // 2
        halves = terms.narrow(dim, 0, half) + terms.narrow(dim, half, half)
        odd = terms.narrow(dim, 2 * half, size - 2 * half)
        terms = torch.cat([halves, odd], dim) if size % 2 else halves
    return terms.squeeze(dim)
