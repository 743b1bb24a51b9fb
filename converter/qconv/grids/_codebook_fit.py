"""The scales of a codebook grid: the largest magnitude of a block, or searched.

As in :mod:`qconv.grids._uniform_fit`: candidates are parts of the largest magnitude, each refined
once to ``s = sum(h x q) / sum(h q^2)`` for the levels ``q`` it gives, and scored by
``sum h (x - s q)^2``. The largest magnitude comes first and a later candidate must be strictly
better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Candidates as parts of the largest magnitude.
_RATIOS = (0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05)

#: bitsandbytes' own floor: the inverse of a scale stays finite.
_FLOOR = 1e-38

#: Weights per transposed slab: it stays in the second-level cache over all candidates.
_CPU_SLAB = 1 << 18
_GPU_SLAB = 1 << 25


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Levels:
    """A codebook in ascending order.

    values: (16,) float32
    codes: (16,) uint8, of each level
    bounds: (15,) float32, half way between neighbours
    """

    values: torch.Tensor
    codes: torch.Tensor
    bounds: torch.Tensor

    @classmethod
    def of(cls, table: torch.Tensor) -> Levels:
        """The levels of a table: (16,) float32, by code. Of equal values the first is below."""
        import torch

        order = table.argsort(stable=True)
        values = table[order]
        return cls(
            values=values, codes=order.to(torch.uint8), bounds=(values[:-1] + values[1:]) / 2
        )


def plain(weight: torch.Tensor, size: int) -> torch.Tensor:
    """The largest magnitude of every block: (rows, blocks) float32.

    weight: (rows, in) float32
    size: columns per block
    """
    import torch

    blocks = weight.reshape(len(weight), -1, size)
    low, high = torch.aminmax(blocks, dim=2)
    return torch.maximum(-low, high)


def inverse(scale: torch.Tensor) -> torch.Tensor:
    """``1 / scale``; where that is not finite, a value of the scale's sign that is."""
    import torch

    return 1.0 / torch.copysign(scale.abs().clamp(min=_FLOOR), scale)


def searched(
    weight: torch.Tensor, importance: torch.Tensor, absmax: torch.Tensor, levels: Levels
) -> torch.Tensor:
    """The scale of least weighted squared error of every block: (rows, blocks) float32.

    weight: (rows, in) float32
    importance: (in,) float32, at most 1
    absmax: (rows, blocks) float32, the plain scales

    Peak memory: a transposed slab, and the scales.
    """
    import torch

    rows, columns = weight.shape
    slab = _CPU_SLAB if weight.device.type == "cpu" else _GPU_SLAB
    step = max(64, slab // columns // 64 * 64)  # whole vectors of rows
    parts = []
    for start in range(0, rows, step):
        x = weight[start : start + step].t().contiguous()
        blocks = _Blocks(weight=x, importance=importance, levels=levels)
        parts.append(blocks.best(absmax[start : start + step].t().contiguous()).t())
    return torch.cat(parts).contiguous()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Blocks:
    """Some rows of a weight, transposed: (in, rows); values per block are (blocks, rows)."""

    weight: torch.Tensor
    importance: torch.Tensor
    levels: Levels

    def best(self, absmax: torch.Tensor) -> torch.Tensor:
        """The scale that errs least."""
        import torch

        best, error = absmax, self._error(absmax)
        for ratio in _RATIOS:
            candidate = self._refined(absmax * ratio)
            other = self._error(candidate)
            wins = other < error  # False for NaN
            best, error = torch.where(wins, candidate, best), torch.where(wins, other, error)
        return best

    def _error(self, scale: torch.Tensor) -> torch.Tensor:
        from qconv.kernels import codebook

        levels = self.levels
        return codebook.errors(
            self.weight, self.importance, scale, inverse(scale), levels.values, levels.bounds
        )

    def _refined(self, scale: torch.Tensor) -> torch.Tensor:
        from qconv.kernels import codebook

        levels = self.levels
        dot, square = codebook.dots(
            self.weight, self.importance, inverse(scale), levels.values, levels.bounds
        )
        # 0 / 0 where all levels are zero: NaN loses, as no scale can err more than all zeros.
        return dot / square
