"""How far a decoded tensor may be from its source: what its grid does to a sample of its own rows.

A fixed table would be wrong for some tensor: outliers make the same grid ten times as coarse. So a
few rows are rounded to nearest on the grid itself. Methods that mind the inputs lose more of the
weight than that: GPTQ trades it for less error of the output, and was seen at 2.4 times as much
where little text was given.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from qconv.errors import QconvError

if TYPE_CHECKING:
    import torch

    from qconv.grids import Grid

#: Times the error of rounding to nearest: what any method may lose.
BEYOND_ROUNDING = 5.0

#: Rows that are rounded to find it: enough to meet outliers that one row in fifty has. Of a grid
#: whose rows share parameters, all, up to this many values.
_SAMPLE, _SHARED = 256, 1 << 24

#: Largest relative rounding error of float dtypes, half a unit in the last place.
_FLOATS = {"F64": 1e-12, "F32": 1e-7, "F16": 2.0**-10, "BF16": 2.0**-8}

#: Where the grid is not known: rounding a normal distribution to ``2^bits`` steps in groups of 32
#: to 128 leaves about ``1.6 * 2^-bits``; bits as stored count the scales, too.
_GAUSSIAN = 1.6 * 2**0.5


def sampled_rows(rows: int, columns: int, grid: Grid | None = None) -> list[int]:
    """Rows to try the grid on, spread over all."""
    shared = grid is not None and not grid.rows_independent
    if shared and rows * columns <= _SHARED:
        return list(range(rows))
    step = max(1, rows // _SAMPLE)
    return list(range(0, rows, step))[:_SAMPLE]


def float_limit(stored: str) -> float | None:
    """The largest relative error of a float type; None for what is none."""
    return _FLOATS.get(stored)


def rounding_step(values: torch.Tensor, stored: str) -> torch.Tensor:
    """What rounding to a float type changes values by at most; zero for what is none.

    That is half a unit in the last place, of the smallest normal number for what is below it.

    values: (channels,), as stored; the result too, float64
    """
    import torch

    types = {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
    }
    size = values.double().abs()
    if stored not in types:
        return torch.zeros_like(size)
    known = torch.finfo(types[stored])
    exponent = size.clamp_min(known.smallest_normal).log2().floor()
    return torch.exp2(exponent) * known.eps / 2


def far(error: float | None, limit: float | None) -> str:
    """How far a tensor is from what it may be, in words."""
    return f"relative error {error:.4g}, where its type allows {limit:.4g}"


def underflow(rows: torch.Tensor) -> float:
    """Twice the relative error of rows in float16, whose small values lose bits."""
    import torch

    size = float(rows.double().norm())
    if not size:
        return 0.0
    return 2 * float((rows.to(torch.float16).double() - rows.double()).norm()) / size


def rounding_error(grid: Grid, sample: torch.Tensor) -> float:
    """The relative error of rounding to nearest on a grid.

    sample: (rows, columns) float32, of the source
    """
    import torch

    if not bool(torch.isfinite(sample).all()) or not bool(sample.any()):
        return 1.0
    try:
        codes, parameters = grid.quantize(sample.contiguous())
    except QconvError:
        return error_of_bits(grid.bits_per_weight((sample.shape[0], sample.shape[1])))
    error = grid.decode(codes, parameters) - sample
    return math.sqrt(float((error * error).sum()) / float((sample * sample).sum())) + 1e-6


def error_of_bits(bits_per_weight: float) -> float:
    """The relative error of rounding on a grid of which only its size is known."""
    return _GAUSSIAN * math.pow(2.0, -bits_per_weight)
