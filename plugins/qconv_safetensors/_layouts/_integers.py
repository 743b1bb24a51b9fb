"""What the integer layouts ask of a grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconv.errors import UnsupportedGrid

if TYPE_CHECKING:
    from qconv.grids import Grid, UniformGrid


def uniform(layout: str, name: str, grid: Grid) -> UniformGrid:
    """The grid, if it is evenly spaced with scales by row.

    Raises:
        UnsupportedGrid: it is not.
    """
    from qconv.grids import UniformGrid

    if not isinstance(grid, UniformGrid) or grid.group_size == "tensor":
        raise UnsupportedGrid(
            f"tensor {name!r}: {layout} holds integers with scales per group or channel, not grid "
            f"{grid.name}; choose another format"
        )
    return grid


def need_whole_words(layout: str, name: str, what: str, count: int, bits: int) -> None:
    """Raise UnsupportedGrid unless ``count`` codes fill whole 32-bit words."""
    if count * bits % 32:
        each = 32 // _common_divisor(bits)
        raise UnsupportedGrid(
            f"tensor {name!r}: {count} {what} of {bits} bits do not fill whole 32-bit words as "
            f"{layout} needs, only multiples of {each} do; use safetensors:int4, or keep the "
            "tensor in float with indivisible=float"
        )


def _common_divisor(bits: int) -> int:
    """The largest power of two that divides ``bits``, which is what it shares with 32."""
    return bits & -bits
