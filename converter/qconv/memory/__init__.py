"""Memory of a model on a device: predicted, compared with what there is, and measured."""

from __future__ import annotations

from qconv.memory._cache import Setting, cache_nbytes
from qconv.memory._config import shape_of_config
from qconv.memory._fit import Fit, Option, fit
from qconv.memory._gguf import shape_of_gguf
from qconv.memory._json import FitJson, MeasurementJson
from qconv.memory._measure import Measurement, measure
from qconv.memory._predict import make_setting, predict
from qconv.memory._recommend import Recommendation
from qconv.memory._result import VramResult
from qconv.memory._shape import ModelShape
from qconv.memory._subject import model_shape, predict_artifact
from qconv.memory._verdict import Verdict, budget_of
from qconv.memory._weights import Weights, planned_weights, stored_weights

__all__ = [
    "Fit",
    "FitJson",
    "Measurement",
    "MeasurementJson",
    "ModelShape",
    "Option",
    "Recommendation",
    "Setting",
    "Verdict",
    "VramResult",
    "Weights",
    "budget_of",
    "cache_nbytes",
    "fit",
    "make_setting",
    "measure",
    "model_shape",
    "planned_weights",
    "predict",
    "predict_artifact",
    "shape_of_config",
    "shape_of_gguf",
    "stored_weights",
]
