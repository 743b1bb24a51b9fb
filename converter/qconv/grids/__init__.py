"""The grids: which values a weight may take in a format, how they are stored, and the arithmetic.

Names load when first used, so that importing this package needs neither torch nor numba.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qconv.grids._activation import ActivationGrid
    from qconv.grids._block import BlockGrid
    from qconv.grids._codebook import CodebookGrid
    from qconv.grids._float import FloatGrid
    from qconv.grids._grid import ColumnGrid, Grid, Parameters
    from qconv.grids._spec import grid_from_spec
    from qconv.grids._superblock import SuperBlockGrid
    from qconv.grids._uniform import UniformGrid

__all__ = [
    "ActivationGrid",
    "BlockGrid",
    "CodebookGrid",
    "ColumnGrid",
    "FloatGrid",
    "Grid",
    "Parameters",
    "SuperBlockGrid",
    "UniformGrid",
    "grid_from_spec",
]


def __getattr__(name: str) -> object:
    module = {
        "ActivationGrid": "_activation",
        "BlockGrid": "_block",
        "CodebookGrid": "_codebook",
        "ColumnGrid": "_grid",
        "FloatGrid": "_float",
        "Grid": "_grid",
        "Parameters": "_grid",
        "SuperBlockGrid": "_superblock",
        "UniformGrid": "_uniform",
        "grid_from_spec": "_spec",
    }.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value  # asked for again by every slab
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
