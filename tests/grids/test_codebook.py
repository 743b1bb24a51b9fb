"""Facts about codebook grids: bitsandbytes' NF4 and FP4, its double quantization, the search."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from qconv.errors import UnsupportedGrid, UsageError
from qconv.grids import CodebookGrid, Grid, _codebook_fit, _nested, grid_from_spec
from qconv.kernels import codebook as kernels
from qconv.testing import check_grid

GOLDEN = Path(__file__).parents[1] / "golden" / "bitsandbytes.json"
GRIDS = [
    CodebookGrid(codebook=codebook, double_quant=double, search=search)
    for codebook in ("nf4", "fp4")
    for double in (False, True)
    for search in ("search", "absmax")
]
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.name}_{grid.search}")
every_codebook = pytest.mark.parametrize("codebook", ["nf4", "fp4"])
ROWS, COLUMNS = 70, 192


def gaussian(rows: int = ROWS, columns: int = COLUMNS, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


def some_importance(seed: int = 1) -> torch.Tensor:
    return torch.randn(COLUMNS, generator=torch.Generator().manual_seed(seed)).exp() ** 2


def errors(grid: CodebookGrid, weight: torch.Tensor, importance: torch.Tensor | None):
    """Weighted squared error of every block, in float64."""
    e = grid.decode(*grid.quantize(weight, importance)).double() - weight
    e = e.square() * (1.0 if importance is None else importance)
    return e.view(len(weight), -1, grid.block_size).sum(-1)


def same(left, right) -> bool:
    return torch.equal(left[0], right[0]) and all(
        torch.equal(left[1][name], right[1][name]) for name in left[1]
    )


# --- as bitsandbytes has it -----------------------------------------------------------------------


def golden() -> list[dict]:
    """What bitsandbytes made of some weights: tests/golden/make_bitsandbytes.py."""
    return json.loads(GOLDEN.read_text())["cases"]


def floats(bits: list[int], *shape: int) -> torch.Tensor:
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32).view(shape or (-1,))


@pytest.mark.parametrize("case", golden(), ids=lambda case: case["name"])
def test_codes_and_scales_are_bitsandbytes_own(case):
    weight = floats(case["weight"], *case["shape"])
    grid = CodebookGrid(codebook=case["quant_type"], block_size=case["blocksize"], search="absmax")
    codes, parameters = grid.quantize(weight)
    assert codes.tolist() == case["codes"]
    assert torch.equal(parameters["absmax"].flatten(), floats(case["absmax"]))
    assert torch.equal(grid.decode(codes, parameters).flatten(), floats(case["values"]))


@pytest.mark.parametrize("case", golden(), ids=lambda case: case["name"])
def test_doubly_quantized_scales_are_bitsandbytes_own(case):
    weight = floats(case["weight"], *case["shape"])
    grid = CodebookGrid(
        codebook=case["quant_type"],
        block_size=case["blocksize"],
        double_quant=True,
        search="absmax",
    )
    codes, parameters = grid.quantize(weight)
    assert codes.tolist() == case["codes"]
    # The mean's last bit depends on the order of summing; with theirs, all is theirs.
    offset = floats(case["nested_offset"])
    torch.testing.assert_close(parameters["nested_offset"], offset, rtol=1e-6, atol=0.0)
    absmax = floats(case["absmax"]).view(parameters["absmax"].shape)
    nested = _nested.with_offset(absmax, offset)
    assert nested["absmax"].flatten().tolist() == case["nested_codes"]
    assert torch.equal(nested["nested_absmax"], floats(case["nested_absmax"]))
    assert torch.equal(grid.decode(codes, nested).flatten(), floats(case["nested_values"]))


def test_tables_are_bitsandbytes_own():
    tables = json.loads(GOLDEN.read_text())["tables"]
    for codebook in ("nf4", "fp4"):
        grid = CodebookGrid(codebook=codebook)
        assert torch.equal(grid.table(), floats(tables[codebook]))
        assert torch.equal(grid.nested_table(), floats(tables["dynamic"]))


# --- what the grid holds --------------------------------------------------------------------------


@every_grid
def test_it_is_a_grid_and_its_spec_builds_an_equal_one(grid):
    assert isinstance(grid, Grid)
    assert grid_from_spec(grid.spec()) == grid


@every_grid
def test_it_keeps_to_the_plugin_api(grid):
    check_grid(grid)


def test_names_tell_grids_apart():
    assert CodebookGrid(codebook="nf4").name == "nf4_b64"
    assert CodebookGrid(codebook="fp4", block_size=128, double_quant=True).name == "fp4_b128_double"


@every_grid
def test_codes_and_parameters_are_as_laid_out(grid):
    codes, parameters = grid.quantize(gaussian(), some_importance())
    layout = grid.layout((ROWS, COLUMNS))
    found = {"codes": codes, **parameters}
    assert {name: (tuple(v.shape), str(v.dtype)) for name, v in found.items()} == {
        name: (shape, f"torch.{dtype}") for name, (shape, dtype) in layout.items()
    }
    assert all(value.is_contiguous() for value in found.values())


def test_double_quantization_stores_one_more_scale_per_256_blocks():
    layout = CodebookGrid(codebook="nf4", double_quant=True).layout((100, 512))
    assert layout["absmax"] == ((100, 8), "uint8")
    assert layout["nested_absmax"] == ((4,), "float32")
    assert layout["nested_offset"] == ((1,), "float32")


def test_bits_per_weight_counts_scales():
    shape = (64, 256)
    assert CodebookGrid(codebook="nf4").bits_per_weight(shape) == 4.5
    double = CodebookGrid(codebook="nf4", double_quant=True).bits_per_weight(shape)
    assert double == 4 + 8 / 64 + (32 + 32) / (64 * 256)


@every_grid
def test_a_code_is_worth_its_value_times_its_scale(grid):
    codes, parameters = grid.quantize(gaussian())
    absmax = parameters["absmax"]
    if grid.double_quant:
        nested = parameters["nested_absmax"].repeat_interleave(256)[: absmax.numel()]
        absmax = grid.nested_table()[absmax.long()] * nested.view(absmax.shape)
        absmax = absmax + parameters["nested_offset"]
    expected = grid.table()[codes.long()] * absmax.repeat_interleave(64, 1)
    assert torch.equal(grid.decode(codes, parameters), expected)


@every_grid
def test_column_agrees_with_decode(grid):
    codes, parameters = grid.quantize(gaussian())
    decoded = grid.decode(codes, parameters)
    for index in (0, 63, 64, 191):
        column = grid.column(parameters, index)
        values = column.scale * column.codebook[codes[:, index].long()] + column.offset
        assert torch.equal(values, decoded[:, index])
    assert (grid.column_run(COLUMNS), column.lowest, column.highest) == (64, 0, 15)


@every_grid
def test_grid_values_keep_their_worth(grid):
    # Codes of FP4 may change: it has zero twice.
    codes, parameters = grid.quantize(gaussian())
    decoded = grid.decode(codes, parameters)
    assert torch.equal(grid.decode(grid.round(decoded, parameters), parameters), decoded)


@every_grid
def test_zero_blocks_decode_to_nearly_nothing(grid):
    weight = gaussian()
    weight[3, 64:128] = 0
    codes, parameters = grid.quantize(weight, some_importance())
    assert (grid.decode(codes, parameters)[3, 64:128] == 0).all()
    zeros, parameters = grid.quantize(torch.zeros(5, 64))
    assert (grid.decode(zeros, parameters) == 0).all()


@every_grid
def test_inputs_are_not_modified(grid):
    weight, importance = gaussian(), some_importance()
    codes, parameters = grid.quantize(weight, importance)
    kept = codes.clone(), {name: value.clone() for name, value in parameters.items()}
    grid.decode(codes, parameters)
    grid.round(weight, parameters)
    assert torch.equal(weight, gaussian())
    assert torch.equal(importance, some_importance())
    assert same((codes, parameters), kept)


@every_grid
def test_strided_and_grad_carrying_weights_quantize_like_plain_ones(grid):
    odd = gaussian().t().contiguous().t().requires_grad_()
    assert same(grid.quantize(gaussian()), grid.quantize(odd))


@every_codebook
def test_rows_are_on_their_own_unless_doubly_quantized(codebook):
    grid = CodebookGrid(codebook=codebook)
    whole, parameters = grid.quantize(gaussian(), some_importance())
    for row in (0, 63, 64, 69):
        part, own = grid.quantize(gaussian()[row : row + 1], some_importance())
        assert torch.equal(part[0], whole[row])
        assert torch.equal(own["absmax"][0], parameters["absmax"][row])
    double = dataclasses.replace(grid, double_quant=True)
    assert (grid.rows_independent, double.rows_independent) == (True, False)
    assert (grid.columns(192), double.columns(192)) == (64, 192)


# --- the fit --------------------------------------------------------------------------------------


@every_codebook
@pytest.mark.parametrize("weighted", [False, True])
def test_searched_error_is_never_above_the_plain_one_in_any_block(codebook, weighted):
    weight = gaussian(96, seed=2)
    weight[5] *= 30
    importance = some_importance() if weighted else None
    grid = CodebookGrid(codebook=codebook)
    searched = errors(grid, weight, importance)
    plain = errors(dataclasses.replace(grid, search="absmax"), weight, importance)
    assert (searched <= plain * (1 + 1e-5)).all()
    kept_plain = not weighted and codebook == "fp4"  # where searching loses in KL divergence
    assert kept_plain or searched.sum() < 0.95 * plain.sum()


@every_codebook
def test_doubly_quantized_scales_cost_little(codebook):
    weight = gaussian(256)
    grid = CodebookGrid(codebook=codebook)
    double = errors(dataclasses.replace(grid, double_quant=True), weight, None).sum()
    assert double < 1.01 * errors(grid, weight, None).sum()


def test_blocks_without_importance_are_fitted_plainly():
    grid = CodebookGrid(codebook="nf4")
    found = grid.fit(gaussian(), torch.zeros(COLUMNS))["absmax"]
    plain = dataclasses.replace(grid, search="absmax").fit(gaussian())["absmax"]
    assert torch.equal(found, plain)


@every_grid
@pytest.mark.parametrize("size", [1e-20, 1e-37, 1e-44, 1e38])
def test_extreme_weights_stay_finite(grid, size):
    codes, parameters = grid.quantize(gaussian() * size)
    assert torch.isfinite(grid.decode(codes, parameters)).all()


@every_grid
def test_the_number_of_threads_changes_nothing(grid):
    expected = grid.quantize(gaussian(300), some_importance())
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert same(expected, grid.quantize(gaussian(300), some_importance()))
    finally:
        torch.set_num_threads(threads)


# --- the kernels ----------------------------------------------------------------------------------


@every_codebook
@pytest.mark.parametrize("shape", [(70, 96, 3), (130, 37, 1), (64, 64, 2), (1, 5, 5)])
def test_compiled_codes_equal_the_reference(codebook, shape):
    rows, columns, blocks = shape
    generator = torch.Generator().manual_seed(columns)
    weight = torch.randn(rows, columns, generator=generator)
    inverse = 1.0 / torch.randn(rows, blocks, generator=generator)
    levels = _codebook_fit.Levels.of(CodebookGrid(codebook=codebook).table())
    arguments = weight, inverse, levels.bounds, levels.codes
    assert torch.equal(kernels.codes(*arguments), kernels.codes_reference(*arguments))


@every_codebook
@pytest.mark.parametrize("shape", [(70, 96, 32), (130, 37, 37), (64, 64, 16), (1, 5, 1)])
def test_the_compiled_search_equals_the_reference(codebook, shape):
    rows, columns, size = shape
    weight = gaussian(rows, columns, seed=columns)
    weight[0] = 0.0
    importance = torch.rand(columns, generator=torch.Generator().manual_seed(columns))
    levels = _codebook_fit.Levels.of(CodebookGrid(codebook=codebook).table())
    arguments = weight, importance, size, levels
    found = _codebook_fit.searched(*arguments)
    assert torch.equal(found, _codebook_fit.searched_reference(*arguments))


def test_a_value_on_a_bound_takes_the_level_below():
    levels = _codebook_fit.Levels.of(CodebookGrid(codebook="nf4").table())
    found = kernels.codes(levels.bounds[None], torch.ones(1, 1), levels.bounds, levels.codes)
    assert found.flatten().tolist() == list(range(15))


# --- what it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"codebook": "nf3"}, "codebook is 'nf3'; choose nf4 or fp4"),
        ({"codebook": "nf4", "block_size": 48}, "block_size is 48; bitsandbytes has 32, 64, 128"),
        ({"codebook": "nf4", "block_size": True}, "block_size is True; bitsandbytes has"),
        ({"codebook": "nf4", "double_quant": 1}, "double_quant is 1; choose true or false"),
        ({"codebook": "nf4", "search": "mse"}, "search is 'mse'; choose search or absmax"),
        ({"codebook": "nf4", "bits": 4}, "options are codebook, block_size, double_quant, search"),
    ],
)
def test_odd_options_are_refused(options, text):
    with pytest.raises(UsageError, match=text):
        grid_from_spec({"family": "codebook", **options})


def test_rows_must_be_whole_blocks():
    grid = CodebookGrid(codebook="nf4", block_size=128)
    text = (
        "tensor 'q': 576 columns are not a multiple of nf4_b128's block size 128; use block size 64"
    )
    with pytest.raises(UnsupportedGrid, match=text):
        grid.check_shape((8, 576), "q")
    with pytest.raises(UnsupportedGrid, match="use int8 per channel or skip it"):
        grid.check_shape((8, 100))


def test_values_that_are_not_finite_are_refused_with_their_place():
    weight = gaussian()
    weight[3, 5] = float("inf")
    with pytest.raises(UnsupportedGrid, match="not finite, the first in row 3, column 5"):
        CodebookGrid(codebook="nf4").quantize(weight)
