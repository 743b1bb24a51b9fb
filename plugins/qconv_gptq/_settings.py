"""The options of GPTQ, read from text and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from qconv.errors import UsageError

_NAMES = ("damp", "order", "refits")
_MOST_DAMP = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a weight is rounded.

    damp: added to the diagonal of the Gram matrix, as a part of it. With 1, what inputs do together
        weighs half of what each does: calibration text tells the latter better. Measured, KL of
        SmolLM2-135M on text that is partly of another kind than the 16 k tokens calibrated on:
        Q4_K_M 0.079 with 0.1, 0.068 with 0.3, 0.061 with 1, 0.060 with 2, 0.059 with 4; INT4 in
        groups of 64 0.199 with 0.1, 0.181 with 1, 0.184 with 3
    activation_order: round the inputs with most energy first
    refits: how often a fit is scaled to its codes and rounded again
    """

    damp: float
    activation_order: bool
    refits: int

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> Settings:
        """Settings from options as people write them.

        Raises:
            UsageError: an option is unknown, not a number, or out of range.
        """
        unknown = sorted(set(options) - set(_NAMES))
        if unknown:
            raise UsageError(
                f"method gptq: no option is called {unknown[0]!r}; choose {', '.join(_NAMES)}"
            )
        return cls(
            damp=_damp(options.get("damp", "1")),
            activation_order=_activation(options.get("order", "activation")),
            refits=_refits(options.get("refits", "0")),
        )


def _damp(text: str) -> float:
    try:
        damp = float(text)
    except ValueError:
        damp = math.nan
    if not 0.0 <= damp <= _MOST_DAMP:
        raise UsageError(f"method gptq: damp is {text!r}; choose a number from 0 to {_MOST_DAMP:g}")
    return damp


def _activation(text: str) -> bool:
    if text not in ("activation", "none"):
        raise UsageError(f"method gptq: order is {text!r}; choose activation or none")
    return text == "activation"


def _refits(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 8:
        raise UsageError(f"method gptq: refits is {text!r}; choose a whole number from 0 to 8")
    return int(text)
