"""The plan: the fate of every tensor and the place of every byte, before any weight is read."""

from __future__ import annotations

from qconv.planning._accounting import unused_tensors
from qconv.planning._borders import arranged_shape, matrix_shape
from qconv.planning._calibrated import CalibrationPlan, group_blocks, plan_calibration
from qconv.planning._json import PlanJson
from qconv.planning._needs import Needs, check_disk, chosen_threads, default_threads
from qconv.planning._plan import (
    Plan,
    TargetPlan,
    build_plan,
    check_fallbacks,
    rows_apart,
    tensor_nbytes,
)
from qconv.planning._source import SourceFacts, source_facts

__all__ = [
    "CalibrationPlan",
    "Needs",
    "Plan",
    "PlanJson",
    "SourceFacts",
    "TargetPlan",
    "arranged_shape",
    "build_plan",
    "check_disk",
    "check_fallbacks",
    "chosen_threads",
    "default_threads",
    "group_blocks",
    "matrix_shape",
    "plan_calibration",
    "rows_apart",
    "source_facts",
    "tensor_nbytes",
    "unused_tensors",
]
