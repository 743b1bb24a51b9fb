"""AWQ's GEMM layout: 4-bit codes packed along the outputs, eight to a word, in the kernels' order.

``qweight`` int32 (in, out / 8), ``qzeros`` int32 (groups, out / 8), ``scales`` float16 (groups,
out). Nibble ``i`` of a word, lowest first, holds output ``_ORDER[i]`` of its eight. Zero-points are
stored as they are. Read in vLLM 0.32, ``quantization/auto_awq.py``, which undoes the order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconv.errors import UnsupportedGrid
from qconv_safetensors._part import Part

from ._codes import unsigned_codes, zero_points
from ._integers import need_whole_words, uniform

if TYPE_CHECKING:
    import torch

    from qconv.grids import ActivationGrid, Grid, UniformGrid
    from qconv.tensors import QuantTensor

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)

#: Outputs packed at a time: few temporaries, and rows that stay in the cache.
_SLAB = 512


def parts(
    name: str,
    shape: tuple[int, int],
    grid: Grid,
    activation: ActivationGrid | None,  # noqa: ARG001 -- its runtimes quantize no inputs
    dtype: str,  # noqa: ARG001
) -> tuple[Part, ...]:
    """``qweight``, ``qzeros`` and ``scales``."""
    integers = _four_bits(name, grid)
    rows, columns = shape
    need_whole_words("AWQ", name, "rows", rows, integers.bits)
    groups = columns // integers.columns(columns)
    stored = (
        ("qweight", "I32", (columns, rows // 8)),
        ("qzeros", "I32", (groups, rows // 8)),
        ("scales", "F16", (groups, rows)),
    )
    return tuple(
        Part(suffix=suffix, dtype=dtype, shape=shape, by_rows=False)
        for suffix, dtype, shape in stored
    )


def pack(name: str, value: QuantTensor, dtype: str) -> list[torch.Tensor]:  # noqa: ARG001
    """The three parts."""
    grid = _four_bits(name, value.grid)
    qweight = _pack_outputs(unsigned_codes(value, grid))
    qzeros = _pack_outputs(zero_points(value, grid))
    return [qweight, qzeros, value.parameters["scale"].cpu().t().contiguous()]


def _pack_outputs(codes: torch.Tensor) -> torch.Tensor:
    """(out, columns) uint8 below 16 to (columns, out / 8) int32."""
    import torch

    rows, columns = codes.shape
    words = torch.empty((columns, rows // 8), dtype=torch.int32)
    for start in range(0, rows, _SLAB):
        slab = codes[start : start + _SLAB].view(-1, 8, columns)
        nibbles = slab[:, list(_ORDER)]
        pairs = nibbles[:, 0::2] | nibbles[:, 1::2] << 4  # (words, 4, columns): bytes of a word
        whole = torch.empty((len(pairs), columns, 4), dtype=torch.uint8)
        whole.copy_(pairs.transpose(1, 2))
        words[:, start // 8 : (start + _SLAB) // 8] = whole.view(torch.int32)[..., 0].t()
    return words


def _four_bits(name: str, grid: Grid) -> UniformGrid:
    integers = uniform("AWQ", name, grid)
    if integers.bits != 4 or integers.symmetric or integers.scale_dtype != "float16":
        raise UnsupportedGrid(
            f"tensor {name!r}: AWQ holds 4-bit codes with zero-points and float16 scales, not grid "
            f"{grid.name} with {integers.scale_dtype} scales; choose safetensors:int4"
        )
    return integers
