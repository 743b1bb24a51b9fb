"""The scales of a codebook grid: the largest magnitude of a block, or searched.

As in :mod:`qconv.grids._uniform_fit`, a candidate is scored by one pass over the weights: parts of
the largest magnitude, a little to either side of the best one, and what scale the best one's levels
ask for, ``s = sum(h x q) / sum(h q^2)``. That is taken where it errs less than the largest
magnitude. On the CPU :mod:`qconv.kernels.codebook_search` gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Candidates as parts of the largest magnitude: half of it to a fifth more. Measured on
#: language-model weights with NF4: within 0.3 % of the error of 60 candidates, 1.4 % where inputs
#: matter very unevenly.
_RATIOS = tuple(0.5 + 0.0875 * step for step in range(9))
#: How far finer candidates are from the best one, as a part of it.
_FINE = 0.03

#: bitsandbytes' own floor: the inverse of a scale stays finite.
_FLOOR = 1e-38

#: Weights per transposed slab of the reference: about 1 GB of temporaries.
_SLAB = 1 << 25


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
    weight: torch.Tensor, importance: torch.Tensor, size: int, levels: Levels
) -> torch.Tensor:
    """The scale of least weighted squared error of every block: (rows, blocks) float32.

    weight: (rows, in) float32
    importance: (in,) float32, at most 1
    size: columns per block
    """
    from qconv.kernels import codebook_search

    if weight.device.type != "cpu":
        return searched_reference(weight, importance, size, levels)
    values, bounds = levels.values, levels.bounds
    return codebook_search.fit(
        weight.contiguous(), importance, size, values, bounds, _RATIOS, _FINE
    )


def searched_reference(
    weight: torch.Tensor, importance: torch.Tensor, size: int, levels: Levels
) -> torch.Tensor:
    """What :func:`searched` computes, in torch, on any device."""
    import torch

    step = max(1, _SLAB // weight.shape[1])
    parts = []
    for start in range(0, len(weight), step):
        rows = weight[start : start + step]
        blocks = _Blocks(weight=rows.t().contiguous(), importance=importance, levels=levels)
        parts.append(blocks.best(plain(rows, size).t().contiguous()).t())
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

        best = _Best(raw=absmax, refined=absmax, score=torch.zeros_like(absmax))
        for ratio in _RATIOS:
            best = self._or_better(best, absmax * ratio)
        raw = best.raw
        for part in (1.0 - _FINE, 1.0 + _FINE):
            best = self._or_better(best, raw * part)
        best = self._or_better(best, best.refined)
        wins = self._error(best.refined) < self._error(absmax)
        return torch.where(wins, best.refined, absmax)

    def _or_better(self, best: _Best, scale: torch.Tensor) -> _Best:
        """Per block whichever scores higher; the first one found where they tie."""
        import torch

        from qconv.kernels import codebook

        levels = self.levels
        dot, square = codebook.dots(
            self.weight, self.importance, inverse(scale), levels.values, levels.bounds
        )
        # 0 / 0 where all levels are zero: NaN loses.
        refined = dot / square
        score = dot * refined
        wins = score > best.score
        return _Best(
            raw=torch.where(wins, scale, best.raw),
            refined=torch.where(wins, refined, best.refined),
            score=torch.where(wins, score, best.score),
        )

    def _error(self, scale: torch.Tensor) -> torch.Tensor:
        from qconv.kernels import codebook

        levels = self.levels
        return codebook.errors(
            self.weight, self.importance, scale, inverse(scale), levels.values, levels.bounds
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Best:
    """The best candidates so far, one per block: what was tried, the scale its levels ask for."""

    raw: torch.Tensor
    refined: torch.Tensor
    score: torch.Tensor
