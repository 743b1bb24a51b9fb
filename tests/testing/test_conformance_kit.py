"""The conformance kit accepts what is right and names what is wrong."""

from __future__ import annotations

import itertools
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from qconv.grids import UniformGrid
from qconv.plugin import MethodSpec, hookimpl
from qconv.tensors import QuantTensor
from qconv.testing import ConformanceError, check_grid, check_plugin, check_rounder

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from qconv.grids import Grid
    from qconv.statistics import Statistics

GRID = UniformGrid(bits=4, symmetric=True, group_size=32)
GRIDS = [
    GRID,
    UniformGrid(bits=4, symmetric=False, group_size=128, search="absmax"),
    UniformGrid(bits=8, symmetric=True, group_size="channel", narrow=True),
    UniformGrid(bits=8, symmetric=False, group_size="tensor"),
]

CALLS = itertools.count()  # what makes some of the wrong ones differ from call to call


class Nearest:
    def quantize(
        self, weight: torch.Tensor, grid: Grid, statistics: Statistics | None = None
    ) -> QuantTensor:
        importance = None if statistics is None else statistics.importance
        codes, parameters = grid.quantize(weight, importance)
        return QuantTensor(grid=grid, codes=codes, parameters=parameters)


class Scribbler(Nearest):
    def quantize(self, weight, grid, statistics=None):
        result = super().quantize(weight, grid, statistics)
        weight += 1
        return result


class Selfish(Nearest):
    def quantize(self, weight, grid, statistics=None):
        result = super().quantize(weight, grid, statistics)
        if statistics is not None:
            statistics.abs_sum.zero_()
        return result


class Fickle(Nearest):
    def quantize(self, weight, grid, statistics=None):
        return super().quantize(weight + 0.1 * (next(CALLS) % 2), grid, statistics)


class Wayward(Nearest):
    def quantize(self, weight, grid, statistics=None):
        return super().quantize(weight, GRIDS[2], statistics)


class Sociable(Nearest):
    def quantize(self, weight, grid, statistics=None):
        return super().quantize(weight.clamp(max=weight.std()), grid, statistics)


class Lost(Nearest):
    def quantize(self, weight, grid, statistics=None):
        return super().quantize(weight.flip(1), grid, statistics)


class Loose(Nearest):
    def quantize(self, weight, grid, statistics=None):
        result = super().quantize(weight, grid, statistics)
        return SimpleNamespace(grid=grid, codes=result.codes.float(), parameters=result.parameters)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_our_grids_conform(grid: UniformGrid) -> None:
    check_grid(grid)


def test_rounding_to_nearest_conforms() -> None:
    check_rounder(Nearest, GRIDS, streams=True)


@pytest.mark.parametrize(
    ("rounder", "message"),
    [
        (Scribbler, "Scribbler on int4_g32: quantize modified the weight"),
        (Selfish, "Selfish on int4_g32 with statistics: quantize modified the statistics"),
        (Fickle, "a second call on equal inputs gives other values"),
        (Wayward, "the result is on grid"),
        (Sociable, "streams is True, but rows come out different in slabs"),
        (Lost, "further from the weight than zeros are"),
        (Loose, "codes is .*float32.*, but the grid's layout declares"),
    ],
)
def test_what_a_rounder_does_wrong_is_named(rounder: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConformanceError, match=message):
        check_rounder(rounder, [GRID], streams=True)


def broken_grid(**changes: Callable[..., Any]) -> Any:
    """GRID with some of its methods replaced; each is given GRID's own one first."""

    class Broken:
        def __getattr__(self, name: str) -> Any:
            own = getattr(GRID, name)
            if name not in changes:
                return own
            return lambda *arguments: changes[name](own, *arguments)

    return Broken()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": lambda own: {**own(), "x": (1, 2)}}, r"grid int4_g32: spec\(\) must survive"),
        ({"columns": lambda own, n: 33}, r"columns\(\) must divide the row"),
        ({"bits_per_weight": lambda own, shape: 0}, "bits_per_weight must be positive"),
        ({"fit": lambda own, w, i=None: own(w.mul_(2), i)}, "fit modified the weight"),
        ({"quantize": lambda own, w, i=None: own(w.mul_(2), i)}, "quantize modified the weight"),
        ({"round": lambda own, w, p: own(w, p).short()}, "codes is .*int16"),
        ({"round": lambda own, w, p: (own(w, p) + 1).clamp(-8, 7)}, "column 0: decode"),
        (
            {"round": lambda own, w, p: own(w + next(CALLS) % 2, p)},
            "second call .* other codes",
        ),
        ({"decode": lambda own, c, p: own(c, p).half()}, "decode must give float32"),
        ({"decode": lambda own, c, p: own(c.zero_(), p)}, "decode modified the codes"),
        ({"fit": lambda own, w, i=None: {**own(w, i), "x": w}}, "layout declares"),
    ],
)
def test_what_a_grid_does_wrong_is_named(
    changes: dict[str, Callable[..., Any]], message: str
) -> None:
    with pytest.raises(ConformanceError, match=message):
        check_grid(broken_grid(**changes))


def plugin(load: Callable[[], Any]) -> ModuleType:
    module = ModuleType("my_plugin")

    @hookimpl
    def qconv_methods():
        yield MethodSpec(name="mine", summary="", api_version=1, load=load)

    module.qconv_methods = qconv_methods
    return module


def test_a_sound_plugin_conforms() -> None:
    check_plugin(plugin(lambda: Nearest))


def test_a_plugin_that_cannot_load_its_class_is_named() -> None:
    with pytest.raises(ConformanceError, match="'my_plugin'.*loading method 'mine' failed: Zero"):
        check_plugin(plugin(lambda: 1 / 0))


def test_a_plugin_without_hooks_is_named() -> None:
    with pytest.raises(ConformanceError, match="'my_plugin'.*implements no hook"):
        check_plugin(ModuleType("my_plugin"))
