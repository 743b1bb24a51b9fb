"""compressed-tensors ``float-quantized``: FP8 (E4M3) codes and their scales.

``weight`` F8_E4M3 (out, in); ``weight_scale`` (out, 1) per channel, (1,) per tensor, and
(ceil(out / 128), ceil(in / 128)) per block. Read in compressed-tensors 0.20,
``compressors/naive_quantized``, and vLLM 0.32, ``schemes/compressed_tensors_w8a8_fp8.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconv.errors import UnsupportedGrid
from qconv_safetensors._part import STORED_DTYPES, Part

if TYPE_CHECKING:
    import torch

    from qconv.grids import ActivationGrid, FloatGrid, Grid
    from qconv.tensors import QuantTensor


def parts(
    name: str,
    shape: tuple[int, int],
    grid: Grid,
    activation: ActivationGrid | None,
    dtype: str,  # noqa: ARG001
) -> tuple[Part, ...]:
    """``weight`` and ``weight_scale``."""
    floats = _floats(name, grid)
    size = None if activation is None else activation.group_size
    if size is not None and shape[1] % size:
        raise UnsupportedGrid(
            f"tensor {name!r}: {shape[1]} columns are not a multiple of {size}, the inputs that "
            "runtimes quantize together; use scope=channel or activations=none"
        )
    scale, _ = floats.layout(shape)["scale"]
    return (
        Part(suffix="weight", dtype="F8_E4M3", shape=shape, by_rows=True),
        Part(
            suffix="weight_scale",
            dtype=STORED_DTYPES[floats.scale_dtype],
            shape=(1,) if floats.scope == "tensor" else scale,
            by_rows=floats.scope == "channel",
        ),
    )


def pack(name: str, value: QuantTensor, dtype: str) -> list[torch.Tensor]:  # noqa: ARG001
    """Codes and scales as they are."""
    _floats(name, value.grid)
    return [value.codes.cpu().contiguous(), value.parameters["scale"].cpu().contiguous()]


def _floats(name: str, grid: Grid) -> FloatGrid:
    from qconv.grids import FloatGrid

    if not isinstance(grid, FloatGrid):
        raise UnsupportedGrid(
            f"tensor {name!r}: compressed-tensors float-quantized holds FP8, not grid {grid.name}; "
            "choose another format"
        )
    return grid
