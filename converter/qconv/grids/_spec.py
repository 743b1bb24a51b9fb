"""From a grid's JSON-able description back to the grid."""

from __future__ import annotations

from collections.abc import Mapping
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
    from qconv.grids._superblock import SuperBlockGrid
    from qconv.grids._uniform import UniformGrid

    family = spec.get("family")
    if family == "block":
        return BlockGrid.from_spec(spec)
    if family == "superblock":
        return SuperBlockGrid.from_spec(spec)
    if family == "uniform":
        return UniformGrid.from_spec(spec)
    raise UsageError(
        f"grid family is {family!r}; choose 'block', 'superblock' or 'uniform', "
        "or update qconv if a newer version wrote this"
    )
