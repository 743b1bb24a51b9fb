"""Facts about learned rounding."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from signround_block import TinyBlock

import qconv_signround
from qconv.errors import Unsupported, UsageError
from qconv.grids import BlockGrid, CodebookGrid, FloatGrid, SuperBlockGrid, UniformGrid
from qconv.plugin import API_VERSION, MethodSpec
from qconv.tensors import QuantTensor
from qconv.testing import check_plugin

GRID = UniformGrid(bits=4, symmetric=True, group_size=64)
GRIDS = [
    UniformGrid(bits=3, symmetric=True, group_size=32),
    UniformGrid(bits=4, symmetric=False, group_size=64),
    UniformGrid(bits=4, symmetric=True, group_size="channel", scale_dtype="float32"),
    UniformGrid(bits=4, symmetric=False, group_size="tensor"),
    *(BlockGrid(type=type_) for type_ in ("q4_0", "q4_1", "q5_0")),
    *(SuperBlockGrid(type=type_) for type_ in ("q2_k", "q3_k", "q4_k")),
    CodebookGrid(codebook="nf4"),
    CodebookGrid(codebook="fp4", double_quant=True),
]
FLOATS = [
    FloatGrid(scope="tensor"),
    FloatGrid(scope="channel"),
    FloatGrid(scope="block"),
    FloatGrid(scope="block", block=(100, 60)),
]


def method(**options: str):
    (spec,) = qconv_signround.qconv_methods()
    return spec.load()(**options)


def quick():
    return method(iterations="24", batch="2")


def everywhere(block, grid):
    return dict.fromkeys(block.weights, grid)


def nearest(block, grid, statistics):
    made = {}
    for name, weight in block.weights.items():
        codes, parameters = grid.quantize(weight, statistics[name].importance)
        made[name] = QuantTensor(grid=grid, codes=codes, parameters=parameters)
    return made


def test_it_conforms():
    check_plugin(qconv_signround)


def test_it_offers_one_method_that_needs_calibration():
    (spec,) = qconv_signround.qconv_methods()
    assert isinstance(spec, MethodSpec)
    assert (spec.name, spec.kind, spec.calibration) == ("signround", "block_rounder", "needed")
    assert spec.api_version == API_VERSION


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)
def test_it_errs_much_less_than_round_to_nearest_on_any_grid(grid):
    block = TinyBlock()
    statistics = block.statistics()
    learned = quick().quantize_block(block, everywhere(block, grid), statistics)
    assert learned.keys() == block.weights.keys()
    assert all(tensor.grid == grid for tensor in learned.values())
    assert block.loss(learned) < 0.8 * block.loss(nearest(block, grid, statistics))


@pytest.mark.parametrize("grid", FLOATS, ids=lambda grid: grid.name)
def test_on_floats_it_is_no_worse_than_round_to_nearest(grid):
    block = TinyBlock(windows=2)
    statistics = block.statistics()
    learned = method(iterations="8", batch="1").quantize_block(
        block, everywhere(block, grid), statistics
    )
    assert block.loss(learned) <= block.loss(nearest(block, grid, statistics))


def test_a_second_call_gives_the_same_codes_and_another_block_name_others():
    block = TinyBlock()
    grids, statistics = everywhere(block, GRID), block.statistics()
    torch.manual_seed(1)
    first = quick().quantize_block(block, grids, statistics)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second = quick().quantize_block(block, grids, statistics)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(first[name].same(second[name]) for name in grids)
    other = quick().quantize_block(TinyBlock(name="layers.1"), grids, statistics)
    assert not all(first[name].same(other[name]) for name in grids)


def test_it_modifies_neither_weights_nor_statistics():
    block = TinyBlock()
    weights = {name: weight.clone() for name, weight in block.weights.items()}
    statistics = block.statistics()
    kept = {name: each.to("cpu", copy=True) for name, each in statistics.items()}
    quick().quantize_block(block, everywhere(block, GRID), statistics)
    assert all(torch.equal(block.weights[name], weights[name]) for name in weights)
    assert all(weight.grad is None for weight in block.weights.values())
    assert all(statistics[name].same(kept[name]) for name in weights)


def test_where_descent_gains_nothing_the_start_comes_out():
    block = TinyBlock()
    statistics = block.statistics()
    grids = everywhere(block, UniformGrid(bits=8, symmetric=True, group_size=64))
    wild = method(iterations="4", learning_rate="1", scale_learning_rate="1")
    found = wild.quantize_block(block, grids, statistics)
    start = nearest(block, grids["q.weight"], statistics)
    assert all(found[name].same(start[name]) for name in grids)


def test_weights_without_a_grid_stay_float_and_unknown_statistics_do():
    block = TinyBlock()
    found = quick().quantize_block(block, {"down.weight": GRID, "q.weight": GRID}, {})
    assert sorted(found) == ["down.weight", "q.weight"]
    assert quick().quantize_block(block, {}, {}) == {}


def test_a_weight_no_token_reaches_keeps_its_start():
    block = TinyBlock()
    block.weights["expert.weight"] = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    found = quick().quantize_block(block, everywhere(block, GRID), {})
    codes, parameters = GRID.quantize(block.weights["expert.weight"])
    start = QuantTensor(grid=GRID, codes=codes, parameters=parameters)
    assert found["expert.weight"].same(start)


@pytest.mark.parametrize("type_", ["q4_0", "q4_1", "q3_k", "q4_k"])
def test_rows_of_zeros_whose_scale_is_zero_stay_zero(type_):
    grid = (SuperBlockGrid if type_.endswith("k") else BlockGrid)(type=type_)
    block = TinyBlock()
    block.weights["up.weight"][7] = 0.0
    found = method(iterations="4").quantize_block(block, everywhere(block, grid), {})
    assert not found["up.weight"].dequantize()[7].any()


def test_it_works_inside_inference_mode():
    block = TinyBlock()
    with torch.no_grad():
        quiet = quick().quantize_block(block, everywhere(block, GRID), block.statistics())
    with torch.inference_mode():
        inference = quick().quantize_block(block, everywhere(block, GRID), block.statistics())
    assert all(quiet[name].same(inference[name]) for name in quiet)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": "0"}, "iterations is '0'; choose a whole number from 1 to"),
        ({"iterations": "many"}, "iterations is 'many'; choose a whole"),
        ({"batch": "1.5"}, "batch is '1.5'; choose a whole number"),
        ({"learning_rate": "2"}, "learning_rate is '2'; choose a number from 0 to 1"),
        ({"scale_learning_rate": "nan"}, "scale_learning_rate is 'nan'; choose a number from 0"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; choose a number"),
        ({"precision": "int4"}, "precision is 'int4'; choose float32, or bfloat16 on CUDA"),
        ({"iteration": "5"}, "unexpected keyword.*'iteration'.*; options are iterations, batch"),
    ],
)
def test_an_option_that_does_not_do_is_refused_with_what_does(options, message):
    with pytest.raises(UsageError, match=message):
        method(**options)


def test_bfloat16_needs_cuda():
    block = TinyBlock()
    with pytest.raises(UsageError, match="bfloat16 needs a CUDA device, the weights lie on cpu"):
        method(precision="bfloat16").quantize_block(block, everywhere(block, GRID), {})


def test_without_windows_there_is_nothing_to_learn_from():
    block = TinyBlock(name="layers.7", windows=0)
    with pytest.raises(UsageError, match="'layers.7': there is no calibration window.*longer text"):
        quick().quantize_block(block, everywhere(block, GRID), {})


def test_a_loss_that_is_not_finite_names_block_and_window():
    block = TinyBlock(name="layers.7")
    block.inputs[3][2, 5] = float("nan")
    with pytest.raises(Unsupported, match="'layers.7': the loss on calibration window 3 is nan"):
        quick().quantize_block(block, everywhere(block, GRID), {})


def test_listing_it_imports_no_torch():
    code = (
        "import sys, qconv_signround\n"
        "list(qconv_signround.qconv_methods())\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
