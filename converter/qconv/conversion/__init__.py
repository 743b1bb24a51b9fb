"""From a plan to sealed artifacts: the pipeline, and the writer that fails whole."""

from __future__ import annotations

from qconv.conversion._artifact import Artifact
from qconv.conversion._blockwise import Passes, Steps
from qconv.conversion._json import ConversionJson
from qconv.conversion._outputs import check_outputs
from qconv.conversion._pipeline import Conversion, run

__all__ = ["Artifact", "Conversion", "ConversionJson", "Passes", "Steps", "check_outputs", "run"]
