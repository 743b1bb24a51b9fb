"""The scales of a float grid: from the largest magnitude, or searched.

A scale moves the places where the spacing of the values doubles; up to a factor of two nothing
clips more than before. Candidates are spread over that octave and a little below it; the best is
then refined once, as in :mod:`qconv.grids._uniform_fit`: ``s = sum(h x q) / sum(h q^2)``. The plain
scale comes first and a later one must be strictly better.

Sums are float32, halves added to halves: the same on CPU and CUDA, on however many threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qconv.grids import _e4m3
from qconv.grids._uniform_fit import over, stored_scale

if TYPE_CHECKING:
    import torch

#: Candidates as multiples of the plain scale. Measured on language-model weights: ten are within
#: 0.1 % of the error of 40.
_RATIOS = tuple(2.0 ** (step / 8) for step in (-2, -1, 1, 2, 3, 4, 5, 6, 7))

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
        return self._down(torch.cat(parts)).amax(1)

    def sums(self, terms: Iterator[torch.Tensor]) -> torch.Tensor:
        """Sums per tile of what comes for the rows of :meth:`parts`, one after another."""
        import torch

        return _sum(self._down(torch.cat([_sum(self._across(part), 2) for part in terms])), 1)

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

    def _down(self, values: torch.Tensor) -> torch.Tensor:
        """(rows, tiles across) as (tiles down, height, tiles across), padded likewise."""
        import torch

        missing = -len(values) % self.height
        padded = torch.nn.functional.pad(values, (0, 0, 0, missing)) if missing else values
        return padded.view(-1, self.height, values.shape[1])


def plain(tiles: Tiles, dtype: torch.dtype) -> torch.Tensor:
    """The scale that puts the largest magnitude on 448, as ``dtype`` holds it, in float32.

    1 where all weights are zero.
    """
    import torch

    largest = tiles.largest()
    scale = stored_scale(over(largest, _e4m3.LARGEST), dtype).float()
    return torch.where(largest == 0, 1.0, scale)


def searched(
    tiles: Tiles, importance: torch.Tensor, best: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """The scale of least weighted squared error, shaped and stored like ``best``.

    importance: (in,) float32, at most 1
    best: the plain scale

    Peak memory: a slab's temporaries, and a value per row and tile.
    """
    error = _error(tiles, importance, best)
    start = best
    for ratio in _RATIOS:
        best, error = _better(
            tiles, importance, best, error, stored_scale(start * ratio, dtype).float()
        )
    dot, square = _dots(tiles, importance, best)
    # NaN where all steps are zero; it errs by NaN, and so loses.
    refined = stored_scale(dot / square, dtype).float()
    return _better(tiles, importance, best, error, refined)[0]


def _better(
    tiles: Tiles,
    importance: torch.Tensor,
    best: torch.Tensor,
    error: torch.Tensor,
    other: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per tile whichever scale errs less, and by how much; the first where they tie."""
    import torch

    found = _error(tiles, importance, other)
    wins = found < error
    return torch.where(wins, other, best), torch.where(wins, found, error)


def _error(tiles: Tiles, importance: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``sum h (x - s q)^2`` per tile."""

    def terms() -> Iterator[torch.Tensor]:
        for rows, s in tiles.parts(scale):
            x = tiles.weight[rows]
            e = x - s * _rounded(x, s)
            yield (importance * e).mul_(e)

    return tiles.sums(terms())


def _dots(
    tiles: Tiles, importance: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``sum h x q`` and ``sum h q^2`` per tile."""
    parts = [(tiles.weight[rows], s) for rows, s in tiles.parts(scale)]
    dot = tiles.sums(importance * _rounded(x, s) * x for x, s in parts)
    square = tiles.sums(importance * _rounded(x, s).square() for x, s in parts)
    return dot, square


def _rounded(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return _e4m3.decode(_e4m3.encode(x / scale))


def _sum(terms: torch.Tensor, dim: int) -> torch.Tensor:
    """Sums over ``dim``: what is in the upper half is added to the lower one, until one is left."""
    import torch

    while (size := terms.shape[dim]) > 1:
        half = size // 2
        halves = terms.narrow(dim, 0, half) + terms.narrow(dim, half, half)
        odd = terms.narrow(dim, 2 * half, size - 2 * half)
        terms = torch.cat([halves, odd], dim) if size % 2 else halves
    return terms.squeeze(dim)
