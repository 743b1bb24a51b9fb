"""The plan: the fate of every tensor and the place of every byte, before any weight is read."""

from __future__ import annotations

from qconv.planning._borders import matrix_shape
from qconv.planning._json import PlanJson
from qconv.planning._needs import Needs, check_disk, default_threads
from qconv.planning._plan import (
    Plan,
    TargetPlan,
    build_plan,
    check_fallbacks,
    rows_stand_alone,
    tensor_nbytes,
)

__all__ = [
    "Needs",
    "Plan",
    "PlanJson",
    "TargetPlan",
    "build_plan",
    "check_disk",
    "check_fallbacks",
    "default_threads",
    "matrix_shape",
    "rows_stand_alone",
    "tensor_nbytes",
]
