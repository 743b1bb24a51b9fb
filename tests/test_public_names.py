"""The public names are what the modules say they are, no more and no less."""

from __future__ import annotations

import importlib
import types

import pytest

MODULES = (
    "qconv",
    "qconv.calibration",
    "qconv.checkpoint",
    "qconv.comparison",
    "qconv.conversion",
    "qconv.engines",
    "qconv.errors",
    "qconv.grids",
    "qconv.inspection",
    "qconv.jit",
    "qconv.memory",
    "qconv.planning",
    "qconv.plugin",
    "qconv.reports",
    "qconv.statistics",
    "qconv.tensors",
    "qconv.testing",
    "qconv.validation",
)


@pytest.mark.parametrize("name", MODULES)
def test_all_is_sorted_and_holds_what_is_there(name):
    module = importlib.import_module(name)
    assert list(module.__all__) == sorted(module.__all__)
    for public in module.__all__:
        assert getattr(module, public) is not None


@pytest.mark.parametrize("name", ["qconv.errors", "qconv.plugin"])
def test_nothing_public_is_left_out(name):
    module = importlib.import_module(name)
    own = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_")
        and isinstance(value, (type, types.FunctionType))
        and value.__module__ == name
    }
    assert own - {"Hooks"} <= set(module.__all__)
