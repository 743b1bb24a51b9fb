"""The transform behind ``smoothquant``.

After SmoothQuant (https://arxiv.org/abs/2211.10438, eq. 4): the input of a linear layer is divided
by ``s = max|x|^alpha / max|w|^(1 - alpha)``, channel by channel, and its weight multiplied by it,
so that activations with outliers become easier to round to integers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconv.errors import UsageError

from ._loss import Loss
from ._magnitudes import activation_magnitude, weight_magnitude

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from qconv.plugin import Fold

#: Scales stay within 2**-8 and 2**8 of one another's geometric middle: weights and norms that fit
#: float16 before still do.
_LIMIT = 256.0

#: Strengths are searched in tenths, then half a tenth on either side of the best.
_TENTHS = tuple(step / 10 for step in range(11))
_FINER = 0.05


class SmoothQuant:
    """Chooses the scales of each fold on its own. Options come as text.

    alpha: how much of the outliers moves into the weights, or ``auto``: what costs least per fold,
        measured on the rows that calibration kept, nothing moved being one of the choices
    folds: ``norm``: only what follows a norm, as the paper; ``all``: between linears too

    Raises:
        UsageError: an option is out of range.
    """

    def __init__(self, alpha: str = "auto", folds: str = "all") -> None:
        self._alpha = None if alpha == "auto" else _strength(alpha)
        if folds not in ("all", "norm"):
            raise UsageError(f"smoothquant: folds is {folds!r}; choose 'all' or 'norm'")
        self._norms_only = folds == "norm"

    def scales(self, fold: Fold) -> torch.Tensor | None:
        """The scales, (channels,) float32; None to leave the fold as it is.

        None also where nothing is known of the consumers' inputs, where no consumer is quantized,
        and where the producer's rows share a scale: they could not be rescaled without loss.
        """
        if (self._norms_only and fold.kind != "norm") or _shares_scale(fold):
            return None
        loss = Loss(fold)
        if loss.empty:
            return None
        x, w = activation_magnitude(fold), weight_magnitude(fold)
        if self._alpha is not None:
            return _scale(x, w, self._alpha)
        alpha = _strongest(lambda alpha: loss(_scale(x, w, alpha)))
        s = _scale(x, w, alpha)
        return s if loss(s) < loss(s.new_ones(len(s))) else None


def _strongest(cost: Callable[[float], float]) -> float:
    """The strength of least cost, the weakest of equals."""
    coarse = min(_TENTHS, key=cost)
    near = (coarse - _FINER, coarse, coarse + _FINER)
    return min((alpha for alpha in near if 0.0 <= alpha <= 1.0), key=cost)


def _scale(x: torch.Tensor, w: torch.Tensor, alpha: float) -> torch.Tensor:
    s = x**alpha / w ** (1.0 - alpha)
    middle = (s.max() * s.min()).sqrt()
    return (s / middle).clamp(1.0 / _LIMIT, _LIMIT)


def _shares_scale(fold: Fold) -> bool:
    return fold.producer_grid is not None and not fold.producer_grid.rows_independent


def _strength(text: str) -> float:
    try:
        alpha = float(text)
    except ValueError:
        alpha = -1.0
    if 0.0 <= alpha <= 1.0:
        return alpha
    raise UsageError(f"smoothquant: alpha is {text!r}; choose a number from 0 to 1, or 'auto'")
