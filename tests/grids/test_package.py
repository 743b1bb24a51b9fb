"""The package of grids: what it offers, and what it costs to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

import qconv.grids as package
from qconv.errors import UsageError


def test_the_package_offers_what_it_lists_and_nothing_else():
    assert package.__all__ == sorted(package.__all__)
    assert all(getattr(package, name) is not None for name in package.__all__)
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'Sphere'"):
        package.Sphere  # noqa: B018


def test_importing_the_package_loads_no_heavy_library():
    code = (
        "import sys, qconv.grids as g; g.BlockGrid(type='q4_0').spec(); g.grid_from_spec;"
        "print([m for m in ('torch', 'numba', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_family_is_refused_with_those_there_are():
    with pytest.raises(
        UsageError,
        match="family is 'cube'; choose 'block', 'codebook', 'float', 'superblock' or 'uniform'",
    ):
        package.grid_from_spec({"family": "cube"})
