"""From a plan to sealed artifacts: the pipeline, and the writer that fails whole."""

from __future__ import annotations

from qconv.conversion._artifact import Artifact
from qconv.conversion._blockwise import Passes, Steps
from qconv.conversion._checked import Checked, Unread
from qconv.conversion._json import ConversionJson, TranscodingJson
from qconv.conversion._measuring import input_errors
from qconv.conversion._outputs import check_outputs
from qconv.conversion._pipeline import Conversion, run
from qconv.conversion._remembered import KeptRows, Remembered, kinds_of
from qconv.conversion._transcoding import Transcoding, transcode

__all__ = [
    "Artifact",
    "Checked",
    "Conversion",
    "ConversionJson",
    "KeptRows",
    "Passes",
    "Remembered",
    "Steps",
    "Transcoding",
    "TranscodingJson",
    "Unread",
    "check_outputs",
    "input_errors",
    "kinds_of",
    "run",
    "transcode",
]
