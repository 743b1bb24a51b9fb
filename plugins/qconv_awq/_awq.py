"""The transform behind ``awq``.

After AWQ (https://arxiv.org/abs/2306.00978): channels with large activations are rounded less when
their weights are scaled up. The scale of a channel is ``x^a / w^b``, with ``x`` and ``w`` the root
mean squares of its activations and weights; ``a`` and ``b`` are searched per fold. (Where a grid's
steps follow the root mean square of their group, ``a = b = 1/2`` would be best: it makes the
product of ``sum (w s)^2`` and ``sum (x / s)^2`` least, by Cauchy and Schwarz.)
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qconv.errors import UsageError

from ._magnitudes import activation_magnitude, weight_magnitude
from ._objective import Objective, is_judged

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from qconv.plugin import Fold

#: Scales stay within 2**-8 and 2**8 of one another's geometric middle: weights and norms that fit
#: float16 before still do.
_LIMIT = 256.0

#: Where the best exponents lie. Measured on all folds of language-model blocks, INT4 in groups of
#: 64 and Q4_K: ``a`` is 0.1 to 0.4, ``b`` anything to 0.9; a finer grid, one that ties ``b`` to
#: ``1 - a``, exponents per column group and a descent per channel came within 1 % of this one.
_LARGEST_EXPONENT = 0.4
_WEIGHT_EXPONENTS = (0.0, 0.4, 0.8)


class Awq:
    """Chooses the scales of each fold on its own. Options come as text.

    Raises:
        UsageError: an option is out of range.
    """

    def __init__(self, steps: str = "4", rows: str = "512", folds: str = "all") -> None:
        self._steps = _number("steps", steps, 100)
        self._rows = None if rows == "all" else _number("rows", rows, 1 << 24, " or 'all'")
        if folds not in ("all", "norm"):
            raise UsageError(f"awq: folds is {folds!r}; choose 'all' or 'norm'")
        self._norms_only = folds == "norm"

    def scales(self, fold: Fold) -> torch.Tensor | None:
        """The scales of least cost, (channels,) float32; None where none beats leaving the fold.

        Consumers that stay float, or that no token came through, have no say. None also where that
        leaves no consumer, and where the producer's rows
        share a scale: they could not be rescaled one by one without loss.

        Raises:
            Unsupported: the statistics hold no Gram matrix.
        """
        if (self._norms_only and fold.kind != "norm") or _shares_scale(fold):
            return None
        judged = replace(fold, consumers=tuple(filter(is_judged, fold.consumers)))
        if not judged.consumers:
            return None
        objective = Objective(judged, self._rows)
        x, w = activation_magnitude(judged), weight_magnitude(judged)
        return _search(objective, lambda a, b: _scale(x, w, a, b), self._steps)


def _search(
    objective: Objective, scale: Callable[[float, float], torch.Tensor], steps: int
) -> torch.Tensor | None:
    """The best of ``x^a / w^b``; None where leaving ``s = 1`` costs no more."""
    least, best = objective(scale(0.0, 0.0)), None
    for step in range(1, steps + 1):
        for b in _WEIGHT_EXPONENTS:
            s = scale(_LARGEST_EXPONENT * step / steps, b)
            cost = objective(s)
            if cost < least:
                least, best = cost, s
    return best


def _scale(x: torch.Tensor, w: torch.Tensor, a: float, b: float) -> torch.Tensor:
    s = x**a / w**b
    middle = (s.max() * s.min()).sqrt()
    return (s / middle).clamp(1.0 / _LIMIT, _LIMIT)


def _shares_scale(fold: Fold) -> bool:
    return fold.producer_grid is not None and not fold.producer_grid.rows_independent


def _number(option: str, text: str, most: int, otherwise: str = "") -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text) <= most:
        return int(text)
    raise UsageError(
        f"awq: {option} is {text!r}; choose a whole number from 1 to {most}{otherwise}"
    )
