"""What ``Fit.to_json`` gives, typed; ``schemas/fit.schema.json`` is generated from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Optional

from typing_extensions import TypedDict

if TYPE_CHECKING:
    from qconv.memory._result import VramResult
    from qconv.memory._verdict import Verdict


class VerdictJson(TypedDict):
    """Whether something fits, and every way that makes it fit. Sizes in bytes.

    low, high: of the prediction; parts add up to high
    budget: of the device, less the headroom
    max_context: longest that fits with this cache; null when none does
    smaller_cache: with which it fits as asked; null where none does
    gpu_layers: of ``layers``, that fit as asked in llama.cpp; null otherwise
    """

    answer: Literal["fits", "smaller_cache", "shorter_context", "offload", "no"]
    low: int
    high: int
    parts: dict[str, int]
    cache_type: str
    budget: int
    max_context: Optional[int]  # noqa: UP045 - read at run time, on Python 3.10 too
    smaller_cache: Optional[str]  # noqa: UP045
    gpu_layers: Optional[int]  # noqa: UP045
    layers: int
    assumptions: list[str]


class OptionJson(TypedDict):
    """A format, or what is on disk. verdict: null where it cannot be made, for ``reason``.

    expected_kl: nats per token, as published for models of 8 billion parameters
    """

    target: str
    runtime: str
    nbytes: Optional[int]  # noqa: UP045
    bits_per_weight: Optional[float]  # noqa: UP045
    quality: Optional[str]  # noqa: UP045
    expected_kl: Optional[float]  # noqa: UP045
    verdict: Optional[VerdictJson]  # noqa: UP045
    reason: Optional[str]  # noqa: UP045


class RecommendationJson(TypedDict):
    """A format to take. smaller: loses next to nothing in less, where target loses nothing."""

    target: str
    reason: str
    smaller: Optional[str]  # noqa: UP045


class MeasurementJson(TypedDict):
    """A run that was measured, beside its prediction; bytes.

    error: by which the measured figure is outside of low to high; 0 inside
    by: what measured it
    figures: on CUDA ``max_memory_allocated``, ``max_memory_reserved``, ``device``,
        ``device_context``
    """

    low: int
    high: int
    measured: int
    error: int
    runtime: str
    device: str
    by: str
    context: int
    batch: int
    cache_type: str
    parts: dict[str, int]
    figures: dict[str, int]
    assumptions: list[str]


class FitJson(TypedDict):
    """What fits a device of ``vram`` bytes. measurement: null unless asked for."""

    model: str
    vram: int
    context: int
    batch: int
    fits: bool
    options: list[OptionJson]
    recommendation: Optional[RecommendationJson]  # noqa: UP045
    warnings: list[str]
    measurement: Optional[MeasurementJson]  # noqa: UP045


def verdict_json(verdict: Verdict | None, predicted: VramResult | None) -> VerdictJson | None:
    """A verdict with the prediction it rests on."""
    if verdict is None or predicted is None:
        return None
    return {
        "answer": verdict.answer,
        "low": predicted.low,
        "high": predicted.high,
        "parts": dict(predicted.parts),
        "cache_type": predicted.cache_type,
        "budget": verdict.budget,
        "max_context": verdict.max_context,
        "smaller_cache": verdict.cache_type,
        "gpu_layers": verdict.gpu_layers,
        "layers": verdict.layers,
        "assumptions": list(predicted.assumptions),
    }
