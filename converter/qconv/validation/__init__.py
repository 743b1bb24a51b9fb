"""Whether an artifact is as good as it should be: bytes, predictions, the real engine, gates."""

from __future__ import annotations

from qconv.memory import VramResult
from qconv.validation._gates import gate_meaning
from qconv.validation._quick import QuickCheck
from qconv.validation._results import (
    ArtifactResult,
    BaselineResult,
    BlockResult,
    GateResult,
    LogitsResult,
    RuntimeResult,
    Spread,
    Status,
    TensorResult,
    TextSample,
    Validation,
    to_json,
    worst,
)
from qconv.validation._validate import Depth, Request, run

__all__ = [
    "ArtifactResult",
    "BaselineResult",
    "BlockResult",
    "Depth",
    "GateResult",
    "LogitsResult",
    "QuickCheck",
    "Request",
    "RuntimeResult",
    "Spread",
    "Status",
    "TensorResult",
    "TextSample",
    "Validation",
    "VramResult",
    "gate_meaning",
    "run",
    "to_json",
    "worst",
]
