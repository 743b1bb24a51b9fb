"""Packs NF4 and FP4 as bitsandbytes serializes them, for transformers to load.

Beside ``X.weight``, two codes per byte with the first in the high half, lie the scales
(``X.weight.absmax``), the codes' values and a JSON with shape and block size. With double
quantization the scales are codes, too, with a table, scales and an offset of their own. Source:
``QuantState.as_dict`` in bitsandbytes' ``functional.py``.
"""

from __future__ import annotations

import json
from math import prod
from typing import TYPE_CHECKING

from qconv.errors import UnsupportedGrid

from ._part import Part

if TYPE_CHECKING:
    import torch

    from qconv.grids import ActivationGrid, CodebookGrid, Grid
    from qconv.tensors import QuantTensor

#: Scales that share one of their own, in bitsandbytes.
_NESTED = 256
#: Longest that Python writes a float32: ``-1.1754943508222875e-38``, and one to spare.
_FLOAT_WIDTH = 24


def parts(
    name: str,
    shape: tuple[int, int],
    grid: Grid,
    activation: ActivationGrid | None,
    dtype: str,
) -> tuple[Part, ...]:
    """See :class:`._part.PartLayout`."""
    book = _checked(name, grid)
    if activation is not None:
        raise UnsupportedGrid(
            f"tensor {name!r}: bitsandbytes computes in {dtype}, but inputs were to be quantized "
            f"as {activation.name}; plan it without"
        )
    book.check_shape(shape, name)
    by_rows = not book.double_quant
    blocks = prod(shape) // book.block_size
    scale = "F32" if by_rows else "U8"
    weight = (
        Part(suffix="weight", dtype="U8", shape=(prod(shape) // 2, 1), by_rows=by_rows),
        Part(suffix="weight.absmax", dtype=scale, shape=(blocks,), by_rows=by_rows),
        _constant("weight.quant_map", book.table()),
    )
    suffix = f"weight.quant_state.bitsandbytes__{book.codebook}"
    state = _state(shape, book, dtype, 0.0)
    if not book.double_quant:
        fixed = Part(suffix=suffix, dtype="U8", shape=(len(state),), by_rows=False, constant=state)
        return (*weight, fixed)
    nested = -(-blocks // _NESTED)
    return (
        *weight,
        Part(suffix="weight.nested_absmax", dtype="F32", shape=(nested,), by_rows=False),
        _constant("weight.nested_quant_map", book.nested_table()),
        Part(suffix=suffix, dtype="U8", shape=(len(state),), by_rows=False),
    )


def pack(name: str, value: QuantTensor, dtype: str) -> list[torch.Tensor]:
    """See :class:`._part.PartLayout`."""
    import torch

    book = _checked(name, value.grid)
    codes = value.codes.reshape(-1, 2)
    packed = (codes[:, :1] << 4) | codes[:, 1:]  # (values / 2, 1)
    absmax = value.parameters["absmax"].reshape(-1)
    if not book.double_quant:
        return [packed, absmax]
    offset = float(value.parameters["nested_offset"])
    state = _state(value.shape, book, dtype, offset)
    return [
        packed,
        absmax,
        value.parameters["nested_absmax"],
        torch.frombuffer(bytearray(state), dtype=torch.uint8),
    ]


def _state(shape: tuple[int, int], book: CodebookGrid, dtype: str, offset: float) -> bytes:
    """The JSON, as long for any offset: spaces at its end make up for short ones."""
    values: dict[str, object] = {
        "quant_type": book.codebook,
        "blocksize": book.block_size,
        "dtype": dtype,
        "shape": list(shape),
    }
    if not book.double_quant:
        return json.dumps(values).encode()
    values |= {"nested_blocksize": _NESTED, "nested_dtype": "float32", "nested_offset": offset}
    width = len(json.dumps({**values, "nested_offset": 0})) - 1 + _FLOAT_WIDTH
    return json.dumps(values).ljust(width).encode()


def _constant(suffix: str, table: torch.Tensor) -> Part:
    data = table.numpy().astype("<f4").tobytes()
    shape = (table.numel(),)
    return Part(suffix=suffix, dtype="F32", shape=shape, by_rows=False, constant=data)


def _checked(name: str, grid: Grid) -> CodebookGrid:
    from qconv.grids import CodebookGrid

    if not isinstance(grid, CodebookGrid):
        raise UnsupportedGrid(
            f"tensor {name!r}: bitsandbytes holds NF4 and FP4, not {grid.name}; "
            "plan it on one of these"
        )
    return grid
