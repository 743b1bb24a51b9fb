"""What a tensor becomes on disk: the initializers of the graph it is stored as.

A quantized weight ``X`` becomes ``X_quantized``, ``X_scale`` and, unless its grid is symmetric,
``X_zero_point``; what its input is rounded with, known beforehand, ``X_input_scale`` and
``X_input_zero_point``.
Where the graph has such a name already, a number follows it. A tensor left in float stays ``X``.
Layouts: MatMulNBits has codes and parameters row by row,
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md; DequantizeLinear before
a MatMul, and MatMulIntegerToFloat, have the weight transposed: ``(in, out)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from qconv.errors import UnsupportedGrid

if TYPE_CHECKING:
    import numpy as np
    import torch

    from qconv.grids import UniformGrid
    from qconv.tensors import QuantTensor

    from ._options import Operator

CODES, SCALE, ZERO_POINT = "_quantized", "_scale", "_zero_point"
INPUT_SCALE, INPUT_ZERO_POINT = "_input_scale", "_input_zero_point"

#: Bits of one value, by ONNX's name of the type.
_BITS = {
    **dict.fromkeys(("DOUBLE", "INT64", "UINT64"), 64),
    **dict.fromkeys(("FLOAT", "INT32", "UINT32"), 32),
    **dict.fromkeys(("FLOAT16", "BFLOAT16", "INT16", "UINT16"), 16),
    **dict.fromkeys(("BOOL", "INT8", "UINT8", "FLOAT8E4M3FN", "FLOAT8E5M2"), 8),
    **dict.fromkeys(("INT4", "UINT4"), 4),
}

#: Dimensions of a table.
_TABLE = 2

#: ONNX's name of a type, by torch's.
TYPES = {"float32": "FLOAT", "float16": "FLOAT16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One initializer.

    suffix: it is called after the tensor, and this
    type: ONNX's name: ``FLOAT``, ``UINT4``
    by_rows: rows of the tensor are consecutive, equally long runs of its bytes
    """

    suffix: str
    type: str
    shape: tuple[int, ...]
    by_rows: bool

    @property
    def nbytes(self) -> int:
        """Bytes on disk: 4-bit values lie two to a byte."""
        return (prod(self.shape) * _BITS[self.type] + 7) // 8


def float_parts(shape: tuple[int, ...], dtype: str) -> tuple[Part, ...]:
    """The part of a tensor left in float. dtype: torch dtype name."""
    return (Part(suffix="", type=TYPES[dtype], shape=shape, by_rows=True),)


def row_parts(sizes: tuple[int, ...], scales: str) -> tuple[Part, ...]:
    """The parts of a table, (out, in), or a kernel, (out, in, ...), with a scale for each row.

    scales: ONNX's name of their type; those of a kernel have one dimension
    """
    of_scales = (sizes[0], 1) if len(sizes) == _TABLE else sizes[:1]
    return (
        Part(suffix=CODES, type="INT8", shape=sizes, by_rows=True),
        Part(suffix=SCALE, type=scales, shape=of_scales, by_rows=True),
    )


def quantized_parts(
    operator: Operator, shape: tuple[int, int], grid: UniformGrid
) -> tuple[Part, ...]:
    """The parts of a quantized weight, (out, in).

    Raises:
        UnsupportedGrid: the groups do not divide the columns.
    """
    grid.check_shape(shape)
    rows, columns = shape
    groups, scales = columns // grid.columns(columns), TYPES[grid.scale_dtype]
    if operator == "rows":
        return row_parts(shape, scales)
    if operator == "nbits":
        size = grid.columns(columns) * grid.bits // 8
        parts = [
            Part(suffix=CODES, type="UINT8", shape=(rows, groups, size), by_rows=True),
            Part(suffix=SCALE, type=scales, shape=(rows, groups), by_rows=True),
        ]
        packed = (groups * grid.bits + 7) // 8
        zero = Part(suffix=ZERO_POINT, type="UINT8", shape=(rows, packed), by_rows=True)
        return (*parts, *([] if grid.symmetric else [zero]))
    if operator == "blocked":
        kind = "INT4" if grid.symmetric else "UINT4"
        parts = [
            Part(suffix=CODES, type=kind, shape=(columns, rows), by_rows=False),
            Part(suffix=SCALE, type=scales, shape=(groups, rows), by_rows=False),
        ]
        zero = Part(suffix=ZERO_POINT, type=kind, shape=(groups, rows), by_rows=False)
        return (*parts, *([] if grid.symmetric else [zero]))
    parts = [
        Part(suffix=CODES, type="INT8", shape=(columns, rows), by_rows=False),
        Part(suffix=SCALE, type=scales, shape=(rows,), by_rows=True),
    ]
    of_input = [
        Part(suffix=INPUT_SCALE, type="FLOAT", shape=(), by_rows=False),
        Part(suffix=INPUT_ZERO_POINT, type="UINT8", shape=(), by_rows=False),
    ]
    return (*parts, *(of_input if operator == "static" else []))


def pack(operator: Operator, value: QuantTensor) -> list[np.ndarray[Any, Any]]:
    """The values of :func:`quantized_parts`, in their order: all of a weight, or a slab's rows.

    Raises:
        UnsupportedGrid: the value is on a grid that the operator does not compute with.
    """
    spec = value.grid.spec()
    if spec.get("family") != "uniform":
        raise UnsupportedGrid(
            f"plugin author: grid {value.grid.name} came to onnx, which stores uniform grids"
        )
    scale = _array(value.parameters["scale"])
    if operator in {"conv", "rows"}:
        return [_array(value.codes), scale]
    if operator in {"integer", "channel"}:
        return [_array(value.codes.T), scale[:, 0]]
    if operator == "static":
        of_input = (value.activation_parameters[name] for name in ("scale", "zero_point"))
        return [_array(value.codes.T), scale[:, 0], *map(_array, of_input)]
    zeros = [] if spec["symmetric"] else [_array(value.parameters["zero_point"])]
    codes = _array(value.codes)
    if operator == "blocked":
        return [_nibbles_flat(codes.T), scale.T.copy(), *(_nibbles_flat(z.T) for z in zeros)]
    if spec["symmetric"]:
        codes = codes.astype("int16") + (1 << (spec["bits"] - 1))  # the zero-point that is not said
    parts = [codes.astype("uint8"), *zeros]
    if spec["bits"] == 4:
        parts = [_nibbles(part) for part in parts]
    return [parts[0], scale, *parts[1:]]


def _array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = tensor.detach().cpu().contiguous().numpy()
    return array


def _nibbles(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Two 4-bit values to a byte along the rows, the first in the low half; a last one alone."""
    import numpy as np

    if values.shape[1] % 2:
        values = np.pad(values, ((0, 0), (0, 1)))
    low, high = values[:, ::2] & 15, values[:, 1::2] & 15
    packed: np.ndarray[Any, Any] = (low | high << 4).astype(np.uint8)
    return packed


def _nibbles_flat(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """As ONNX has tensors of 4-bit integers: two to a byte in order, whatever the rows."""
    import numpy as np

    return _nibbles(np.ascontiguousarray(values).view(np.uint8).reshape(1, -1))
