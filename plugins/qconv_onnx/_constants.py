"""Values in a graph that are the same in every run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

#: Operators that torch's exporter lets a constant go through on its way, and that keep its values.
_ON_THE_WAY = frozenset({"Cast", "CastLike", "Reshape"})


def constant_of(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The values, whatever type and shape they are given on the way; None: they may vary.

    Weights, whose values are in another file, are none either.
    """
    import onnx_ir as ir

    while value is not None:
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None:
            return None if isinstance(tensor, ir.ExternalTensor) else tensor.numpy()
        node = value.producer()
        if node is None or node.op_type not in _ON_THE_WAY or node.domain:
            return None
        value = node.inputs[0]
    return None
