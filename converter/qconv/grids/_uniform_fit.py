"""The search for the scales and zero-points of a uniform grid.

Candidates shrink or stretch the range that the codes span. A candidate's steps ``q`` have a scale
of least error, ``s = sum(h x q) / sum(h q^2)``, and what they then still err, but for a constant,
is ``-sum(h x q)^2 / sum(h q^2)``: one pass over the weights scores a candidate. From coarse to
fine:

1. parts of the plain range: both ends, or one of them;
2. a little to either side of the best one's scale;
3. with a zero-point, one step to either side of the best one's;
4. the steps that the best scale of all these gives.

The winner's ``s`` is rounded to the dtype it is stored in, and taken where it errs less than the
plain fit to the largest magnitude by what matters, ``sum h (x - s q(s))^2``; so no group ends up
worse than plainly fitted.

``h`` is the importance of the column, and where nothing is known of the input, the square of the
weight itself, as llama.cpp's quantizers have it: large weights tend to be where large inputs are.
Measured on SmolLM2-135M in groups of 64, in KL divergence: scales of least squared error lose 4 to
10 % more than plain ones at 4 bits; with this weighting symmetric grids lose 3 to 8 % less than
plain. Grids with zero-points lose more however errors are weighed (4 % at 4 bits, 7 % at 3): up to
4 bits they are fitted plainly without importance. At 8 bits the search gains a fifth.

On the CPU groups of one row go through :mod:`qconv.kernels.uniform_search`, which gives the same
bits. The rest is elementwise torch on one value per group, the same on CPU and CUDA; the sums over
the weights are :mod:`qconv.kernels.uniform`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from qconv.kernels.uniform_plain import Rounded
    from qconv.kernels.uniform_search import Search

#: Candidate ranges, as parts of the plain range, and for symmetric grids with either sign; more of
#: them from 7 bits on. Measured on language-model weights, with and without importance: on the
#: whole as good as twice as many candidates, each refined before it is scored.
_SYMMETRIC_RATIOS, _FINE_SYMMETRIC_RATIOS = 6, 8
#: Beside the plain range: fewer, as three families (both ends, low end, high end) share them.
_ASYMMETRIC_RATIOS = 4
#: How far the finer candidates lie from the best, as a part of the distance between ratios.
_FINE = 0.375
#: The smallest ratio worth trying, by bits: the fewer the codes, the more clipping pays.
_LOWEST_RATIO = {2: 0.45, 3: 0.55, 4: 0.7, 5: 0.8, 6: 0.9, 7: 0.93, 8: 0.95}
#: Bits up to which the largest ratio is 1.1, above 1.05: full-range grids gain from a range in
#: which neither end is clipped, which is wider by 1 / 2**(bits - 1).
_COARSE_BITS = 4

#: Weights per transposed slab: about 1 GB of temporaries.
_SLAB = 1 << 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What the fit needs to know of the grid.

    lowest, highest: inclusive range of the codes
    symmetric: no zero-point; the scale may be negative unless ``narrow``
    scale_dtype: torch dtype name of stored scales
    search: try candidates; else the plain fit
    by_magnitude: an error counts by the square of the weight: for want of importance
    """

    bits: int
    lowest: int
    highest: int
    symmetric: bool
    narrow: bool
    scale_dtype: str
    search: bool
    by_magnitude: bool = False


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

    Peak memory: the weight, the parameters; where not on the CPU also one transposed slab.
    """
    from qconv.kernels import uniform_search

    if weight.device.type != "cpu":
        return fit_rows_reference(weight, importance, groups, rule)
    return uniform_search.fit(weight.contiguous(), importance, groups, _search_of(rule))


def is_fused(weight: torch.Tensor, rule: Rule) -> bool:
    """Whether :func:`quantize_rows` serves: a plain fit on the CPU, of a dtype that is stored."""
    import torch

    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    return not rule.search and weight.device.type == "cpu" and weight.dtype in dtypes


def quantize_rows(weight: torch.Tensor, groups: int, rule: Rule) -> Rounded:
    """The plain fit and its codes, reading the weights once.

    weight: (rows, in) float32, bfloat16 or float16; ``groups`` of each row are fitted
    """
    from qconv.kernels import uniform_plain

    plain = uniform_plain.Plain(
        kind=_kind(rule), lowest=rule.lowest, highest=rule.highest, scale_dtype=rule.scale_dtype
    )
    return uniform_plain.quantize(weight, groups, plain)


def fit_rows_reference(
    weight: torch.Tensor, importance: torch.Tensor, groups: int, rule: Rule
) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`fit_rows` computes, in torch, on any device."""
    import torch

    rows, columns = weight.shape
    step = max(1, _SLAB // columns)
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
        inverse = 1.0 / candidate.scale
        return uniform.dots(
            self._weight, self._importance, inverse, low, high, by_magnitude=rule.by_magnitude
        )

    def error(self, candidate: Candidate, rule: Rule) -> torch.Tensor:
        """``sum h (x - s q)^2``."""
        from qconv.kernels import uniform

        low, high = bounds(candidate.zero, rule)
        scale, by_magnitude = candidate.scale, rule.by_magnitude
        return uniform.errors(
            self._weight, self._importance, scale, 1.0 / scale, low, high, by_magnitude=by_magnitude
        )


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


def _search_of(rule: Rule) -> Search:
    """The rule as the kernel takes it."""
    from qconv.kernels.uniform_search import Search

    ratios, fine = _ratios(rule) if rule.search else ((), 0.0)
    return Search(
        kind=_kind(rule),
        lowest=rule.lowest,
        highest=rule.highest,
        scale_dtype=rule.scale_dtype,
        ratios=ratios,
        fine=fine,
        by_magnitude=rule.by_magnitude,
    )


def _kind(rule: Rule) -> str:
    if not rule.symmetric:
        return "asymmetric"
    return "narrow" if rule.narrow else "symmetric"


def _ratios(rule: Rule) -> tuple[tuple[tuple[float, float], ...], float]:
    """Parts of the low and of the high end to span; and how far the finer candidates are off."""
    first = _LOWEST_RATIO[rule.bits]
    last = 1.1 if rule.bits <= _COARSE_BITS else 1.05
    if rule.symmetric:
        count = _SYMMETRIC_RATIOS if rule.bits <= 6 else _FINE_SYMMETRIC_RATIOS
        gap = (last - first) / (count - 1)
        parts = [first + gap * i for i in range(count)]
        signs = (1.0,) if rule.narrow else (1.0, -1.0)
        return tuple((sign * part, sign * part) for sign in signs for part in parts), _FINE * gap
    gap = (1.0 - first) / (_ASYMMETRIC_RATIOS - 1)
    parts = [first + gap * i for i in range(_ASYMMETRIC_RATIOS - 1)] + [last]
    families = [((part, part), (part, 1.0), (1.0, part)) for part in parts]
    return ((1.0, 1.0), *(pair for family in families for pair in family)), _FINE * gap


def _search(groups: _Groups, rule: Rule) -> Candidate:
    low, high = groups.extremes()
    plain = _plain(low, high, rule)
    if not rule.search:
        return plain
    ratios, fine = _ratios(rule)
    best = _Best.of(plain)
    low, high = low.clamp(max=0), high.clamp(min=0)
    for low_part, high_part in ratios:
        if rule.symmetric:
            candidate = _near(plain.scale, plain.zero, rule, part=low_part)
        else:
            candidate = _spanning(low * low_part, high * high_part, rule)
        best = best.or_better(candidate, groups, rule)
    raw, zero = best.raw, best.zero
    for part in (1.0 - fine, 1.0 + fine):
        best = best.or_better(_near(raw, zero, rule, part=part), groups, rule)
    scale, zero = best.refined, best.zero
    for shift in () if rule.symmetric else (-1, 1):
        best = best.or_better(_near(scale, zero, rule, shift=shift), groups, rule)
    best = best.or_better(Candidate(scale=best.refined, zero=best.zero), groups, rule)
    return _less_erring(plain, Candidate(scale=best.refined, zero=best.zero), groups, rule)


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


def _near(
    scale: torch.Tensor, zero: torch.Tensor, rule: Rule, part: float = 1.0, shift: int = 0
) -> Candidate:
    """A part of a scale, and a zero-point some steps off."""
    return Candidate(
        scale=_stored(scale * part, rule), zero=(zero + shift).clamp(rule.lowest, rule.highest)
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Best:
    """The best candidates so far, one per group, all float32.

    raw, zero: scale and zero-point of the candidate
    refined: the scale of least error for its steps, as stored
    score: what it lowers the squared error by
    """

    raw: torch.Tensor
    zero: torch.Tensor
    refined: torch.Tensor
    score: torch.Tensor

    @classmethod
    def of(cls, plain: Candidate) -> _Best:
        import torch

        scale = plain.scale
        return cls(raw=scale, zero=plain.zero, refined=scale, score=torch.zeros_like(scale))

    def or_better(self, candidate: Candidate, groups: _Groups, rule: Rule) -> _Best:
        """Per group whichever scores higher; the first one found where they tie."""
        import torch

        dot, square = groups.dots(candidate, rule)
        # 0 / 0 where all steps are zero, infinities of weights near the float32 limit: NaN loses.
        refined = dot / square
        score = dot * refined
        wins = score > self.score
        return _Best(
            raw=torch.where(wins, candidate.scale, self.raw),
            zero=torch.where(wins, candidate.zero, self.zero),
            refined=torch.where(wins, _stored(refined, rule), self.refined),
            score=torch.where(wins, score, self.score),
        )


def _less_erring(plain: Candidate, other: Candidate, groups: _Groups, rule: Rule) -> Candidate:
    """Per group whichever errs less; the plain fit where they tie, or where neither is finite."""
    import torch

    wins = groups.error(other, rule) < groups.error(plain, rule)
    return Candidate(
        scale=torch.where(wins, other.scale, plain.scale),
        zero=torch.where(wins, other.zero, plain.zero),
    )


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
