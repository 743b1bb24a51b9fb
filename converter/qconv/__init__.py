"""qconv: a plugin-based, quantizing model-format converter.

>>> import qconv
>>> qconv.convert("models/smollm2", to=["gguf:q4_k_m"], out="out")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from qconv._version import __version__

if TYPE_CHECKING:
    from qconv.api import convert, inspect, plan, validate
    from qconv.calibration import Calibrated, Calibration, add_calibrations, calibrate
    from qconv.comparison import Comparison, compare
    from qconv.conversion import Artifact, Conversion, Transcoding, transcode
    from qconv.inspection import Inspection
    from qconv.memory import Fit, fit
    from qconv.planning import Plan, TargetPlan
    from qconv.validation import Validation

__all__ = [
    "Artifact",
    "Calibrated",
    "Calibration",
    "Comparison",
    "Conversion",
    "Fit",
    "Inspection",
    "Plan",
    "TargetPlan",
    "Transcoding",
    "Validation",
    "__version__",
    "add_calibrations",
    "calibrate",
    "compare",
    "convert",
    "fit",
    "inspect",
    "plan",
    "transcode",
    "validate",
]

_HOMES = {
    "Artifact": "qconv.conversion",
    "Calibrated": "qconv.calibration",
    "Calibration": "qconv.calibration",
    "Comparison": "qconv.comparison",
    "Conversion": "qconv.conversion",
    "Fit": "qconv.memory",
    "Inspection": "qconv.inspection",
    "Plan": "qconv.planning",
    "TargetPlan": "qconv.planning",
    "Transcoding": "qconv.conversion",
    "Validation": "qconv.validation",
    "add_calibrations": "qconv.calibration",
    "calibrate": "qconv.calibration",
    "compare": "qconv.comparison",
    "convert": "qconv.api",
    "fit": "qconv.memory",
    "inspect": "qconv.api",
    "plan": "qconv.api",
    "transcode": "qconv.conversion",
    "validate": "qconv.api",
}


def __getattr__(name: str) -> object:
    """Load a public name when it is first used, so that ``import qconv`` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'qconv' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
