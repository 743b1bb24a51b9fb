"""From what a GGUF file says of rotary embeddings to transformers' ``rope_scaling``.

References: transformers' ``modeling_rope_utils.py``; llama.cpp's ``src/llama-context.cpp`` (YaRN)
and ``conversion/llama.py`` (Llama 3, whose formula becomes the tensor ``rope_freqs.weight``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qconv.errors import Unsupported

if TYPE_CHECKING:
    import torch

    from ._gguf_keys import Keys

FACTORS = "rope_freqs.weight"

_MOST = 2**31 - 1
#: How far stored factors may be from the formula's: llama.cpp's converter computes in float32.
_ERROR = 1e-5
#: Of all Llama 3 so far; the tensor tells them only up to a common multiple.
_PUBLISHED = (1.0, 4.0, 8192.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Llama3:
    """Parameters of Llama 3's stretching of low frequencies. original: tokens."""

    factor: float
    low: float
    high: float
    original: float

    def factors(self, theta: float, head_dim: int) -> list[float]:
        """What each frequency is divided by."""
        return [self._of(length) for length in wavelengths(theta, head_dim)]

    def _of(self, length: float) -> float:
        if length < self.original / self.high:
            return 1.0
        if length > self.original / self.low:
            return self.factor
        smooth = (self.original / length - self.low) / (self.high - self.low)
        return 1 / ((1 - smooth) / self.factor + smooth)

    def scaling(self) -> dict[str, Any]:
        """``rope_scaling`` as transformers reads it."""
        return {
            "rope_type": "llama3",
            "factor": self.factor,
            "low_freq_factor": self.low,
            "high_freq_factor": self.high,
            "original_max_position_embeddings": int(self.original),
        }


def wavelengths(theta: float, head_dim: int) -> list[float]:
    """Tokens per turn of every frequency, shortest first."""
    return [2 * math.pi * theta ** (index / head_dim) for index in range(0, head_dim, 2)]


def stated_scaling(keys: Keys, name: str, context: int) -> dict[str, Any] | None:
    """The scaling that metadata states. name: of the architecture.

    Raises:
        Unsupported: a kind that is not translated.
        UnreadableInput: a value is impossible.
    """
    kind = keys.text(f"{name}.rope.scaling.type", "")
    if not kind:
        kind = "linear" if f"{name}.rope.scale_linear" in keys else "none"
    if kind == "none":
        return None
    older = keys.positive(f"{name}.rope.scale_linear", 1.0)
    factor = keys.positive(f"{name}.rope.scaling.factor", older)
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise Unsupported(
            f"the GGUF file's {name}.rope.scaling.type {kind!r} is not translated, only none, "
            "linear and yarn; start from the model's own checkpoint"
        )
    original = keys.whole(f"{name}.rope.scaling.original_context_length", 1, _MOST, context)
    own = keys.positive(f"{name}.rope.scaling.attn_factor", 1.0)
    # llama.cpp multiplies its own factor, which is transformers' default, by this
    attention = {} if own == 1.0 else {"attention_factor": own * (1.0 + 0.1 * math.log(factor))}
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        **attention,
    }


def tensor_scaling(
    read: Callable[[str], torch.Tensor] | None, theta: float, head_dim: int
) -> dict[str, Any] | None:
    """The formula behind the factors in ``rope_freqs.weight``; None where they are all 1.

    read: a tensor of the source; None where it cannot be read

    Raises:
        Unsupported: there is none, or the tensor cannot be read.
    """
    factors = [] if read is None else [float(each) for each in read(FACTORS).flatten()]
    if factors and all(each == 1.0 for each in factors):
        return None
    for candidate in _candidates(factors, theta, head_dim):
        if _close(candidate.factors(theta, head_dim), factors):
            return candidate.scaling()
    raise Unsupported(
        f"tensor {FACTORS!r} stretches rotary frequencies by factors that follow no formula which "
        "config.json can state (Llama 3's); start from the model's own checkpoint"
    )


def _close(expected: list[float], found: list[float]) -> bool:
    return len(expected) == len(found) and all(
        math.isclose(one, other, rel_tol=_ERROR) for one, other in zip(expected, found, strict=True)
    )


def _candidates(factors: list[float], theta: float, head_dim: int) -> Iterator[_Llama3]:
    """Published parameters, then those that the factors between 1 and the largest lie on.

    Between them, how much of the frequency is kept is linear in it.
    """
    if not factors or not 1.0 < max(factors) < math.inf:
        return
    factor = _rounded(max(factors))
    low, high, original = _PUBLISHED
    yield _Llama3(factor=factor, low=low, high=high, original=original)
    points = [
        (1 / length, (1 / found - 1 / factor) / (1 - 1 / factor))
        for length, found in zip(wavelengths(theta, head_dim), factors, strict=False)
        if 1.0 < found < max(factors)
    ]
    if len(points) < 2:
        return
    (first, kept), (last, less) = points[0], points[-1]
    slope = (kept - less) / (first - last)
    offset = kept - slope * first
    if slope > 0 > offset:
        spread = -1 / offset  # high - low, with low = 1
        yield _Llama3(
            factor=factor, low=1.0, high=_rounded(1 + spread), original=round(slope * spread)
        )


def _rounded(value: float) -> float:
    """A whole number or tenths where it is all but one: people choose such."""
    short = round(value, 1)
    return short if math.isclose(short, value, rel_tol=1e-3) else value
