"""Vectors that a transform changed: norms and biases whose change the weights of their block undo.

A norm is divided by what the columns that read it are multiplied by; a bias goes with the rows of
its weight. So the change of a vector tells what its weights must have become, channel by channel:
that is rounded on their own grid, and what it leaves of each channel is compared with what is
there. Rounding errs by as much as the residuals say, less by the root of the values in a channel
(4 bits leave 0.4 % in 768 rows). Searches that mind the inputs, and GPTQ, which makes good in one
channel what others lost, are further off, in proportion to what rounding loses of a channel: half
of that is allowed, which 10 % at 4 bits and 2 % at 8 bits are beyond. Two bits prove nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from qconv.grids import Grid

#: Standard errors that a channel may be off: with 10^5 channels, chance comes to 4.5.
_ERRORS = 6.0

#: Beside that, for what searches for scales do otherwise than the one here.
_FLOOR = 0.004

#: Share of a channel's own relative error that methods may put along it. Seen on SmolLM2-135M: AWQ
#: to Q4_K_M 3 % of a channel, AWQ and GPTQ to 4 bits in groups of 128 7 %.
_ALONG = 0.5

#: Median relative error of channels from which on a mismatch is odd, and proves nothing: AWQ to
#: Q2_K was seen to leave channels off by 15 %, some by half.
_COARSE = 0.2

#: Methods other than rounding to nearest shrink all channels alike, by this much.
_SHRUNK = 0.03

#: Share of the channels that may stick out of a vector that a weight answers.
_WRONG = 0.1

#: Spread of a weight that answers, in standard errors, at most; readers had 0.5 to 1.7, others of
#: the block 1.2 to 200. Those count that are this many times as far from it as the best.
_ANSWERS, _LIKE = 3.0, 1.25

#: Share of the channels that must be told: weights padded with zeros tell less than all.
_TOLD = 0.25

#: A channel of which rounding left less than this share tells nothing.
_LEFT = 0.3

#: Median, in standard errors, from which on the rows of a weight were rescaled, too.
_SPREAD = 2.0

#: A value that came out below one step of rounding tells nothing, if it was below so many before.
_STEPS = 256.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """A weight of the vector's block.

    found, source: (rows, columns) float32
    grid: it was rounded on, if it is known
    own: the vector is its bias, which goes with its rows; else its columns undo what changed
    """

    found: torch.Tensor
    source: torch.Tensor
    grid: Grid | None
    own: bool

    @property
    def channels(self) -> int:
        """How many values a vector has that goes with it."""
        return self.source.shape[0 if self.own else 1]


@dataclass(frozen=True, slots=True)
class _Off:
    """How far each channel is from what the vector says.

    off: logarithm of the factor; NaN where rounding left nothing to tell
    error: its standard error
    clipped: what rounding to nearest does to the channel, as a logarithm: searches that mind the
        inputs clip other values than it does
    lost: relative error of the channel
    All (channels,) float64.
    """

    off: torch.Tensor
    error: torch.Tensor
    clipped: torch.Tensor
    lost: torch.Tensor

    def wrong(self, precision: torch.Tensor) -> torch.Tensor:
        """Channels further off than chance, (channels,) bool. precision: of the vector's values."""
        told = self.off[~self.off.isnan()]
        shrunk = float(told.median().clamp(-_SHRUNK, _SHRUNK)) if len(told) else 0.0
        allowed = _ERRORS * self.error + self.clipped + _ALONG * self.lost + _FLOOR + precision
        return (self.off - shrunk).abs() > allowed

    def spread(self, precision: torch.Tensor) -> float:
        """How far channels are off, in standard errors: root mean square of all but a few."""
        told = ~self.off.isnan()
        if int(told.sum()) <= _TOLD * len(told):
            return math.inf
        off = self.off[told]
        error = (self.error[told].square() + precision[told].square()).sqrt()
        errors = ((off - off.median()) / error).abs().sort().values
        return float(errors[: max(1, int(len(errors) * (1 - _WRONG)))].square().mean().sqrt())


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """What is wrong with a changed vector. sure: the grid is fine enough to prove it."""

    words: str
    sure: bool


@dataclass(frozen=True, slots=True)
class _Form:
    """A vector as what its channels multiply by, and what weights say of that so far.

    ratio: (channels,) float32, of the changed vector to the source's; NaN where it tells nothing
    precision: (channels,) float64, what rounding to the stored type does to it, as a logarithm
    said: with its spread, for each weight that may answer
    """

    ratio: torch.Tensor
    precision: torch.Tensor
    said: list[tuple[float, _Off]] = field(default_factory=list)

    def take(self, weight: Beside) -> None:
        if weight.channels != len(self.ratio):
            return
        off = _off(weight, self.ratio)
        spread = off.spread(self.precision)
        if spread <= _LIKE * _ANSWERS:  # others would never count
            self.said.append((spread, off))

    def answer(self) -> tuple[float, _Off] | None:
        """What the weights that answer best say together, and the spread of the best.

        None where none does. Which ones read a norm is not known: those do of which the fewest
        channels stick out.
        """
        import torch

        nearest = min((spread for spread, _ in self.said), default=math.inf)
        if nearest > _ANSWERS:
            return None
        said = [each for spread, each in self.said if spread <= _LIKE * nearest]
        weigh = torch.stack([each.error.square().reciprocal().nan_to_num(0.0) for each in said])
        total = weigh.sum(0)  # of a channel that none tells, 0: it stays without a figure

        def mean(values: list[torch.Tensor]) -> torch.Tensor:
            return (weigh * torch.stack([each.nan_to_num(0.0) for each in values])).sum(0) / total

        off, clipped, lost = (
            mean([getattr(each, name) for each in said]) for name in ("off", "clipped", "lost")
        )
        return nearest, _Off(off, total.rsqrt(), clipped, lost)


class Change:
    """A changed vector, and what the weights of its block say of it, taken one at a time.

    Of a weight four figures per channel are kept, and only where it may answer.
    """

    def __init__(self, found: torch.Tensor, source: torch.Tensor, step: torch.Tensor) -> None:
        """A vector as stored, and as the source has it.

        found, source: (channels,)
        step: (channels,) what rounding to the stored type may have changed ``found`` by
        """
        self._forms = list(_forms(found.double(), source.double(), step.double()))

    def take(self, weight: Beside) -> None:
        """Compare the change with what became of a weight."""
        for form in self._forms:
            form.take(weight)

    def mismatch(self) -> Mismatch | None:
        """What is wrong with the vector; None where the weights taken undo its change."""
        answers = [(form, told) for form in self._forms if (told := form.answer()) is not None]
        if not answers:
            return Mismatch(words="no weight of its block undoes its change", sure=True)
        form, (_, off) = min(answers, key=lambda each: each[1][0])
        return _told(off.wrong(form.precision), off)


def _forms(found: torch.Tensor, source: torch.Tensor, step: torch.Tensor) -> Iterator[_Form]:
    """Norms are of two kinds: a channel is multiplied by the value, or by one more than it."""
    import torch

    for mine, theirs in ((found, source), (1 + found, 1 + source)):
        loose = step / mine.abs()  # of one more than a value, more than of the value
        told = (theirs.abs() > _STEPS * step) | (loose < 0.5)
        ratio = torch.where(told, mine / theirs, torch.full_like(mine, float("nan")))
        if bool(((ratio[told] > 0) & ratio[told].isfinite()).all()):
            yield _Form(ratio.float(), -torch.log1p(-loose.nan_to_num(0.5).clamp(max=0.5)))


def _told(wrong: torch.Tensor, off: _Off) -> Mismatch | None:
    channels = wrong.nonzero()[:, 0].tolist()
    if not channels:
        return None
    more = f", and {len(channels) - 1} more channels are" if len(channels) > 1 else ""
    factor = float(off.off[channels[0]].exp())
    return Mismatch(
        words=(
            f"channel {channels[0]} is off by a factor of {factor:.3g}{more} not what the weights "
            "of its block undo"
        ),
        sure=float(off.lost.nanmedian()) < _COARSE,
    )


def _off(weight: Beside, ratio: torch.Tensor) -> _Off:
    """One weight beside what the vector makes of its source.

    ratio: (channels,) of the changed vector to the source's; where it is NaN, what the weight
        says is taken, so that the channel does not change how others are rounded
    """
    import torch

    source, found = weight.source, weight.found
    dim = 1 if weight.own else 0
    fits = _factors(source, found, dim)[0].float()
    fits = torch.where(fits > 0, fits, torch.ones_like(fits))
    factor = torch.where(ratio.isnan(), fits, ratio if weight.own else ratio.reciprocal())
    made = source * factor.unsqueeze(dim)
    made = made * _others(made, found, dim=1 - dim)
    rounded = made
    if weight.grid is not None:
        codes, parameters = weight.grid.quantize(made.contiguous())
        rounded = weight.grid.decode(codes, parameters)
    mine, mine_error = _factors(made, found, dim)
    theirs, their_error = _factors(made, rounded, dim)
    tells = (mine > _LEFT) & (theirs > _LEFT) & ~ratio.isnan()
    nothing = torch.full_like(mine, float("nan"))
    error = ((mine_error / mine).square() + (their_error / theirs).square()).sqrt()
    return _Off(
        torch.where(tells, (mine / theirs).log(), nothing),
        torch.where(tells, error.clamp_min(1e-9), nothing),
        torch.where(tells, theirs.log().abs(), nothing),
        torch.where(tells, mine_error / mine * made.shape[dim] ** 0.5, nothing),
    )


def _others(made: torch.Tensor, found: torch.Tensor, dim: int) -> torch.Tensor:
    """Factors along the other dimension, which another pair may have rescaled; else one."""
    import torch

    factor, error = _factors(made, found, dim)
    away = (factor - factor.median()).abs() / error.clamp_min(1e-9)
    if float(away.median()) < _SPREAD:
        return torch.ones(1)
    return torch.where(factor > 0, factor, torch.ones_like(factor)).float().unsqueeze(dim)


def _factors(
    source: torch.Tensor, found: torch.Tensor, dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The factor of every column (dim 0: over rows) or row that fits best, and its standard error.

    (channels,) float64 both; zero where there is nothing to fit
    """
    source, found = source.double(), found.double()
    size = source.square().sum(dim, keepdim=True).clamp_min(1e-60)
    factor = (source * found).sum(dim, keepdim=True) / size
    left = (found - factor * source).square().mean(dim, keepdim=True)
    return factor.squeeze(dim), (left / size).sqrt().squeeze(dim)
