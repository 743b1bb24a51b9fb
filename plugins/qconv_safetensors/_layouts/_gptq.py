"""GPTQ, v1 and v2: codes packed along the inputs, so stored transposed.

``qweight`` int32 (in * bits / 32, out); ``qzeros`` int32 (groups, out * bits / 32), packed along
the outputs; ``scales`` float16 (groups, out); ``g_idx`` int32 (in,), the group of every input, here
always in order. ``value = scale * (code - zero)``. v1 stores each zero-point less one; v2 as it is.
Read in GPTQModel 7.7, ``nn_modules/qlinear``, and vLLM 0.32, ``quantization/auto_gptq.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconv.errors import UnsupportedGrid
from qconv_safetensors._part import Part

from ._bits import pack_rows, packed_words
from ._codes import unsigned_codes, zero_points
from ._integers import need_whole_words, uniform

if TYPE_CHECKING:
    import torch

    from qconv.grids import ActivationGrid, Grid, UniformGrid
    from qconv.tensors import QuantTensor


def parts(
    name: str,
    shape: tuple[int, int],
    grid: Grid,
    activation: ActivationGrid | None,  # noqa: ARG001 -- its runtimes quantize no inputs
    dtype: str,  # noqa: ARG001
) -> tuple[Part, ...]:
    """``qweight``, ``qzeros``, ``scales`` and ``g_idx``."""
    integers = _half_scales(name, grid)
    rows, columns = shape
    need_whole_words("GPTQ", name, "columns", columns, integers.bits)
    need_whole_words("GPTQ", name, "rows", rows, integers.bits)
    groups = columns // integers.columns(columns)
    stored = (
        ("qweight", "I32", (packed_words(columns, integers.bits), rows)),
        ("qzeros", "I32", (groups, packed_words(rows, integers.bits))),
        ("scales", "F16", (groups, rows)),
        ("g_idx", "I32", (columns,)),
    )
    return tuple(
        Part(suffix=suffix, dtype=dtype, shape=shape, by_rows=False)
        for suffix, dtype, shape in stored
    )


def pack_v1(name: str, value: QuantTensor, dtype: str) -> list[torch.Tensor]:  # noqa: ARG001
    """The four parts, zero-points less one.

    Raises:
        UnsupportedGrid: a zero-point is 0, which v1 cannot say, below codes up to the highest.
    """
    grid = _half_scales(name, value.grid)
    codes, zero = _above_zero(name, grid, unsigned_codes(value, grid), zero_points(value, grid))
    return _pack(value, grid, codes, zero - 1)


def pack_v2(name: str, value: QuantTensor, dtype: str) -> list[torch.Tensor]:  # noqa: ARG001
    """The four parts, zero-points as they are."""
    grid = _half_scales(name, value.grid)
    return _pack(value, grid, unsigned_codes(value, grid), zero_points(value, grid))


def _above_zero(
    name: str, grid: UniformGrid, codes: torch.Tensor, zero: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same values with no zero-point 0: such groups move up by one, codes and all."""
    moved = zero == 0
    if not bool(moved.any()):
        return codes, zero
    grouped = codes.view(*zero.shape, -1)  # (out, groups, columns of a group)
    stuck = int((moved & (grouped.amax(2) == (1 << grid.bits) - 1)).sum())
    if stuck:
        raise UnsupportedGrid(
            f"tensor {name!r}: {stuck} groups have zero-point 0 and use all codes, but GPTQ v1 "
            "stores zero-points less one and cannot say it; use safetensors:gptq_v2 or int4"
        )
    return (grouped + moved[..., None]).view(codes.shape), zero + moved


def _pack(
    value: QuantTensor, grid: UniformGrid, codes: torch.Tensor, zero: torch.Tensor
) -> list[torch.Tensor]:
    """codes: (out, in) uint8; zero: (out, groups) uint8, as stored."""
    import torch

    columns = value.shape[1]
    # GPTQ's words down a column are the words along a row of the dense packing, turned.
    qweight = pack_rows(codes, grid.bits).t().contiguous()
    qzeros = pack_rows(zero.t().contiguous(), grid.bits)
    scales = value.parameters["scale"].cpu().t().contiguous()
    g_idx = torch.arange(columns, dtype=torch.int32) // grid.columns(columns)
    return [qweight, qzeros, scales, g_idx]


def _half_scales(name: str, grid: Grid) -> UniformGrid:
    integers = uniform("GPTQ", name, grid)
    if integers.scale_dtype != "float16":
        raise UnsupportedGrid(
            f"tensor {name!r}: GPTQ stores scales in float16, not {integers.scale_dtype}; "
            "choose safetensors:int4"
        )
    return integers
