"""From a grid's JSON-able description back to the grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from qconv.errors import UsageError

if TYPE_CHECKING:
    from qconv.grids._grid import Grid


def grid_from_spec(spec: Mapping[str, Any]) -> Grid:
    """The grid whose :meth:`~qconv.grids.Grid.spec` equals ``spec``.

    Raises:
        UsageError: the family or an option is unknown, missing or out of range.
    """
    from qconv.grids._block import BlockGrid
    from qconv.grids._codebook import CodebookGrid
    from qconv.grids._float import FloatGrid
    from qconv.grids._superblock import SuperBlockGrid
    from qconv.grids._uniform import UniformGrid

    make: dict[str, Callable[[Mapping[str, Any]], Grid]] = {
        "block": BlockGrid.from_spec,
        "codebook": CodebookGrid.from_spec,
        "float": FloatGrid.from_spec,
        "superblock": SuperBlockGrid.from_spec,
        "uniform": UniformGrid.from_spec,
    }
    family = spec.get("family")
    if not isinstance(family, str) or family not in make:
        *others, last = map(repr, make)
        raise UsageError(
            f"grid family is {family!r}; choose {', '.join(others)} or {last}, "
            "or update qconv if a newer version wrote this"
        )
    return make[family](spec)
