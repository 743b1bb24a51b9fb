"""compressed-tensors ``int-quantized``: 8-bit codes as they are, for kernels with 8-bit inputs.

``weight`` int8 (out, in), ``weight_scale`` (out, 1). Inputs are quantized as they come, so nothing
of them is stored. Read in compressed-tensors 0.20, ``compressors/naive_quantized``, and vLLM 0.32,
``schemes/compressed_tensors_w8a8_int8.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconv.errors import UnsupportedGrid
from qconv_safetensors._part import STORED_DTYPES, Part

from ._integers import uniform

if TYPE_CHECKING:
    import torch

    from qconv.grids import ActivationGrid, Grid, UniformGrid
    from qconv.tensors import QuantTensor

_LAYOUT = "compressed-tensors int-quantized"


def parts(
    name: str,
    shape: tuple[int, int],
    grid: Grid,
    activation: ActivationGrid | None,  # noqa: ARG001 -- dynamic: nothing of it is stored
    dtype: str,  # noqa: ARG001
) -> tuple[Part, ...]:
    """``weight`` and ``weight_scale``."""
    integers = _eight_bits(name, grid)
    return (
        Part(suffix="weight", dtype="I8", shape=shape, by_rows=True),
        Part(
            suffix="weight_scale",
            dtype=STORED_DTYPES[integers.scale_dtype],
            shape=(shape[0], 1),
            by_rows=True,
        ),
    )


def pack(name: str, value: QuantTensor, dtype: str) -> list[torch.Tensor]:  # noqa: ARG001
    """Codes and scales as they are."""
    _eight_bits(name, value.grid)
    return [value.codes.cpu().contiguous(), value.parameters["scale"].cpu().contiguous()]


def _eight_bits(name: str, grid: Grid) -> UniformGrid:
    integers = uniform(_LAYOUT, name, grid)
    if integers.bits != 8 or not integers.symmetric or integers.group_size != "channel":
        raise UnsupportedGrid(
            f"tensor {name!r}: {_LAYOUT} holds 8-bit codes without zero-points and one scale per "
            f"channel, not grid {grid.name}; use activations=none"
        )
    return integers
