"""Calibration: from corpora to windows of tokens, and from windows to statistics kept in a file."""

from __future__ import annotations

from qconv.calibration._build import build_windows
from qconv.calibration._corpus import CorpusCounts
from qconv.calibration._evaluation import evaluation_windows
from qconv.calibration._settings import Calibration
from qconv.calibration._windows import Origin, SourceReport, Windows, WindowsReport

__all__ = [
    "Calibration",
    "CorpusCounts",
    "Origin",
    "SourceReport",
    "Windows",
    "WindowsReport",
    "build_windows",
    "evaluation_windows",
]
