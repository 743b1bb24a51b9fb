"""The default search in plain torch: the CUDA path, and what the compiled loops must agree with.

The same operations in the same order as ``search_lanes`` and its users, a whole tensor at a time:
sums over a sub-block run over its values one by one. On the CPU results agree bit for bit.

Shapes: weights (rows, blocks, subs, length), everything per sub-block (rows, blocks, subs),
everything per super-block (rows, blocks). Blocks without super-scales have one sub-block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .search_effort import (
    AffineEffort,
    AffineSuperEffort,
    ScaledEffort,
    ScaledSuperEffort,
    affine_effort,
    affine_super_effort,
    byte_tries,
    scaled_effort,
    scaled_super_effort,
)

Found = tuple[Tensor, Mapping[str, Tensor]]

_SINGULAR = 1e-6
_LARGEST_HALF = 65504.0
_WORST = -1e30
_BLOCK = 32
_SUPER_BLOCK = 256


def quantize(grid: str, weight: Tensor, importance: Tensor | None = None) -> Found:
    """As :func:`qconv.kernels.search.quantize`, importance already relative to its largest."""
    weight = weight.detach().to(torch.float32)
    weighted = importance is not None
    if grid in ("q2_k", "q4_k", "q5_k"):
        effort = affine_super_effort(grid, weighted=weighted)
        return _affine_super(*_shaped(weight, importance, _SUPER_BLOCK, effort.length), effort)
    if grid in ("q3_k", "q6_k"):
        scaled = scaled_super_effort(grid, weighted=weighted)
        return _scaled_super(*_shaped(weight, importance, _SUPER_BLOCK, 16), scaled)
    x, w = _shaped(weight, importance, _BLOCK, _BLOCK)
    if grid == "q8_0":
        return _bytes(x, w)
    if grid in ("q4_0", "q5_0"):
        return _scaled_block(x, w, scaled_effort(grid, weighted=weighted))
    return _affine_block(x, w, affine_effort(grid, weighted=weighted))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Best:
    """The best of every sub-block so far: values, gain over all zeros, and sums over its codes."""

    scale: Tensor
    minimum: Tensor
    gain: Tensor
    q: Tensor
    qq: Tensor
    qx: Tensor

    @classmethod
    def nothing(cls, like: Tensor, gain: float = 0.0) -> _Best:
        """All zeros, which the first codes with any gain replace."""
        zero = torch.zeros_like(like)
        return cls(scale=zero, minimum=zero, gain=zero + gain, q=zero, qq=zero, qx=zero)

    def or_better(self, other: _Best) -> _Best:
        """Per sub-block, the one with more gain."""
        better = other.gain > self.gain
        names = ("scale", "minimum", "gain", "q", "qq", "qx")
        return _Best(**{n: torch.where(better, getattr(other, n), getattr(self, n)) for n in names})


def _shaped(
    weight: Tensor, importance: Tensor | None, block: int, length: int
) -> tuple[Tensor, Tensor | None]:
    x = weight.reshape(weight.shape[0], -1, block // length, length)
    return x, None if importance is None else importance.reshape(1, -1, block // length, length)


def _by_magnitude(x: Tensor) -> Tensor:
    """Weights by magnitude: its own, plus the mean magnitude of the sub-block."""
    total = torch.zeros_like(x[..., 0])
    for value, _ in _values(x, None):
        total = total + value.abs()
    return _over(total, x.shape[-1])[..., None] + x.abs()


def _values(x: Tensor, w: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Values of all sub-blocks, position by position, with their weights."""
    for p in range(x.shape[-1]):
        yield x[..., p], None if w is None else w[..., p]


def _half(x: Tensor) -> Tensor:
    return x.half().float()


def _over(x: Tensor, divisor: float) -> Tensor:
    """A true division: torch may turn one by a number into a product."""
    return x / torch.full_like(x, divisor)


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x == 0, 0.0, 1.0 / x)


# --- scale and minimum ----------------------------------------------------------------------------


def _affine_gain(
    scale: Tensor, minimum: Tensor, best: _Best, sum_x: Tensor, sum_w: Tensor
) -> Tensor:
    """How much squared error ``scale * code + minimum`` takes away from that of all zeros."""
    linear = 2.0 * (scale * best.qx + minimum * sum_x)
    return linear - (
        scale * scale * best.qq + 2.0 * scale * minimum * best.q + minimum * minimum * sum_w
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Affine:
    """Sub-blocks to fit: their weights, importance, sums and range."""

    x: Tensor
    w: Tensor | None
    sum_x: Tensor
    sum_w: Tensor
    low: Tensor
    high: Tensor
    highest: int
    ceiling: float

    @classmethod
    def of(cls, x: Tensor, w: Tensor | None, highest: int, ceiling: float) -> _Affine:
        sum_x = torch.zeros_like(x[..., 0])
        sum_w = torch.zeros_like(sum_x)
        for value, weight in _values(x, w):
            sum_x = sum_x + (value if weight is None else weight * value)
            sum_w = sum_w + (1.0 if weight is None else weight)
        return cls(
            x=x,
            w=w,
            sum_x=sum_x,
            sum_w=sum_w,
            low=x.amin(-1).clamp_max(ceiling),
            high=x.amax(-1),
            highest=highest,
            ceiling=ceiling,
        )

    def solve(self, inverse: Tensor, offset: Tensor) -> _Best:
        """Least squares for the codes that inverse and offset give."""
        q = qq = qx = torch.zeros_like(self.sum_x)
        for x, w in _values(self.x, self.w):
            code = (x * inverse + offset).clamp(0.0, float(self.highest)).round()
            weighted = code if w is None else w * code
            q, qq, qx = q + weighted, qq + weighted * code, qx + weighted * x
        determinant = self.sum_w * qq - q * q
        scale = (self.sum_w * qx - self.sum_x * q) / determinant
        minimum = (self.sum_x - scale * q) / self.sum_w
        free = (determinant > _SINGULAR * (self.sum_w * qq)) & (minimum <= self.ceiling)
        some = qq > 0
        single = torch.where(some, qx / qq, 0.0)
        constant = torch.where(some, 0.0, (self.sum_x / self.sum_w).clamp_max(self.ceiling))
        scale = torch.where(free, scale, single).clamp_min(0.0)
        minimum = torch.where(free, minimum, constant)
        found = _Best(scale=scale, minimum=minimum, gain=scale, q=q, qq=qq, qx=qx)
        gain = _affine_gain(scale, minimum, found, self.sum_x, self.sum_w)
        return _Best(scale=scale, minimum=minimum, gain=gain, q=q, qq=qq, qx=qx)

    def search(self, effort: AffineEffort) -> _Best:
        """Independent starts, then Lloyd's rounds."""
        best = _Best.nothing(self.sum_x)
        span = self.high - self.low
        for beyond, share in np.array(effort.starts, np.float32):
            steps, shift = np.float32(effort.highest) + beyond, beyond * share
            inverse = torch.where(span > 0, torch.full_like(span, float(steps)) / span, 0.0)
            best = best.or_better(self.solve(inverse, -self.low * inverse - float(shift)))
        for _ in range(effort.rounds):
            inverse = _inverse(best.scale)
            best = best.or_better(self.solve(inverse, -best.minimum * inverse))
        return best

    def codes(self, inverse: Tensor, offset: Tensor) -> Tensor:
        steps = self.x * inverse[..., None] + offset[..., None]
        codes = steps.clamp(0.0, float(self.highest)).round().to(torch.uint8)
        return codes.reshape(len(codes), -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _AffineSuper:
    """Super-scales, their score, and the integers under them."""

    d: Tensor
    m: Tensor
    score: Tensor
    scales: Tensor
    minimums: Tensor

    def or_better(self, other: _AffineSuper) -> _AffineSuper:
        """Per super-block, the one that scores higher; the integers are the other's."""
        better = other.score > self.score
        return _AffineSuper(
            d=torch.where(better, other.d, self.d),
            m=torch.where(better, other.m, self.m),
            score=torch.where(better, other.score, self.score),
            scales=other.scales,
            minimums=other.minimums,
        )


def _total(x: Tensor) -> Tensor:
    """Sum over sub-blocks, eight by eight, in order."""
    total = torch.zeros_like(x[..., 0])
    for first in range(0, x.shape[-1], 8):
        eight = x[..., first]
        for j in range(1, 8):
            eight = eight + x[..., first + j]
        total = total + eight
    return total


def _affine_integers(blocks: _Affine, best: _Best, d: Tensor, m: Tensor, most: int) -> _AffineSuper:
    """Sub-scales and sub-minimums 0..most that lose least under these super-scales."""
    spread_d, spread_m = d[..., None], m[..., None]
    curvature = spread_d * best.qq
    per_step = torch.where(curvature > 0, 1.0 / curvature, 0.0)
    low = torch.where(spread_m > 0, (-best.minimum / spread_m).floor().clamp_max(float(most)), 0.0)
    high = (low + 1.0).clamp_max(float(most))
    tried = []
    for integer in (low, high):
        minimum = -(spread_m * integer)
        steps = (best.qx - minimum * best.q) * per_step
        scale = steps.clamp(0.0, float(most)).round()
        gain = _affine_gain(spread_d * scale, minimum, best, blocks.sum_x, blocks.sum_w)
        tried.append((scale, gain))
    (low_scale, low_gain), (high_scale, high_gain) = tried
    up = high_gain > low_gain
    return _AffineSuper(
        d=d,
        m=m,
        score=_total(torch.where(up, high_gain, low_gain)),
        scales=torch.where(up, high_scale, low_scale),
        minimums=torch.where(up, high, low),
    )


def _search_affine_super(blocks: _Affine, best: _Best, effort: AffineSuperEffort) -> _AffineSuper:
    largest = best.scale.amax(-1).clamp_min(0.0)
    lowest = 0.0 - best.minimum.amin(-1).clamp_max(0.0)
    first = _half(_over(largest, effort.most))
    zeros = torch.zeros_like(best.scale)
    chosen = _AffineSuper(
        d=first,
        m=_half(_over(lowest, effort.most)),
        score=torch.full_like(first, _WORST),
        scales=zeros,
        minimums=zeros,
    )
    for more in effort.minimum_tries:
        m = _half(_over(lowest, effort.most + more))
        chosen = chosen.or_better(_affine_integers(blocks, best, first, m, effort.most))
    m = chosen.m
    for more in effort.scale_tries:
        d = _half(_over(largest, effort.most + more))
        chosen = chosen.or_better(_affine_integers(blocks, best, d, m, effort.most))
    return _affine_integers(blocks, best, chosen.d, chosen.m, effort.most)


def _aim_affine(chosen: _AffineSuper) -> tuple[Tensor, Tensor]:
    inverse = _inverse(chosen.d[..., None] * chosen.scales)
    return inverse, chosen.m[..., None] * chosen.minimums * inverse


def _refit_affine_super(
    blocks: _Affine, best: _Best, chosen: _AffineSuper, most: int
) -> _AffineSuper:
    """Least squares for the two super-scales, then integers anew."""
    s, n = chosen.scales, chosen.minimums
    a, b, c = _total(s * s * best.qq), _total(s * n * best.q), _total(n * n * blocks.sum_w)
    p, q = _total(s * best.qx), _total(n * blocks.sum_x)
    determinant = a * c - b * b
    d = (c * p - b * q) / determinant
    m = (b * p - a * q) / determinant
    sound = (determinant > _SINGULAR * (a * c)) & (d > 0) & (m > 0)
    sound = sound & (d <= _LARGEST_HALF) & (m <= _LARGEST_HALF)
    d, m = torch.where(sound, _half(d), chosen.d), torch.where(sound, _half(m), chosen.m)
    return _affine_integers(blocks, best, d, m, most)


def _affine_super(x: Tensor, w: Tensor | None, effort: AffineSuperEffort) -> Found:
    w = _by_magnitude(x) if effort.by_magnitude else w
    blocks = _Affine.of(x, w, effort.sub.highest, 0.0)
    chosen = _search_affine_super(blocks, blocks.search(effort.sub), effort)
    for _ in range(effort.refits):
        none = _Best.nothing(blocks.sum_x, _WORST)
        best = none.or_better(blocks.solve(*_aim_affine(chosen)))
        chosen = _refit_affine_super(blocks, best, chosen, effort.most)
    return blocks.codes(*_aim_affine(chosen)), {
        "super_scale": chosen.d.half(),
        "super_minimum": chosen.m.half(),
        "sub_scales": chosen.scales.to(torch.uint8),
        "sub_minimums": chosen.minimums.to(torch.uint8),
    }


def _affine_block(x: Tensor, w: Tensor | None, effort: AffineEffort) -> Found:
    base = x.amin(-1)
    if effort.starts:
        # Seen from its minimum, a block far from zero keeps its digits in the sums.
        best = _Affine.of(x - base[..., None], w, effort.highest, float("inf")).search(effort)
        scale, minimum = _half(best.scale), _half(best.minimum + base)
    else:
        scale, minimum = _half(_over(x.amax(-1) - base, effort.highest)), _half(base)
    inverse = _inverse(scale)
    steps = x * inverse[..., None] + (-minimum * inverse)[..., None]
    codes = steps.clamp(0.0, float(effort.highest)).round().to(torch.uint8)
    parameters = {"scale": scale[..., 0].half(), "minimum": minimum[..., 0].half()}
    return codes.reshape(len(codes), -1), parameters


# --- scale alone ----------------------------------------------------------------------------------


def _solve_scaled(x: Tensor, w: Tensor | None, inverse: Tensor, lowest: int, highest: int) -> _Best:
    q = qq = qx = torch.zeros_like(inverse)
    for value, weight in _values(x, w):
        code = (value * inverse).clamp(float(lowest), float(highest)).round()
        weighted = code if weight is None else weight * code
        qq, qx = qq + weighted * code, qx + weighted * value
    scale = torch.where(qq > 0, qx / qq, 0.0)
    return _Best(scale=scale, minimum=q, gain=scale * qx, q=q, qq=qq, qx=qx)


def _peak(x: Tensor) -> Tensor:
    low, high = x.amin(-1), x.amax(-1)
    return torch.where(high > -low, high, low)


def _search_scaled(x: Tensor, w: Tensor | None, effort: ScaledEffort) -> _Best:
    ends = effort.lowest, effort.highest
    peak = _peak(x)
    best = _Best.nothing(peak)
    for start in effort.starts:
        inverse = torch.where(peak == 0, 0.0, torch.full_like(peak, start) / peak)
        best = best.or_better(_solve_scaled(x, w, inverse, *ends))
    for _ in range(effort.rounds):
        best = best.or_better(_solve_scaled(x, w, _inverse(best.scale), *ends))
    return best


def _scaled_codes(x: Tensor, inverse: Tensor, lowest: int, highest: int) -> Tensor:
    steps = x * inverse[..., None] + float(-lowest)
    codes = steps.clamp(0.0, float(highest - lowest)).round().to(torch.uint8)
    return codes.reshape(len(codes), -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ScaledSuper:
    """Super-scale, its score, and the integers under it."""

    d: Tensor
    score: Tensor
    scales: Tensor


def _scaled_integers(best: _Best, d: Tensor, effort: ScaledSuperEffort) -> _ScaledSuper:
    """Sub-scales that lose least under this super-scale."""
    curvature = d[..., None] * best.qq
    steps = torch.where(curvature == 0, 0.0, best.qx / curvature)
    scales = steps.clamp(float(effort.least), float(effort.most)).round()
    s = d[..., None] * scales
    return _ScaledSuper(d=d, score=_total(2.0 * s * best.qx - s * s * best.qq), scales=scales)


def _search_scaled_super(best: _Best, effort: ScaledSuperEffort) -> _ScaledSuper:
    most, least = best.scale.amax(-1).clamp_min(0.0), best.scale.amin(-1).clamp_max(0.0)
    chosen = _half(_over(torch.maximum(most, -least), effort.most))
    score = torch.full_like(chosen, _WORST)
    for target in effort.tries:
        tried = _scaled_integers(
            best, _half(_over(torch.where(most > -least, most, least), target)), effort
        )
        better = tried.score > score
        chosen = torch.where(better, tried.d, chosen)
        score = torch.where(better, tried.score, score)
    return _scaled_integers(best, chosen, effort)


def _scaled_super(x: Tensor, w: Tensor | None, effort: ScaledSuperEffort) -> Found:
    w = _by_magnitude(x) if effort.by_magnitude else w
    ends = effort.sub.lowest, effort.sub.highest
    chosen = _search_scaled_super(_search_scaled(x, w, effort.sub), effort)
    for _ in range(effort.refits):
        inverse = _inverse(chosen.d[..., None] * chosen.scales)
        none = _Best.nothing(inverse, _WORST)
        best = none.or_better(_solve_scaled(x, w, inverse, *ends))
        a = _total(chosen.scales * chosen.scales * best.qq)
        d = _total(chosen.scales * best.qx) / a
        sound = (a > 0) & (d.abs() <= _LARGEST_HALF)
        chosen = _scaled_integers(best, torch.where(sound, _half(d), chosen.d), effort)
    inverse = _inverse(chosen.d[..., None] * chosen.scales)
    return _scaled_codes(x, inverse, *ends), {
        "super_scale": chosen.d.half(),
        "sub_scales": chosen.scales.to(torch.int8),
    }


def _scaled_block(x: Tensor, w: Tensor | None, effort: ScaledEffort) -> Found:
    scale = _half(_search_scaled(x, w, effort).scale)
    codes = _scaled_codes(x, _inverse(scale), effort.lowest, effort.highest)
    return codes, {"scale": scale[..., 0].half()}


def _bytes(x: Tensor, w: Tensor | None) -> Found:
    """Q8_0: of the scales that map the peak to one of the tries, the one that loses least."""
    peak = _peak(x).abs()
    scale = _half(_over(peak, 127.0))
    least = torch.full_like(peak, float("inf"))
    for target in byte_tries():
        step = _half(_over(peak, target))
        inverse = _inverse(step)
        loss = torch.zeros_like(peak)
        for value, weight in _values(x, w):
            steps = value * inverse
            rest = steps - steps.round()
            loss = loss + (rest * rest if weight is None else weight * rest * rest)
        loss = loss * step * step
        scale = torch.where(loss < least, step, scale)
        least = torch.where(loss < least, loss, least)
    codes = (x * _inverse(scale)[..., None]).clamp(-127.0, 127.0).round().to(torch.int8)
    return codes.reshape(len(codes), -1), {"scale": scale[..., 0].half()}
