"""Whether an artifact is as good as it should be: bytes, predictions, the real engine, gates."""

from __future__ import annotations

from qconv.validation._results import (
    ArtifactResult,
    BlockResult,
    GateResult,
    LogitsResult,
    RuntimeResult,
    Spread,
    Status,
    TensorResult,
    TextSample,
    Validation,
    VramResult,
    to_json,
    worst,
)

__all__ = [
    "ArtifactResult",
    "BlockResult",
    "GateResult",
    "LogitsResult",
    "RuntimeResult",
    "Spread",
    "Status",
    "TensorResult",
    "TextSample",
    "Validation",
    "VramResult",
    "to_json",
    "worst",
]
