"""Reads off which channel of a producer each column of a linear's input is a multiple of.

Every channel of the producer is multiplied by a factor of its own. A column that is then multiplied
by one of these factors, on every token, reads that channel and nothing else that changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from qconv.model._probe_run import Run
    from qconv.model._probe_watch import Seen, Use

#: Factors lie in 1.25 to 2.5, so none is one. Of 100,000 of them, neighbours differ by 7e-6.
_LEAST_FACTOR = 1.25
#: Relative; float64 rounding through a few operations is below 1e-12.
_SAME = 1e-9


def channel_factors(channels: int, salt: int, device: torch.device) -> torch.Tensor:
    """A different factor for every channel, in an order that ``salt`` fixes: float64."""
    import torch

    generator = torch.Generator().manual_seed(salt)
    order = torch.randperm(channels, generator=generator).double()
    return (_LEAST_FACTOR * torch.exp2((order + 0.5) / channels)).to(device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What multiplying a producer's channels did to one run.

    scaled: uses of which every column is multiplied by a channel's factor: the channels
    otherwise: uses that changed, but not so: how, for people
    elsewhere: the block's output changed without a linear in between
    """

    scaled: Mapping[Use, tuple[int, ...]]
    otherwise: Mapping[Use, str]
    elsewhere: bool

    @property
    def is_clean(self) -> bool:
        """Whatever reads the producer is a linear that can be compensated."""
        return bool(self.scaled) and not self.otherwise and not self.elsewhere


def read(before: Run, after: Run, factors_for: Callable[[Use], torch.Tensor]) -> Reading:
    """Compare a run with one whose producer's channels were multiplied.

    factors_for: the factors of the channels that this use could have been given
    """
    scaled: dict[Use, tuple[int, ...]] = {}
    otherwise: dict[Use, str] = {}
    for use, seen in before.uses.items():
        found = _columns(seen, after.uses.get(use), factors_for(use))
        if isinstance(found, str):
            otherwise[use] = found
        elif found is not None:
            scaled[use] = found
    return Reading(scaled=scaled, otherwise=otherwise, elsewhere=not same_outputs(before, after))


def same_outputs(before: Run, after: Run) -> bool:
    """Whether two runs gave the same outputs, up to the rounding of float64."""
    pairs = zip(before.outputs, after.outputs, strict=False)
    return len(before.outputs) == len(after.outputs) and all(_same(*pair) for pair in pairs)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or not one.numel():
        return one.shape == other.shape
    return bool((one - other).abs().max() <= _SAME * one.abs().max())


def _columns(
    before: Seen, after: Seen | None, factors: torch.Tensor
) -> tuple[int, ...] | str | None:
    """The channel of every column; why there is none; or None if nothing changed."""
    import torch

    if after is None or after.given.shape != before.given.shape:
        return "other tokens reach it"
    if _same(before.given, after.given):
        return None
    x, y = before.given, after.given  # (tokens, in)
    power = (x * x).sum(dim=0)
    if bool((power == 0).any()):
        return "some columns of its input are always zero"
    ratio = (x * y).sum(dim=0) / power
    off = (y - ratio * x).abs().amax(dim=0) / y.abs().amax(dim=0)
    if bool((off > _SAME).any()) or not bool(torch.isfinite(ratio).all()):
        return "its input changes other than by a factor per column"
    ordered, order = factors.sort()
    right = torch.searchsorted(ordered, ratio).clamp(max=len(factors) - 1)
    left = (right - 1).clamp(min=0)
    nearest = torch.where(
        (ordered[right] - ratio).abs() < (ratio - ordered[left]).abs(), right, left
    )
    if bool(((ordered[nearest] - ratio).abs() > _SAME * ratio.abs()).any()):
        return "some columns of its input do not take their channel's factor"
    return tuple(order[nearest].tolist())
