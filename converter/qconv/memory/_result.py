"""What a prediction or a measurement of device memory says."""

from __future__ import annotations

from dataclasses import dataclass, field


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
    device: what was measured on
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
    device: str | None = None
    assumptions: tuple[str, ...] = field(default=())

    @property
    def error(self) -> int | None:
        """Bytes by which the measured figure is outside the range: negative below, 0 inside."""
        if self.measured is None:
            return None
        return min(0, self.measured - self.low) + max(0, self.measured - self.high)
