"""Which format to take: the one that loses least of those that fit, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qconv.memory._fit import Option
    from qconv.memory._json import RecommendationJson

#: Ways to make something fit, from what gives up nothing to what gives up most.
_ORDER = {"fits": 0, "smaller_cache": 1, "shorter_context": 2, "offload": 3}

#: Up to this class more bits are of no use: the smallest is taken.
_ENOUGH = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """A format to take.

    reason: for people
    smaller: where the choice loses nothing at all: a format that loses next to nothing in less
    """

    target: str
    reason: str
    smaller: str | None = None

    def to_json(self) -> RecommendationJson:
        """As JSON-able data."""
        return {"target": self.target, "reason": self.reason, "smaller": self.smaller}


def recommend(options: Sequence[Option]) -> Recommendation | None:
    """The best that fits as asked, or comes nearest to that; None when nothing does."""
    ranked = sorted(
        (option for option in options if option.verdict and option.verdict.answer in _ORDER),
        key=_key,
    )
    made = [option for option in ranked if option.target != "as stored"] or ranked
    if not made:
        return None
    best = made[0]
    return Recommendation(target=best.target, reason=_reason(best), smaller=_smaller(best, made))


def _key(option: Option) -> tuple[int, int, bool, int, int]:
    """Sorts the best first: fits, then least loss, then most bits where bits still help."""
    verdict, quality, predicted = option.verdict, option.quality, option.predicted
    if verdict is None or predicted is None:
        return (len(_ORDER), 0, False, 0, 0)
    rank, plain = (quality.rank, quality.plain) if quality else (99, False)
    bits = 0 if rank <= _ENOUGH else -round(100 * (option.bits_per_weight or 0))
    return (_ORDER[verdict.answer], rank, plain, bits, predicted.high)


def _reason(best: Option) -> str:
    verdict = best.verdict
    loss = (
        "of those that do, it is predicted to lose least" if best.quality is None else _loss(best)
    )
    if verdict is None or verdict.answer == "fits":
        return f"it fits as asked, and {loss}"
    if verdict.answer == "smaller_cache":
        return f"it fits as asked with a cache in {verdict.cache_type}, and {loss}"
    if verdict.answer == "shorter_context":
        return f"nothing fits as asked; it does with up to {verdict.max_context} tokens, and {loss}"
    return (
        f"nothing fits whole; {verdict.gpu_layers} of its {verdict.layers} layers fit the device, "
        f"the others stay in the host's memory, which is slow; {loss}"
    )


def _loss(best: Option) -> str:
    quality = best.quality
    if quality is None:
        return "it is what there is"
    if not quality.kl:
        return "it loses nothing"
    return f"it is expected to lose least of those ({quality.name}, about {quality.kl:g} nats)"


def _smaller(best: Option, made: Sequence[Option]) -> str | None:
    if best.quality is None or best.quality.rank or best.verdict is None:
        return None
    near = [
        option
        for option in made
        if option.quality and option.quality.rank == _ENOUGH and option.fits
    ]
    return min(near, key=_key).target if near else None
