"""The options of learned rounding, read from text and checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qconv.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a block is trained.

    iterations: steps of descent
    batch: windows per step
    learning_rate: first step of the rounding offsets, in codes
    scale_learning_rate: first step of the scale factors
    precision: torch dtype name of the training runs
    """

    iterations: int
    batch: int
    learning_rate: float
    scale_learning_rate: float
    precision: str

    @classmethod
    def from_options(
        cls,
        *,
        iterations: str = "200",
        batch: str = "1",
        learning_rate: str | None = None,
        scale_learning_rate: str | None = None,
        precision: str = "float32",
    ) -> Settings:
        """Settings from options as people write them.

        Raises:
            UsageError: an option is not a number, or out of range.
        """
        steps = _whole("iterations", iterations)
        # With a linear decay, 1/steps takes offsets from 0 to the end of their range, 0.5; the
        # paper's 200 steps from 5e-3 are the same. Factors move far less: the start's scales have
        # been searched for. Measured on a block of SmolLM2-135M, int4 in groups of 64, 100 steps,
        # error on held-out text against round to nearest: factors at 0.05/steps 0.36, 0.1/steps
        # 0.37, 0.2/steps 0.38, 0.5/steps and no factors 0.39.
        return cls(
            iterations=steps,
            batch=_whole("batch", batch),
            learning_rate=_rate("learning_rate", learning_rate, 1.0 / steps),
            scale_learning_rate=_rate("scale_learning_rate", scale_learning_rate, 0.05 / steps),
            precision=_precision(precision),
        )


def _whole(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 100_000:
        raise UsageError(
            f"method signround: {name} is {text!r}; choose a whole number from 1 to 100000"
        )
    return int(text)


def _rate(name: str, text: str | None, default: float) -> float:
    if text is None:
        return default
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0.0 <= rate <= 1.0:
        raise UsageError(f"method signround: {name} is {text!r}; choose a number from 0 to 1")
    return rate


def _precision(text: str) -> str:
    if text not in ("float32", "bfloat16"):
        raise UsageError(
            f"method signround: precision is {text!r}; choose float32, or bfloat16 on CUDA"
        )
    return text
