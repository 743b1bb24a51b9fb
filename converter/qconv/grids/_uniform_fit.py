"""The search for the scales and zero-points of a uniform grid.

Candidates shrink or stretch the range that the codes span. Each is refined once: with the steps
``q`` it gives, the scale of least error is ``s = sum(h x q) / sum(h q^2)``; ``s`` is rounded to the
dtype it is stored in, and scored by what matters, ``sum h (x - s q(s))^2``. The first candidate is
the plain fit to the largest magnitude and a later one must be strictly better, so no group ends up
worse than plainly fitted.

The logic is elementwise torch on one value per group, the same on CPU and CUDA; the sums over the
weights are :mod:`qconv.kernels.uniform`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Candidate ranges, as parts of the plain range. Measured on language-model and synthetic weights:
#: nine ratios with both signs come within 0.3 % of the error of 240 candidates at 4 bits, within
#: 6 % at 8.
_SYMMETRIC_RATIOS = 9
#: Fewer here, as three families (both ends, low end, high end) share them.
_ASYMMETRIC_RATIOS = 7
#: The smallest ratio worth trying, by bits: the fewer the codes, the more clipping pays.
_LOWEST_RATIO = {2: 0.45, 3: 0.55, 4: 0.7, 5: 0.8, 6: 0.9, 7: 0.93, 8: 0.95}
#: Bits up to which the largest ratio is 1.1, above 1.05: full-range grids gain from a range in
#: which neither end is clipped, which is wider by 1 / 2**(bits - 1).
_COARSE_BITS = 4

#: Weights per transposed slab: it stays in the second-level cache over all candidates.
_CPU_SLAB = 1 << 19
#: On a GPU, few large slabs: about 1 GB of temporaries.
_GPU_SLAB = 1 << 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What the fit needs to know of the grid.

    lowest, highest: inclusive range of the codes
    symmetric: no zero-point; the scale may be negative unless ``narrow``
    scale_dtype: torch dtype name of stored scales
    search: try candidates; else the plain fit
    """

    bits: int
    lowest: int
    highest: int
    symmetric: bool
    narrow: bool
    scale_dtype: str
    search: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Scales and zero-points of all groups, both float32 and equally shaped, already as stored."""

    scale: torch.Tensor
    zero: torch.Tensor


def fit_rows(
    weight: torch.Tensor, importance: torch.Tensor, groups: int, rule: Rule
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero-point of each of ``groups`` groups per row: two of (rows, groups) float32.

    weight: (rows, in) float32
    importance: (in,) float32, at most 1

    Peak memory: the weight, one transposed slab, the parameters.
    """
    import torch

    rows, columns = weight.shape
    slab = _CPU_SLAB if weight.device.type == "cpu" else _GPU_SLAB
    # Whole vectors of rows; 64 is what the kernels sum together.
    step = max(64, slab // columns // 64 * 64)
    parts = []
    for start in range(0, rows, step):
        transposed = weight[start : start + step].t().contiguous()
        parts.append(_search(_Groups(transposed, importance, groups), rule))
    scale = torch.cat([part.scale.t() for part in parts])
    zero = torch.cat([part.zero.t() for part in parts])
    return scale, zero


def fit_tensor(
    weight: torch.Tensor, importance: torch.Tensor, rule: Rule
) -> tuple[torch.Tensor, torch.Tensor]:
    """One scale and zero-point for all: two of (1, 1) float32. Arguments as in :func:`fit_rows`.

    Peak memory: the weight twice.
    """
    best = _search(_Whole(weight.t().contiguous(), importance, 1), rule)
    return best.scale, best.zero


def bounds(candidate_zero: torch.Tensor, rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
    """Lowest and highest step (code less zero-point), shaped like the zero-points."""
    return rule.lowest - candidate_zero, rule.highest - candidate_zero


def largest_scale(low: float, high: float, rule: Rule) -> float:
    """The magnitude of the plain scale of a group whose values span ``low`` to ``high``."""
    if rule.symmetric:
        return max(high, -low) / -rule.lowest
    return max(high, 0.0) / rule.highest - min(low, 0.0) / rule.highest


def over(values: torch.Tensor, divisor: float) -> torch.Tensor:
    """A true division: on CUDA, torch multiplies with the inverse of a Python number."""
    return values / values.new_tensor(divisor)


class _Groups:
    """Sums over groups that belong to one row each; values per group are (groups, rows)."""

    def __init__(self, weight: torch.Tensor, importance: torch.Tensor, groups: int) -> None:
        self._weight = weight  # (in, rows)
        self._importance = importance
        self._groups = groups

    def extremes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Lowest and highest weight."""
        columns, rows = self._weight.shape
        grouped = self._weight.view(self._groups, columns // self._groups, rows)
        return grouped.amin(1), grouped.amax(1)

    def dots(self, candidate: Candidate, rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
        """``sum h x q`` and ``sum h q^2``."""
        from qconv.kernels import uniform

        low, high = bounds(candidate.zero, rule)
        return uniform.dots(self._weight, self._importance, 1.0 / candidate.scale, low, high)

    def error(self, candidate: Candidate, rule: Rule) -> torch.Tensor:
        """``sum h (x - s q)^2``."""
        from qconv.kernels import uniform

        low, high = bounds(candidate.zero, rule)
        scale = candidate.scale
        return uniform.errors(self._weight, self._importance, scale, 1.0 / scale, low, high)


class _Whole(_Groups):
    """Sums over the whole tensor; values are (1, 1)."""

    def extremes(self) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = super().extremes()
        return low.amin().view(1, 1), high.amax().view(1, 1)

    def dots(self, candidate: Candidate, rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
        dot, square = super().dots(self._spread(candidate), rule)
        return _exact_sum(dot), _exact_sum(square)

    def error(self, candidate: Candidate, rule: Rule) -> torch.Tensor:
        return _exact_sum(super().error(self._spread(candidate), rule))

    def _spread(self, candidate: Candidate) -> Candidate:
        shape = (1, self._weight.shape[1])
        return Candidate(
            scale=candidate.scale.expand(shape).contiguous(),
            zero=candidate.zero.expand(shape).contiguous(),
        )


def _exact_sum(values: torch.Tensor) -> torch.Tensor:
    """The sum as (1, 1), correctly rounded and so the same in any order."""
    return values.new_tensor([[math.fsum(values.flatten().tolist())]])


def _search(groups: _Groups, rule: Rule) -> Candidate:
    low, high = groups.extremes()
    best = _plain(low, high, rule)
    if not rule.search:
        return best
    error = groups.error(best, rule)
    for candidate in _candidates(best, low, high, rule):
        best, error = _better(best, error, _refine(candidate, groups, rule), groups, rule)
    for shift in (0,) if rule.symmetric else (-1, 0, 1):
        zero = (best.zero + shift).clamp(rule.lowest, rule.highest) if shift else best.zero
        candidate = _refine(Candidate(scale=best.scale, zero=zero), groups, rule)
        best, error = _better(best, error, candidate, groups, rule)
    return best


def _plain(low: torch.Tensor, high: torch.Tensor, rule: Rule) -> Candidate:
    """The fit to the largest magnitude; scale 1 where all weights are zero."""
    import torch

    if not rule.symmetric:
        plain = _spanning(low.clamp(max=0), high.clamp(min=0), rule)
    elif rule.narrow:
        scale = over(torch.maximum(high, -low), rule.highest)
        plain = Candidate(scale=_stored(scale, rule), zero=torch.zeros_like(scale))
    else:
        # The largest magnitude lands on the lowest code, which has no positive counterpart.
        scale = over(torch.where(high > -low, high, low), rule.lowest)
        plain = Candidate(scale=_stored(scale, rule), zero=torch.zeros_like(scale))
    empty = (low == 0) & (high == 0)
    return Candidate(scale=torch.where(empty, 1.0, plain.scale), zero=plain.zero)


def _spanning(low: torch.Tensor, high: torch.Tensor, rule: Rule) -> Candidate:
    """Positive scale and zero-point that span ``low <= 0 <= high``."""
    scale = _stored(over(high, rule.highest) - over(low, rule.highest), rule)
    return Candidate(scale=scale, zero=(-low / scale).round().clamp(rule.lowest, rule.highest))


def _candidates(
    plain: Candidate, low: torch.Tensor, high: torch.Tensor, rule: Rule
) -> Iterator[Candidate]:
    first = _LOWEST_RATIO[rule.bits]
    last = 1.1 if rule.bits <= _COARSE_BITS else 1.05
    count = _SYMMETRIC_RATIOS if rule.symmetric else _ASYMMETRIC_RATIOS
    ratios = [first + (last - first) * i / (count - 1) for i in range(count)]
    if rule.symmetric:
        for sign in (1.0,) if rule.narrow else (1.0, -1.0):
            for ratio in ratios:
                scale = _stored(plain.scale * (sign * ratio), rule)
                yield Candidate(scale=scale, zero=plain.zero)
        return
    low, high = low.clamp(max=0), high.clamp(min=0)
    for ratio in ratios:
        for low_ratio, high_ratio in ((ratio, ratio), (ratio, 1.0), (1.0, ratio)):
            yield _spanning(low * low_ratio, high * high_ratio, rule)


def _refine(candidate: Candidate, groups: _Groups, rule: Rule) -> Candidate:
    """The candidate with the least-squares scale for its steps."""
    dot, square = groups.dots(candidate, rule)
    # 0 / 0 where all steps are zero: NaN loses, rightly, as no fit can err more than all zeros.
    return Candidate(scale=_stored(dot / square, rule), zero=candidate.zero)


def _better(
    best: Candidate, error: torch.Tensor, candidate: Candidate, groups: _Groups, rule: Rule
) -> tuple[Candidate, torch.Tensor]:
    """Per group whichever errs less; the first one found where they tie."""
    import torch

    other = groups.error(candidate, rule)
    wins = other < error  # False for NaN, and for the infinities of weights near the float32 limit
    scale = torch.where(wins, candidate.scale, best.scale)
    zero = best.zero if rule.symmetric else torch.where(wins, candidate.zero, best.zero)
    return Candidate(scale=scale, zero=zero), torch.where(wins, other, error)


def stored_scale(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The scale in ``dtype``: neither infinite nor zero."""
    import torch

    # float16 keeps its subnormals: without them a scale below 6e-5 would be lost. The others have
    # the exponents of float32, where the inverse of a subnormal overflows.
    smallest = 2.0**-24 if dtype == torch.float16 else torch.finfo(dtype).tiny
    magnitude = scale.abs().clamp(smallest, torch.finfo(dtype).max).to(dtype)
    return torch.copysign(magnitude, scale.to(dtype))


def _stored(scale: torch.Tensor, rule: Rule) -> torch.Tensor:
    """The scale as its dtype holds it, in float32."""
    import torch

    return stored_scale(scale, getattr(torch, rule.scale_dtype)).float()
