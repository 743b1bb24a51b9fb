"""Predictions beside predictions: what is added up over windows, and what it comes to.

KL(p || q) = sum p (log p - log q) over the whole vocabulary at every position, p being the
reference. The ratio of perplexities is the exponential of the mean change of the loss; windows are
independent, positions of one are not, so its confidence interval comes from the windows' means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qconv.validation._results import LogitsResult, Spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

#: Positions compared at a time: with a vocabulary of 128k, some 250 MB.
_POSITIONS = 64

#: Two-sided 95 % of the normal distribution, and three terms of Student's t around it for few
#: windows (Abramowitz & Stegun, 26.7.5); from its table (26.10) for the fewest.
_Z = 1.959964
_T_TERMS = (
    (_Z**3 + _Z) / 4,
    (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 96,
    (3 * _Z**7 + 19 * _Z**5 + 17 * _Z**3 - 15 * _Z) / 384,
)
_T_FEWEST = {1: 12.706, 2: 4.303, 3: 3.182}


@dataclass(slots=True)
class LogitsSum:
    """Adds up windows.

    kl: per window (positions,) float64
    losses: per window the sums of the scored's and the reference's loss, and how many
    """

    kl: list[torch.Tensor] = field(default_factory=list)
    losses: list[tuple[float, float, int]] = field(default_factory=list)
    same: int = 0
    overlap: float = 0.0
    squares: float = 0.0

    def add(self, window: torch.Tensor, reference: torch.Tensor, scored: torch.Tensor) -> None:
        """Add one window.

        window: (tokens,) int64
        reference, scored: (tokens, vocabulary) logits; the scored may have more: what it gives to
            tokens that the reference has none of is taken from the others, and may be the likeliest
        """
        import torch

        found, change = [], [0.0, 0.0]
        for start in range(0, len(window), _POSITIONS):
            stop = min(len(window), start + _POSITIONS)
            log_p = torch.log_softmax(reference[start:stop].float(), -1)
            log_q = torch.log_softmax(scored[start:stop].float(), -1)
            shared = log_q[:, : log_p.shape[-1]]
            found.append((log_p.exp() * (log_p - shared)).sum(-1, dtype=torch.float64).cpu())
            self._rank(log_p, log_q)
            after = window[start + 1 : stop + 1].to(log_p.device)
            p = log_p[: len(after)].gather(1, after[:, None]).double()
            q = log_q[: len(after)].gather(1, after[:, None]).double()
            change[0] -= float(q.sum())
            change[1] -= float(p.sum())
            self.squares += float(((q.exp() - p.exp()) ** 2).sum())
        self.kl.append(torch.cat(found).clamp_min(0.0))
        self.losses.append((change[0], change[1], len(window) - 1))

    def _rank(self, log_p: torch.Tensor, log_q: torch.Tensor) -> None:
        count = min(5, log_p.shape[-1])
        mine, theirs = log_q.topk(count).indices, log_p.topk(count).indices
        self.same += int((mine[:, 0] == theirs[:, 0]).sum())
        shared = (mine[:, :, None] == theirs[:, None, :]).any(1)
        self.overlap += float(shared.sum()) / count

    def total(self, scored: str) -> LogitsResult:
        """What all windows come to. scored: what made the logits."""
        import torch

        every = torch.cat(self.kl)
        predicted = sum(count for _, _, count in self.losses)
        mine = sum(loss for loss, _, _ in self.losses) / predicted
        theirs = sum(loss for _, loss, _ in self.losses) / predicted
        return LogitsResult(
            scored=scored,
            windows=len(self.kl),
            tokens=len(every),
            kl=_spread(every),
            same_top1=self.same / len(every),
            top5_overlap=self.overlap / len(every),
            perplexity=_exp(mine),
            reference_perplexity=_exp(theirs),
            perplexity_ratio=_exp(mine - theirs),
            ratio_interval=_interval(self.losses, mine - theirs),
            rms_probability=math.sqrt(self.squares / predicted),
            window_kl=tuple(float(each.mean()) for each in self.kl),
        )


def _spread(values: torch.Tensor) -> Spread:
    import torch

    ordered = values.sort().values

    def at(share: float) -> float:
        return float(ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)])

    return Spread(
        mean=float(values.mean(dtype=torch.float64)),
        median=at(0.5),
        p90=at(0.9),
        p99=at(0.99),
        p999=at(0.999),
        max=float(ordered[-1]),
    )


def _interval(losses: Sequence[tuple[float, float, int]], change: float) -> tuple[float, float]:
    """95 % of the ratio of perplexities; from nothing to anything with a single window."""
    count = len(losses)
    if count < 2:
        return (0.0, math.inf)
    total = sum(tokens for _, _, tokens in losses)
    # of a weighted mean: squares of the weighted deviations, with one degree of freedom used up
    deviations = (((mine - theirs) - change * tokens) / total for mine, theirs, tokens in losses)
    error = math.sqrt(sum(each**2 for each in deviations) * count / (count - 1))
    t = student_t(count - 1)
    return (_exp(change - t * error), _exp(change + t * error))


def student_t(free: int) -> float:
    """Two-sided 95 % of Student's t with so many degrees of freedom."""
    terms: float = sum(term / free**power for power, term in enumerate(_T_TERMS, start=1))
    return _T_FEWEST.get(free, _Z + terms)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
