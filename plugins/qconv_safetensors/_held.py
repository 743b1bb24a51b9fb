"""Transcoding: the grids of a format that hold the very values a quantized tensor has.

The codes of a symmetric grid and of one with a zero-point in the middle are the same values, and
float16 holds most bfloat16 scales; whether it holds all is seen when they are re-coded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from qconv.errors import Unsupported, UnsupportedGrid

from ._options import BITS

if TYPE_CHECKING:
    from qconv.grids import Grid, UniformGrid

    from ._view import HuggingFaceView


def held_grids(
    format_name: str, view: HuggingFaceView, held: Mapping[str, Grid]
) -> Mapping[str, Grid]:
    """The grid of every held tensor, by the artifact's names.

    held: by the source's names

    Raises:
        UnsupportedGrid: the format has no grid with a tensor's values.
        Unsupported: the format wants one grid for all, and they lie on several.
    """
    named = {each.name: held[each.source] for each in view.tensors if each.source in held}
    grids = _MAKERS[format_name](format_name, named)
    if format_name in {"gptq", "gptq_v2", "awq"}:
        _need_one(format_name, grids)
    return grids


def _packed(format_name: str, held: Mapping[str, Grid]) -> dict[str, Grid]:
    return {
        name: replace(_integers(format_name, name, grid), narrow=False)
        for name, grid in held.items()
    }


def _gptq(format_name: str, held: Mapping[str, Grid]) -> dict[str, Grid]:
    """Symmetric if all are: a zero-point in the middle is what symmetric GPTQ stores anyway."""
    grids = {name: _half(format_name, name, grid) for name, grid in held.items()}
    symmetric = all(grid.symmetric for grid in grids.values())
    return {name: replace(grid, symmetric=symmetric) for name, grid in grids.items()}


def _awq(format_name: str, held: Mapping[str, Grid]) -> dict[str, Grid]:
    return {
        name: replace(_half(format_name, name, grid), symmetric=False)
        for name, grid in held.items()
    }


def _same(format_name: str, held: Mapping[str, Grid]) -> dict[str, Grid]:
    """Layouts that hold a grid of their own kind as it is, and nothing else."""
    from qconv.grids import CodebookGrid, FloatGrid

    for name, grid in held.items():
        if format_name == "fp8":
            same = isinstance(grid, FloatGrid)
        else:
            same = isinstance(grid, CodebookGrid) and grid.codebook == format_name
        if not same:
            raise _cannot(format_name, name, grid)
    return dict(held)


def _integers(format_name: str, name: str, grid: Grid) -> UniformGrid:
    """The grid, if it is of integers in rows, of bits that the format is for."""
    from qconv.grids import UniformGrid

    if (
        not isinstance(grid, UniformGrid)
        or grid.group_size == "tensor"
        or grid.bits not in BITS[format_name]
    ):
        raise _cannot(format_name, name, grid)
    return grid


def _half(format_name: str, name: str, grid: Grid) -> UniformGrid:
    """The same grid with float16 scales."""
    integers = _integers(format_name, name, grid)
    return replace(integers, scale_dtype="float16", narrow=False)


def _cannot(format_name: str, name: str, grid: Grid) -> UnsupportedGrid:
    return UnsupportedGrid(
        f"safetensors:{format_name}: tensor {name!r} lies on grid {grid.name}, whose values this "
        "format cannot hold; transcode to another format, or convert the float checkpoint"
    )


def _need_one(format_name: str, grids: Mapping[str, Grid]) -> None:
    """GPTQ and AWQ state bits and group size once for the whole model."""
    kinds: dict[str, str] = {}
    for name, grid in grids.items():
        kinds.setdefault(grid.name, name)
    if len(kinds) > 1:
        some = ", ".join(f"{grid} ({name})" for grid, name in sorted(kinds.items()))
        raise Unsupported(
            f"safetensors:{format_name}: the tensors lie on {len(kinds)} grids: {some}; this "
            "format has one for the whole model: use safetensors:int4, which has several"
        )


_MAKERS: Mapping[str, Callable[[str, Mapping[str, Grid]], dict[str, Grid]]] = {
    "int4": _packed,
    "int8": _packed,
    "gptq": _gptq,
    "gptq_v2": _gptq,
    "awq": _awq,
    "fp8": _same,
    "nf4": _same,
    "fp4": _same,
}
