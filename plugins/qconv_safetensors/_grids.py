"""The grid, the layout and the activation that a scheme puts a linear weight on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from qconv.grids import ActivationGrid, Grid

    from ._layouts import LayoutName
    from ._options import Scheme

#: Formats with a layout of their own, whose scales are float16 whatever the model computes in.
_OWN_LAYOUT: dict[str, LayoutName] = {"gptq": "gptq", "gptq_v2": "gptq_v2", "awq": "awq"}

#: Columns that share a DeepSeek-like FP8 scale, of weights and of inputs.
_BLOCK = 128


def grid_of(scheme: Scheme, dtype: str) -> Grid:
    """The grid of every linear weight.

    dtype: torch dtype name that the model computes in
    """
    scale_dtype = stored_scales(dtype)
    if scheme.format in {"nf4", "fp4"}:
        from qconv.grids import CodebookGrid

        codebook: Literal["nf4", "fp4"] = "nf4" if scheme.format == "nf4" else "fp4"
        return CodebookGrid(codebook=codebook, block_size=64, double_quant=scheme.double_quant)
    if scheme.format == "fp8":
        from qconv.grids import FloatGrid

        return FloatGrid(
            scope=scheme.scope,
            block=(_BLOCK, _BLOCK) if scheme.scope == "block" else None,
            scale_dtype=scale_dtype,
            search=scheme.search,
        )
    from qconv.grids import UniformGrid

    return UniformGrid(
        bits=scheme.bits,
        symmetric=scheme.symmetric,
        group_size=scheme.group_size,
        scale_dtype="float16" if scheme.format in _OWN_LAYOUT else scale_dtype,
        search=scheme.search,
    )


def stored_scales(dtype: str) -> Literal["float16", "bfloat16"]:
    """The dtype of compressed-tensors' scales: what runtimes load them into.

    A float32 model is run in bfloat16 by default (vLLM), so finer scales would be rounded there.
    """
    return "float16" if dtype == "float16" else "bfloat16"


def layout_name(format_name: str, activation: ActivationGrid | None) -> LayoutName:
    """The layout of a format's weights."""
    if format_name in _OWN_LAYOUT:
        return _OWN_LAYOUT[format_name]
    if format_name in {"nf4", "fp4"}:
        return "bitsandbytes"
    if format_name == "fp8":
        return "float-quantized"
    # vLLM reads weights of weight-only schemes packed, at 8 bits as well.
    return "pack-quantized" if activation is None else "int-quantized"


def activation_of(scheme: Scheme, grid: Grid) -> ActivationGrid | None:
    """How the runtime quantizes inputs: by token, and for FP8 blocks by group, as they come."""
    from qconv.grids import ActivationGrid

    if not scheme.activations:
        return None
    if scheme.format != "fp8":
        return ActivationGrid()
    if grid.spec()["scope"] == "block":
        return ActivationGrid(kind="float", scope="group", group_size=_BLOCK)
    return ActivationGrid(kind="float")
