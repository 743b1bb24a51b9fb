"""Facts about round to nearest."""

from __future__ import annotations

import subprocess
import sys

import torch

import qconv_rtn
from qconv.grids import CodebookGrid, FloatGrid, UniformGrid
from qconv.plugin import API_VERSION, MethodSpec
from qconv.statistics import StatisticsSum
from qconv.testing import check_rounder

GRID = UniformGrid(bits=4, symmetric=True, group_size=16)


def weight() -> torch.Tensor:
    return torch.randn(10, 32, generator=torch.Generator().manual_seed(0))


def rounder():
    (spec,) = qconv_rtn.qconv_methods()
    return spec.load()()


def test_it_offers_one_streaming_method():
    (spec,) = qconv_rtn.qconv_methods()
    assert isinstance(spec, MethodSpec)
    assert (spec.name, spec.streams, spec.api_version) == ("rtn", True, API_VERSION)


def test_it_takes_the_grids_own_fit_and_nearest_codes():
    counted = StatisticsSum(32)
    counted.add(torch.arange(64.0).view(2, 32))
    statistics = counted.total()
    tensor = rounder().quantize(weight(), GRID, statistics)
    codes, parameters = GRID.quantize(weight(), statistics.importance)
    assert tensor.grid == GRID
    assert torch.equal(tensor.codes, codes)
    assert torch.equal(tensor.parameters["scale"], parameters["scale"])


def test_it_conforms_on_every_family():
    grids = [
        GRID,
        CodebookGrid(codebook="nf4"),
        CodebookGrid(codebook="fp4", double_quant=True),
        *(FloatGrid(scope=scope, search="search") for scope in ("tensor", "channel", "block")),
    ]
    check_rounder(rounder().__class__, grids, streams=True)


def test_slabs_of_rows_give_what_the_whole_gives():
    whole = rounder().quantize(weight(), GRID)
    slabs = [rounder().quantize(slab, GRID) for slab in weight().split([3, 7])]
    assert type(whole).stack(slabs).same(whole)


def test_it_does_not_modify_the_weight():
    given = weight()
    rounder().quantize(given, GRID)
    assert torch.equal(given, weight())


def test_listing_it_imports_no_torch_and_using_it_no_transformers():
    code = (
        "import sys, qconv_rtn\n"
        "(spec,) = qconv_rtn.qconv_methods()\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
        "import torch\n"
        "from qconv.grids import UniformGrid\n"
        "grid = UniformGrid(bits=4, symmetric=True, group_size=16)\n"
        "spec.load()().quantize(torch.ones(2, 16), grid)\n"
        "assert 'transformers' not in sys.modules, 'transformers'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
