"""What a prediction or a measurement of device memory says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class VramResult:
    """Memory that serving a model takes, as a range, under stated assumptions.

    low, high: bytes; what is known exactly (weights, cache) counts in full in both
    context: tokens of a sequence
    batch: sequences at a time
    cache_type: of keys and values: ``f16``, ``f32``, ``q8_0``, ``q4_0`` or ``fp8``
    runtime: ``llama.cpp``, ``vllm``, ``onnxruntime`` or ``transformers``
    parts: upper figures in bytes, which add up to ``high``: weights, kv_cache, logits,
        activations, device_context
    measured: bytes, where it was measured
    error: bytes by which ``measured`` is outside the range: negative below, 0 inside
    device: what was measured on: ``cpu``, ``cuda``
    by: what measured it
    figures: measured bytes by name: on CUDA ``max_memory_allocated``, ``max_memory_reserved``,
        ``device`` (its own figure) and ``device_context``
    reason: why it was not measured, where that was asked for
    assumptions: what the range rests on, for people
    """

    low: int
    high: int
    context: int
    batch: int
    cache_type: str
    runtime: str
    parts: dict[str, int]
    measured: int | None = None
    error: int | None = None
    device: str | None = None
    by: str | None = None
    figures: dict[str, int] = field(default_factory=dict)
    reason: str | None = None
    assumptions: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        """The error follows from the range and what was measured, whatever was given for it."""
        outside = None
        if self.measured is not None:
            outside = min(0, self.measured - self.low) + max(0, self.measured - self.high)
        object.__setattr__(self, "error", outside)

    def place(self, size: Callable[[int], str]) -> str:
        """Where what was measured lies: ``inside the range``, ``1.0 MB above the range``.

        size: bytes in words
        """
        if not self.error:
            return "inside the range"
        return f"{size(abs(self.error))} {'above' if self.error > 0 else 'below'} the range"

    def beside(
        self, measured: int, *, device: str, by: str, figures: Mapping[str, int]
    ) -> VramResult:
        """The prediction beside what was measured of the same run, in bytes."""
        return replace(self, measured=measured, device=device, by=by, figures=dict(figures))
