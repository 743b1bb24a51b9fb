"""Memory of a model on a device: predicted, compared with what there is, and measured."""

from __future__ import annotations

from qconv.memory._cache import Setting, cache_nbytes
from qconv.memory._config import shape_of_config
from qconv.memory._gguf import shape_of_gguf
from qconv.memory._predict import make_setting, predict
from qconv.memory._result import VramResult
from qconv.memory._shape import ModelShape
from qconv.memory._weights import Weights, planned_weights, stored_weights

__all__ = [
    "ModelShape",
    "Setting",
    "VramResult",
    "Weights",
    "cache_nbytes",
    "make_setting",
    "planned_weights",
    "predict",
    "shape_of_config",
    "shape_of_gguf",
    "stored_weights",
]
