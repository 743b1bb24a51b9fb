"""What artifacts write after the same prompts, each in the engine that people will run it with."""

from __future__ import annotations

from qconv.comparison._compare import compare
from qconv.comparison._results import Answer, ArtifactSpoken, Comparison

__all__ = ["Answer", "ArtifactSpoken", "Comparison", "compare"]
