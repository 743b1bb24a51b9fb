"""compressed-tensors ``pack-quantized``: codes packed along each row.

``weight_packed`` int32 (out, in * bits / 32), ``weight_scale`` (out, groups) and ``weight_shape``
int64 (2,); with zero-points ``weight_zero_point`` int32 (out * bits / 32, groups), packed along the
rows of the weight. Codes and zero-points are stored with the lowest as 0. Read in
compressed-tensors 0.20, ``compressors/pack_quantized``; since 0.19 codes of any bits lie densely.
"""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING

from qconv_safetensors._part import STORED_DTYPES, Part

from ._bits import pack_rows, packed_words
from ._codes import unsigned_codes
from ._integers import uniform

if TYPE_CHECKING:
    import torch

    from qconv.grids import ActivationGrid, Grid
    from qconv.tensors import QuantTensor

_LAYOUT = "compressed-tensors pack-quantized"


def parts(
    name: str,
    shape: tuple[int, int],
    grid: Grid,
    activation: ActivationGrid | None,  # noqa: ARG001 -- dynamic: nothing of it is stored
    dtype: str,  # noqa: ARG001
) -> tuple[Part, ...]:
    """``weight_packed``, ``weight_scale``, ``weight_shape``, and ``weight_zero_point`` if any."""
    integers = uniform(_LAYOUT, name, grid)
    rows, columns = shape
    groups = columns // integers.columns(columns)
    found = [
        Part(
            suffix="weight_packed",
            dtype="I32",
            shape=(rows, packed_words(columns, integers.bits)),
            by_rows=True,
        ),
        Part(
            suffix="weight_scale",
            dtype=STORED_DTYPES[integers.scale_dtype],
            shape=(rows, groups),
            by_rows=True,
        ),
        Part(
            suffix="weight_shape",
            dtype="I64",
            shape=(2,),
            by_rows=False,
            constant=b"".join(size.to_bytes(8, "little") for size in shape),
        ),
    ]
    if not integers.symmetric:
        found.append(_zero_points(rows, groups, integers.bits))
    return tuple(found)


def _zero_points(rows: int, groups: int, bits: int) -> Part:
    """Packed along the rows: so many as fill whole words can be written apart from others."""
    together = 32 // gcd(32, bits)
    by_rows = rows % together == 0 and groups * bits % 8 == 0
    return Part(
        suffix="weight_zero_point",
        dtype="I32",
        shape=(packed_words(rows, bits), groups),
        by_rows=by_rows,
        rows_together=together if by_rows else 1,
    )


def pack(name: str, value: QuantTensor, dtype: str) -> list[torch.Tensor]:  # noqa: ARG001
    """Packed codes, scales, and packed zero-points if there are any."""
    integers = uniform(_LAYOUT, name, value.grid)
    codes = pack_rows(unsigned_codes(value, integers), integers.bits)
    packed = [codes, value.parameters["scale"].cpu().contiguous()]
    if not integers.symmetric:
        zero = value.parameters["zero_point"].cpu().t().contiguous()  # (groups, out)
        packed.append(pack_rows(zero, integers.bits).t().contiguous())
    return packed
