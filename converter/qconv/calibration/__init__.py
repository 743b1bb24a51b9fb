"""Calibration: from corpora to windows of tokens, and from windows to statistics kept in a file."""

from __future__ import annotations

from qconv.calibration._build import build_windows
from qconv.calibration._calibrate import Calibrated, add_calibrations, calibrate
from qconv.calibration._corpus import CorpusCounts
from qconv.calibration._evaluation import evaluation_windows
from qconv.calibration._file import (
    CalibrationFile,
    CalibrationMetadata,
    load_calibration,
    save_calibration,
)
from qconv.calibration._json import CalibrationJson
from qconv.calibration._running import InputStatistics, Seen, check_tokens, collect_statistics
from qconv.calibration._samples import Samples, graph_samples
from qconv.calibration._saved import SavedStatistics
from qconv.calibration._settings import BUILTIN, Calibration
from qconv.calibration._windows import Origin, SourceReport, Windows, WindowsReport

__all__ = [
    "BUILTIN",
    "Calibrated",
    "Calibration",
    "CalibrationFile",
    "CalibrationJson",
    "CalibrationMetadata",
    "CorpusCounts",
    "InputStatistics",
    "Origin",
    "Samples",
    "SavedStatistics",
    "Seen",
    "SourceReport",
    "Windows",
    "WindowsReport",
    "add_calibrations",
    "build_windows",
    "calibrate",
    "check_tokens",
    "collect_statistics",
    "evaluation_windows",
    "graph_samples",
    "load_calibration",
    "save_calibration",
]
