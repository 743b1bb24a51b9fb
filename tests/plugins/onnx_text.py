"""Graphs written as text, and what onnxruntime computes from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
import onnxruntime

if TYPE_CHECKING:
    import numpy as np


def parsed(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(text))


def computed(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """The first output, of a graph that the checker accepts."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    opened = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return opened.run(None, feeds)[0]


def kinds(model: ir.Model) -> Counter[str]:
    """How many nodes there are of each operator, constants aside."""
    return Counter(node.op_type for node in model.graph if node.op_type != "Constant")
