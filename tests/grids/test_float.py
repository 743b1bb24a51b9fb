"""Facts about float grids: what FP8 E4M3 holds, how scales are fitted, what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from qconv.errors import UnsupportedGrid, UsageError
from qconv.grids import FloatGrid, Grid, UniformGrid, _e4m3, _float_fit, grid_from_spec
from qconv.kernels import floats as kernels
from qconv.testing import check_grid

GRIDS = [
    FloatGrid(scope="tensor"),
    FloatGrid(scope="channel"),
    FloatGrid(scope="channel", scale_dtype="bfloat16", search="search"),
    FloatGrid(scope="block"),
    FloatGrid(scope="block", block=(32, 64), search="search"),
    FloatGrid(scope="block", block=(30, 50), scale_dtype="float16"),
    FloatGrid(scope="tensor", search="search"),
]
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.name}_{grid.search}")
ROWS, COLUMNS = 70, 192


def gaussian(rows: int = ROWS, columns: int = COLUMNS, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


def some_importance(seed: int = 1) -> torch.Tensor:
    return torch.randn(COLUMNS, generator=torch.Generator().manual_seed(seed)).exp() ** 2


def spread(grid: FloatGrid, scale: torch.Tensor) -> torch.Tensor:
    """The scale of every weight of a (ROWS, COLUMNS) matrix, the slow way."""
    height, width = grid.block or ((ROWS if grid.scope == "tensor" else 1), COLUMNS)
    rows = [[float(scale[r // height, c // width]) for c in range(COLUMNS)] for r in range(ROWS)]
    return torch.tensor(rows)


# --- the values -----------------------------------------------------------------------------------


def test_codes_are_the_bit_patterns_of_the_standard():
    # S.EEEE.MMM, bias 7: https://arxiv.org/abs/2209.05433, table 1
    found = _e4m3.decode(
        torch.tensor([0x00, 0x01, 0x07, 0x08, 0x38, 0x39, 0x7E, 0x80, 0xFE]).byte()
    )
    expected = [0, 2**-9, 7 * 2**-9, 2**-6, 1, 1.125, 448, -0.0, -448]
    assert found.tolist() == expected


def test_every_value_keeps_its_code():
    codes = torch.arange(255, dtype=torch.uint8)
    codes = codes[codes != _e4m3.NAN]
    assert torch.equal(_e4m3.encode(_e4m3.decode(codes)), codes)


def test_ties_go_to_even_and_what_is_too_large_saturates():
    halfway = torch.tensor([1.0625, 1.1875, 2**-10, 3 * 2**-10, 449, 1e30, -1e30, -464.0])
    assert _e4m3.decode(_e4m3.encode(halfway)).tolist() == [
        1, 1.25, 0, 2**-8, 448, 448, -448, -448,
    ]  # fmt: skip


def test_the_codebook_is_the_values_by_code_and_holds_no_nan():
    book = _e4m3.codebook(torch.device("cpu"))
    assert book.shape == (255,)
    assert torch.isfinite(book).all()
    codes = torch.arange(255, dtype=torch.uint8)
    same = book == _e4m3.decode(codes)
    assert (~same).nonzero().flatten().tolist() == [_e4m3.NAN]


# --- what the grid holds --------------------------------------------------------------------------


@every_grid
def test_it_is_a_grid_and_its_spec_builds_an_equal_one(grid):
    assert isinstance(grid, Grid)
    assert grid_from_spec(grid.spec()) == grid


@every_grid
@pytest.mark.parametrize("columns", [192, 128, 100])
def test_it_keeps_to_the_plugin_api(grid, columns):
    check_grid(grid, in_features=columns)


def test_names_tell_grids_apart():
    names = [FloatGrid(scope=scope).name for scope in ("tensor", "channel", "block")]
    assert names == ["fp8_tensor", "fp8_channel", "fp8_block128x128"]
    assert FloatGrid(scope="block", block=(1, 64)).name == "fp8_block1x64"


@every_grid
def test_codes_and_scales_are_as_laid_out(grid):
    codes, parameters = grid.quantize(gaussian(), some_importance())
    layout = grid.layout((ROWS, COLUMNS))
    found = {"codes": codes, **parameters}
    assert {name: (tuple(v.shape), str(v.dtype)) for name, v in found.items()} == {
        name: (shape, f"torch.{dtype}") for name, (shape, dtype) in layout.items()
    }
    assert all(value.is_contiguous() for value in found.values())
    assert (parameters["scale"] > 0).all()


@pytest.mark.parametrize(
    ("grid", "shape"),
    [
        (FloatGrid(scope="tensor"), (1, 1)),
        (FloatGrid(scope="channel"), (70, 1)),
        (FloatGrid(scope="block"), (1, 2)),
        (FloatGrid(scope="block", block=(32, 64)), (3, 3)),
    ],
)
def test_there_is_a_scale_per_tensor_row_or_block(grid, shape):
    assert grid.layout((70, 192))["scale"] == (shape, "float32")


@every_grid
def test_a_code_is_worth_its_float_times_its_scale(grid):
    codes, parameters = grid.quantize(gaussian())
    scale = spread(grid, parameters["scale"].float())
    expected = codes.view(torch.float8_e4m3fn).float() * scale
    assert torch.equal(grid.decode(codes, parameters), expected)


@every_grid
def test_codes_are_those_of_the_weight_over_its_scale(grid):
    weight = gaussian()
    codes, parameters = grid.quantize(weight)
    steps = (weight / spread(grid, parameters["scale"].float())).clamp(-448, 448)
    assert torch.equal(codes, steps.to(torch.float8_e4m3fn).view(torch.uint8))


@every_grid
def test_column_agrees_with_decode(grid):
    codes, parameters = grid.quantize(gaussian())
    decoded = grid.decode(codes, parameters)
    for index in (0, 49, 50, 63, 64, 127, 128, 191):
        column = grid.column(parameters, index)
        assert (column.lowest, column.highest) == (0, 254)
        values = column.scale[:ROWS] * column.codebook[codes[:, index].long()]
        assert torch.equal(values, decoded[:, index])


@every_grid
@pytest.mark.parametrize("columns", [64, 100, 128, 192, 300])
def test_runs_of_columns_share_their_values_and_divide_a_row(grid, columns):
    weight = gaussian(5, columns)
    parameters, run, size = grid.fit(weight), grid.column_run(columns), grid.columns(columns)
    assert columns % size == size % run == 0
    for first in range(0, columns, run):
        own = grid.column(parameters, first).scale
        assert torch.equal(grid.column(parameters, first + run - 1).scale, own)


def test_codes_are_never_nan_far_outside_what_was_fitted():
    grid = FloatGrid(scope="channel")
    parameters = grid.fit(gaussian())
    codes = grid.round(gaussian() * 1e6, parameters)
    assert int(codes.max()) == 0xFE
    assert not ((codes & 0x7F) == 0x7F).any()


@every_grid
def test_inputs_are_not_modified(grid):
    weight, importance = gaussian(), some_importance()
    codes, parameters = grid.quantize(weight, importance)
    kept = codes.clone(), parameters["scale"].clone()
    grid.decode(codes, parameters)
    grid.round(weight, parameters)
    assert torch.equal(weight, gaussian())
    assert torch.equal(importance, some_importance())
    assert torch.equal(codes, kept[0])
    assert torch.equal(parameters["scale"], kept[1])


@every_grid
def test_strided_and_grad_carrying_weights_quantize_like_plain_ones(grid):
    codes, parameters = grid.quantize(gaussian())
    odd = gaussian().t().contiguous().t().requires_grad_()
    other, others = grid.quantize(odd)
    assert torch.equal(codes, other)
    assert torch.equal(parameters["scale"], others["scale"])


def test_bits_per_weight_counts_scales():
    shape = (256, 512)
    assert FloatGrid(scope="channel").bits_per_weight(shape) == 8 + 32 / 512
    assert FloatGrid(scope="channel", scale_dtype="bfloat16").bits_per_weight(shape) == 8 + 16 / 512
    assert FloatGrid(scope="block").bits_per_weight(shape) == 8 + 32 / 128**2
    assert FloatGrid(scope="tensor").bits_per_weight(shape) == 8 + 32 / (256 * 512)


def test_only_rows_of_a_channel_grid_are_on_their_own():
    whole, parameters = FloatGrid(scope="channel").quantize(gaussian())
    part, own = FloatGrid(scope="channel").quantize(gaussian()[7:9])
    assert torch.equal(part, whole[7:9])
    assert torch.equal(own["scale"], parameters["scale"][7:9])
    assert [grid.rows_independent for grid in GRIDS[:4]] == [False, True, True, False]


# --- the fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["tensor", "channel", "block"])
def test_the_largest_magnitude_lands_on_448(scope):
    grid = FloatGrid(scope=scope)
    weight = gaussian()
    codes, parameters = grid.quantize(weight)
    assert float(_e4m3.decode(codes).abs().max()) == 448
    assert float(parameters["scale"].max()) == float(weight.abs().max() / torch.tensor(448.0))


def test_each_block_has_the_scale_of_its_largest_magnitude():
    grid = FloatGrid(scope="block", block=(30, 50))
    weight = gaussian()
    scale = grid.fit(weight)["scale"]
    assert scale.shape == (3, 4)
    for down in range(3):
        for across in range(4):
            block = weight[down * 30 : down * 30 + 30, across * 50 : across * 50 + 50]
            assert scale[down, across] == block.abs().max() / torch.tensor(448.0)


@every_grid
def test_zeros_decode_to_zeros_with_a_scale_of_one(grid):
    codes, parameters = grid.quantize(torch.zeros(ROWS, COLUMNS))
    assert (grid.decode(codes, parameters) == 0).all()
    assert (parameters["scale"] == 1).all()


@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("size", [1e-3, 1e-7, 1e-12, 1e-30, 1e-37])
def test_tiny_weights_get_a_scale_that_is_finite_and_not_zero(scale_dtype, size):
    for search in ("absmax", "search"):
        grid = FloatGrid(scope="channel", scale_dtype=scale_dtype, search=search)
        codes, parameters = grid.quantize(gaussian() * size)
        assert (parameters["scale"] > 0).all()
        assert torch.isfinite(1.0 / parameters["scale"].float()).all()
        assert torch.isfinite(grid.decode(codes, parameters)).all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("grid", [FloatGrid(scope=s) for s in ("tensor", "channel", "block")])
def test_searched_error_is_never_above_the_plain_one(grid, weighted):
    weight = gaussian(seed=2)
    weight[5] *= 30
    importance = some_importance() if weighted else None
    weights = torch.ones(COLUMNS) if importance is None else importance

    def error(grid):
        e = grid.decode(*grid.quantize(weight, importance)).double() - weight
        return (e.square() * weights).sum()

    assert error(dataclasses.replace(grid, search="search")) < error(grid)


def test_importance_counts_in_a_search_only():
    weight = gaussian()
    plain = FloatGrid(scope="channel")
    searched = dataclasses.replace(plain, search="search")
    assert torch.equal(plain.fit(weight, some_importance())["scale"], plain.fit(weight)["scale"])
    steered = searched.fit(weight, some_importance())["scale"]
    assert not torch.equal(steered, searched.fit(weight)["scale"])
    unseen = searched.fit(weight, torch.zeros(COLUMNS))["scale"]
    assert torch.equal(unseen, plain.fit(weight)["scale"])


@every_grid
def test_the_size_of_slabs_changes_nothing(grid, monkeypatch):
    codes, parameters = grid.quantize(gaussian(), some_importance())
    monkeypatch.setattr(_float_fit, "_CPU_SLAB", 500)
    other, others = grid.quantize(gaussian(), some_importance())
    assert torch.equal(codes, other)
    assert torch.equal(parameters["scale"], others["scale"])
    assert torch.equal(grid.decode(codes, parameters), grid.decode(other, others))


@every_grid
def test_the_number_of_threads_changes_nothing(grid):
    codes, parameters = grid.quantize(gaussian(600), some_importance())
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        other, others = grid.quantize(gaussian(600), some_importance())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(codes, other)
    assert torch.equal(parameters["scale"], others["scale"])


def test_it_errs_less_than_a_tenth_of_what_four_bits_do():
    weight = gaussian()
    fp8, int4 = (
        FloatGrid(scope="channel"),
        UniformGrid(bits=4, symmetric=True, group_size="channel"),
    )
    errors = [(grid.decode(*grid.quantize(weight)) - weight).square().sum() for grid in (fp8, int4)]
    assert errors[0] < errors[1] / 10


# --- the kernels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(70, 96, 96), (130, 37, 10), (64, 64, 64), (1, 5, 2)])
def test_compiled_sums_equal_the_reference_bit_for_bit(shape):
    rows, columns, width = shape
    generator = torch.Generator().manual_seed(columns)
    weight = torch.randn(rows, columns, generator=generator)
    weight[0, :2] = torch.tensor([1e-4, 1e30])  # below the normal values, and beyond the largest
    importance = torch.rand(columns, generator=generator)
    scale = torch.rand(3, rows, -(-columns // width), generator=generator) / 100
    arguments = weight, importance, 1.0 / scale, width
    for found, expected in zip(
        kernels.sums(*arguments), kernels.sums_reference(*arguments), strict=True
    ):
        assert torch.equal(found, expected)
    arguments = weight, importance, scale[0], width
    assert torch.equal(kernels.errors(*arguments), kernels.errors_reference(*arguments))


def test_compiled_rounding_is_exact_on_every_half_step():
    values = _e4m3.codebook(torch.device("cpu"))[:0x7F]
    halfway = (values[1:] + values[:-1]) / 2
    below = torch.nextafter(halfway, torch.tensor(0.0))
    above = torch.nextafter(halfway, torch.tensor(1e9))
    weight = torch.cat([values, halfway, below, above, -halfway, -below])[None]
    ones = torch.ones(weight.shape[1])
    # With a width of one, sum h q^2 is the square of each rounded value.
    _, square = kernels.sums(weight, ones, torch.ones(1, 1, weight.shape[1]), 1)
    expected = weight.to(torch.float8_e4m3fn).float().square()
    assert torch.equal(square[0], expected)


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid.search == "search"])
def test_the_reference_fits_the_same_scales(grid, monkeypatch):
    expected = grid.fit(gaussian(seed=4), some_importance())["scale"]
    for name in ("sums", "errors"):
        monkeypatch.setattr(kernels, name, getattr(kernels, f"{name}_reference"))
    assert torch.equal(expected, grid.fit(gaussian(seed=4), some_importance())["scale"])


# --- what it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scope": "group"}, "scope is 'group'; choose tensor or channel or block"),
        ({"scope": "block", "block": [128]}, r"block is \[128\]; choose \[rows, columns\]"),
        ({"scope": "block", "block": [0, 8]}, r"block is \[0, 8\]; choose two whole numbers fr"),
        ({"scope": "block", "block": [8, 2**60]}, "choose two whole numbers from 1 to 65536"),
        ({"scope": "channel", "block": [8, 8]}, "but scope is 'channel'; leave block out"),
        ({"scope": "tensor", "scale_dtype": "int8"}, "scale_dtype is 'int8'; choose float16 or"),
        ({"scope": "tensor", "search": "mse"}, "search is 'mse'; choose search or absmax"),
        ({"scope": "tensor", "bits": 8}, "options are scope, block, scale_dtype, search"),
    ],
)
def test_odd_options_are_refused(options, text):
    with pytest.raises(UsageError, match=text):
        grid_from_spec({"family": "float", **options})


def test_scales_beyond_their_dtype_are_refused_with_one_that_holds_them():
    grid = FloatGrid(scope="tensor", scale_dtype="float16")
    weight = gaussian()
    weight[0, 0] = 4e7
    with pytest.raises(
        UnsupportedGrid, match="needs scale 8.929e.04, but float16 ends at 6.55e.04"
    ):
        grid.quantize(weight)
    dataclasses.replace(grid, scale_dtype="bfloat16").quantize(weight)


def test_only_matrices_of_finite_values_are_taken():
    grid = FloatGrid(scope="tensor")
    with pytest.raises(UnsupportedGrid, match="tensor 'norm': shape .3,. is not .rows, columns"):
        grid.check_shape((3,), "norm")
    weight = gaussian()
    weight[3, 5] = float("nan")
    with pytest.raises(UnsupportedGrid, match="not finite, the first in row 3, column 5"):
        grid.fit(weight)
