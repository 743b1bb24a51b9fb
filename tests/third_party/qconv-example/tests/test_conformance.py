"""The plugin keeps qconv's rules."""

from __future__ import annotations

import qconv_example
from qconv_example._clip import Clip

from qconv.grids import UniformGrid
from qconv.testing import check_plugin, check_rounder


def test_the_plugin_loads() -> None:
    check_plugin(qconv_example)


def test_clip_conforms_on_uniform_grids() -> None:
    grids = [
        UniformGrid(bits=4, symmetric=True, group_size=32),
        UniformGrid(bits=8, symmetric=False, group_size="channel"),
    ]
    check_rounder(Clip, grids, streams=True)
