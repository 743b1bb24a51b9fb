"""What a sound artifact may lose, by the class of grid that most of its weights lie on.

The limits stand about twice above figures that are published for sound files of each class
(llama.cpp's scoreboards, evaluations of compressed-tensors formats), so that a sound file passes
and a broken one does not. Small models lose more on the same grid, very small ones much more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a class may lose.

    kl, kl_p99: nats
    top1: share
    ppl: ratio
    block: relative error after the last block, where there are no predictions
    """

    kl: float
    kl_p99: float | None
    top1: float
    ppl: float
    block: float


#: Errors after the last block are twice those of SmolLM2-135M rounded to nearest (Q8_0 0.022, Q6_K
#: 0.06, Q4_K_M 0.23, Q3_K_M 0.25), less for the coarsest (Q2_K 0.47), so that states that have
#: nothing to do with the source's, which are 1.4 off, fail; that of 5 bits lies between. A float
#: may be half as far off as 8 bits; rounded inputs were not measured, and may three times.
#:
#: By class, finest first, with the fewest bits per weight (as stored) that are of it.
CLASSES: Mapping[str, tuple[float, Limits]] = {
    "float": (12.0, Limits(kl=5e-4, kl_p99=5e-3, top1=0.995, ppl=1.001, block=0.02)),
    "8-bit": (7.3, Limits(kl=0.005, kl_p99=0.05, top1=0.97, ppl=1.005, block=0.05)),
    "8-bit, inputs too": (7.3, Limits(kl=0.02, kl_p99=0.25, top1=0.95, ppl=1.02, block=0.15)),
    "6-bit": (6.0, Limits(kl=0.012, kl_p99=0.12, top1=0.955, ppl=1.01, block=0.12)),
    "5-bit": (5.0, Limits(kl=0.025, kl_p99=0.3, top1=0.94, ppl=1.015, block=0.2)),
    "4-bit": (4.0, Limits(kl=0.06, kl_p99=0.7, top1=0.90, ppl=1.04, block=0.45)),
    "3-bit": (2.9, Limits(kl=0.15, kl_p99=1.5, top1=0.86, ppl=1.12, block=0.6)),
    "2-bit": (0.0, Limits(kl=0.6, kl_p99=None, top1=0.75, ppl=1.6, block=0.7)),
}

_SMALL, _SMALLEST = 1_000_000_000, 300_000_000

#: How much more small models may lose, as published: divergence, share of other likeliest tokens,
#: growth of the perplexity.
_OF_SMALL: Mapping[str, float] = {"kl": 2.0, "kl_p99": 2.0, "top1": 1.5, "ppl": 2.0}

#: The same of the smallest, so that what loses most of what is sound, of SmolLM2-135M on 32 windows
#: of 512, takes 0.3 to 0.9 of each limit (``make bench-gates``). Plain INT4, which takes up to 1.4
#: of the limits of 4 bits, is warned of: more room would let a broken Q4_K_M pass. Floats were not
#: measured.
_OF_SMALLEST: Mapping[str, Mapping[str, float]] = {
    "float": {"kl": 8.0, "kl_p99": 8.0, "top1": 4.5, "ppl": 12.0},
    "8-bit": {"kl": 2.0, "kl_p99": 2.0, "top1": 3.0, "ppl": 2.0},
    "8-bit, inputs too": {"kl": 8.0, "kl_p99": 8.0, "top1": 4.5, "ppl": 9.0},
    "6-bit": {"kl": 4.0, "kl_p99": 2.0, "top1": 4.5, "ppl": 6.0},
    "5-bit": {"kl": 4.0, "kl_p99": 2.0, "top1": 4.5, "ppl": 6.0},
    "4-bit": {"kl": 8.0, "kl_p99": 5.0, "top1": 4.5, "ppl": 12.0},
    "3-bit": {"kl": 8.0, "kl_p99": 4.0, "top1": 5.0, "ppl": 12.0},
    "2-bit": {"kl": 6.0, "top1": 3.5, "ppl": 16.0},
}

#: Figures of a model that lost nothing, where that is not zero.
LOSSLESS = {"top1": 1.0, "ppl": 1.0}


def limit_for(grid_class: str, name: str, weights: int) -> float | None:
    """The default limit of a class, for a model of so many weights; None where it has none."""
    return of_size(grid_class, name, weights)[0]


def of_size(grid_class: str, name: str, weights: int) -> tuple[float | None, str]:
    """As :func:`limit_for`, and what the model's size did to it, in words."""
    limit = getattr(CLASSES[grid_class][1], name)
    if limit is None or weights >= _SMALL:
        return limit, ""
    smallest = weights < _SMALLEST
    factor = (_OF_SMALLEST[grid_class] if smallest else _OF_SMALL)[name]
    below = _SMALLEST if smallest else _SMALL
    lossless = LOSSLESS.get(name, 0.0)
    scaled = lossless + factor * (limit - lossless)
    return max(0.0, scaled), f", {factor:g} times the loss below {below / 1e9:g} B weights"
