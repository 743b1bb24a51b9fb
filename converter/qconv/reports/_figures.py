"""Figures as a report says them, and the names that tell artifacts apart."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from qconv._words import format_bytes

if TYPE_CHECKING:
    from qconv.validation import ArtifactResult, GateResult, Status, Validation

#: What a report says where there is no figure.
UNMEASURED = "unmeasured"

#: Gates whose value is a share.
_SHARES = frozenset({"rms", "top1", "top5"})

STATUS_WORDS: dict[Status, str] = {
    "pass": "passes",
    "warn": "passes with warnings",
    "fail": "fails",
    "unmeasured": "is not fully measured",
}


def figure(value: float | None) -> str:
    """Three digits that count: ``0.0123``, ``12.3``, ``1.20e-05``."""
    if value is None:
        return UNMEASURED
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' * (value < 0)}infinite"
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


def share(value: float | None) -> str:
    """``93.4%``."""
    if value is None or not math.isfinite(value):
        return figure(value)
    return f"{value * 100:.1f}%"


def size(nbytes: float | None) -> str:
    """Bytes for people."""
    return UNMEASURED if nbytes is None else format_bytes(nbytes)


def tick_size(nbytes: float) -> str:
    """Bytes beside an axis: ``200 MB``, ``1.5 GB``, ``0``."""
    return format_bytes(nbytes).replace(".0 ", " ") if nbytes else "0"


def gate_figure(name: str, value: float | None) -> str:
    """A gate's value or limit in the unit of its name."""
    if name == "vram":
        return size(value)
    if name == "ppl" and value is not None and math.isfinite(value):
        return f"{value:.4f}"  # a ratio: what is interesting is how far it is from 1
    return share(value) if name in _SHARES else figure(value)


#: How a value that does not hold stands to its limit.
_MISSED = {"<=": ">", ">=": "<"}


def gate_words(gate: GateResult) -> str:
    """``kl 0.31 > 0.12``, or why there is no value."""
    if gate.value is None:
        return f"{gate.name} is unmeasured: {gate.why}"
    value, limit = gate_figure(gate.name, gate.value), gate_figure(gate.name, gate.limit)
    if gate.status == "unmeasured":
        return f"{gate.name} {value} is not judged: {gate.why}"
    holds = gate.status == "pass"
    return f"{gate.name} {value} {gate.relation if holds else _MISSED[gate.relation]} {limit}"


def labels(validation: Validation) -> tuple[str, ...]:
    """What each artifact is called: its target; where several share one, its method or path too."""
    artifacts = validation.artifacts
    named = [artifact.target for artifact in artifacts]
    for more in (_with_method, _with_path):
        count = Counter(named)
        named = [
            more(name, artifact) if count[name] > 1 else name
            for name, artifact in zip(named, artifacts, strict=True)
        ]
    return tuple(named)


def _with_method(name: str, artifact: ArtifactResult) -> str:
    return f"{name} by {artifact.method}" if artifact.method else name


def _with_path(name: str, artifact: ArtifactResult) -> str:
    return f"{name}, {artifact.path}"


def worst_tensors(artifact: ArtifactResult, count: int) -> tuple[int, ...]:
    """Places of the tensors to look at first.

    Faulty ones, those with warnings, then by error over limit, then error.
    """

    def badness(place: int) -> tuple[bool, bool, float, float]:
        tensor = artifact.tensors[place]
        error = _comparable(tensor.relative_error)
        over = error / tensor.limit if tensor.limit else 0.0
        return bool(tensor.faults), bool(tensor.warnings), over, error

    places = [
        place
        for place, tensor in enumerate(artifact.tensors)
        if tensor.faults or tensor.warnings or _comparable(tensor.relative_error) > 0
    ]
    return tuple(sorted(places, key=badness, reverse=True)[:count])


def _comparable(value: float | None) -> float:
    """Worst of all is an error that is no number."""
    return 0.0 if value is None else math.inf if math.isnan(value) else value
