"""Facts about uniform grids: what they hold, how they are fitted, and that both kernels agree."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qconv.errors import UnsupportedGrid, UsageError
from qconv.grids import Grid, UniformGrid, _uniform_fit, grid_from_spec
from qconv.kernels import uniform as kernels
from qconv.testing import check_grid

GRIDS = [
    UniformGrid(bits=4, symmetric=True, group_size=32),
    UniformGrid(bits=4, symmetric=False, group_size=32),
    UniformGrid(bits=2, symmetric=True, group_size=16, scale_dtype="float32"),
    UniformGrid(bits=2, symmetric=False, group_size=16, scale_dtype="bfloat16"),
    UniformGrid(bits=3, symmetric=True, narrow=True, group_size=48),
    UniformGrid(bits=8, symmetric=True, narrow=True, group_size="channel", scale_dtype="float32"),
    UniformGrid(bits=8, symmetric=False, group_size="channel"),
    UniformGrid(bits=8, symmetric=True, group_size="tensor", scale_dtype="float32"),
    UniformGrid(bits=5, symmetric=False, group_size="tensor"),
]
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.name)


def gaussian(rows: int = 70, columns: int = 96, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


def some_importance(columns: int = 96, seed: int = 1) -> torch.Tensor:
    return torch.randn(columns, generator=torch.Generator().manual_seed(seed)).exp() ** 2


def plain(grid: UniformGrid) -> UniformGrid:
    return dataclasses.replace(grid, search="absmax")


def group_errors(grid, weight, importance) -> torch.Tensor:
    """Squared error of each scale's weights, weighed as the search weighs it, in float64."""
    codes, parameters = grid.quantize(weight, importance)
    difference = weight.double() - grid.decode(codes, parameters).double()
    weighing = weight.double().square() if importance is None else importance.double()
    errors = difference.square() * weighing
    if grid.group_size == "tensor":
        return errors.sum()
    return errors.view(weight.shape[0], -1, grid.columns(weight.shape[1])).sum(-1)


# --- what the grid holds --------------------------------------------------------------------------


@every_grid
def test_it_is_a_grid_and_its_spec_builds_an_equal_one(grid):
    assert isinstance(grid, Grid)
    assert grid_from_spec(grid.spec()) == grid


@every_grid
def test_it_keeps_to_the_plugin_api_by_either_search(grid):
    check_grid(grid, in_features=96)
    check_grid(plain(grid), in_features=96)


@every_grid
def test_codes_and_parameters_are_as_laid_out(grid):
    weight = gaussian()
    codes, parameters = grid.quantize(weight, some_importance())
    found = {"codes": codes, **parameters}
    layout = grid.layout((70, 96))
    assert {name: (tuple(v.shape), str(v.dtype)) for name, v in found.items()} == {
        name: (shape, f"torch.{dtype}") for name, (shape, dtype) in layout.items()
    }
    assert all(value.is_contiguous() for value in found.values())


@every_grid
def test_codes_stay_in_range(grid):
    weight = gaussian()
    parameters = grid.fit(weight)
    codes = grid.round(weight * 100, parameters)  # far outside what was fitted
    column = grid.column(parameters, 0)
    assert codes.min() == column.lowest
    assert codes.max() == column.highest


@every_grid
def test_quantize_is_fit_then_round(grid):
    weight, importance = gaussian(), some_importance()
    codes, parameters = grid.quantize(weight, importance)
    fitted = grid.fit(weight, importance)
    assert all(torch.equal(parameters[name], fitted[name]) for name in fitted)
    assert torch.equal(codes, grid.round(weight, fitted))


@every_grid
def test_grid_values_keep_their_codes(grid):
    codes, parameters = grid.quantize(gaussian())
    assert torch.equal(grid.round(grid.decode(codes, parameters), parameters), codes)


@every_grid
def test_no_code_is_nearer_than_the_chosen_one(grid):
    weight = gaussian(8)
    codes, parameters = grid.quantize(weight)
    chosen = (grid.decode(codes, parameters).double() - weight.double()).abs()
    column = grid.column(parameters, 0)
    for code in range(column.lowest, column.highest + 1):
        value = grid.decode(torch.full_like(codes, code), parameters).double()
        assert ((value - weight.double()).abs() >= chosen * (1 - 1e-5) - 1e-9).all()


@every_grid
def test_column_agrees_with_decode(grid):
    codes, parameters = grid.quantize(gaussian())
    decoded = grid.decode(codes, parameters)
    for index in (0, 15, 16, 47, 48, 95):
        column = grid.column(parameters, index)
        values = column.scale * codes[:, index].float() + column.offset
        if grid.scale_dtype == "float32":
            torch.testing.assert_close(values, decoded[:, index], rtol=1e-6, atol=1e-9)
        else:  # products of an 11-bit scale and an 8-bit code are exact
            assert torch.equal(values, decoded[:, index])


@every_grid
def test_inputs_are_not_modified(grid):
    weight, importance = gaussian(), some_importance()
    codes, parameters = grid.quantize(weight, importance)
    kept = {name: value.clone() for name, value in parameters.items()}
    kept_codes = codes.clone()
    grid.decode(codes, parameters)
    grid.round(weight, parameters)
    assert torch.equal(weight, gaussian())
    assert torch.equal(importance, some_importance())
    assert torch.equal(codes, kept_codes)
    assert all(torch.equal(parameters[name], kept[name]) for name in kept)


def test_the_largest_magnitude_lands_on_the_lowest_code():
    grid = UniformGrid(bits=4, symmetric=True, group_size=4, search="absmax")
    weight = torch.tensor([[8.0, 1.0, -3.0, 0.0], [-8.0, 1.0, -3.0, 0.0]])
    codes, parameters = grid.quantize(weight)
    assert parameters["scale"].flatten().tolist() == [-1.0, 1.0]
    assert codes.tolist() == [[-8, -1, 3, 0], [-8, 1, -3, 0]]
    assert torch.equal(grid.decode(codes, parameters), weight)


def test_narrow_leaves_the_lowest_code_out_and_scales_positive():
    grid = UniformGrid(bits=8, symmetric=True, narrow=True, group_size="channel")
    codes, parameters = grid.quantize(-gaussian().abs())
    assert codes.min() >= -127
    assert (parameters["scale"] > 0).all()


def test_asymmetric_holds_zero_exactly_and_spans_the_range():
    grid = UniformGrid(bits=4, symmetric=False, group_size=4, search="absmax")
    weight = torch.tensor([[-5.0, 0.0, 10.0, 3.0], [15.0, 3.0, 2.0, 1.0], [-15.0, -1.0, 0.0, -3.0]])
    codes, parameters = grid.quantize(weight)
    assert parameters["zero_point"].flatten().tolist() == [5, 0, 15]
    assert torch.equal(grid.decode(codes, parameters), weight)


@every_grid
def test_zero_rows_decode_to_zero_with_a_scale_that_divides(grid):
    weight = gaussian()
    weight[3] = 0
    codes, parameters = grid.quantize(weight, some_importance())
    assert (grid.decode(codes, parameters)[3] == 0).all()
    zeros, parameters = grid.quantize(torch.zeros(5, 96))
    assert (grid.decode(zeros, parameters) == 0).all()
    assert (parameters["scale"] == 1).all()


@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("size", [1e-3, 1e-7, 1e-12, 1e-30, 1e-37])
def test_tiny_weights_get_a_scale_that_is_finite_and_not_zero(scale_dtype, size):
    grid = UniformGrid(bits=4, symmetric=True, group_size=32, scale_dtype=scale_dtype)
    weight = gaussian() * size
    codes, parameters = grid.quantize(weight)
    assert (parameters["scale"] != 0).all()
    assert torch.isfinite(1.0 / parameters["scale"].float()).all()
    assert (grid.decode(codes, parameters) - weight).abs().max() <= weight.abs().max()


def test_weights_near_the_float32_limit_fit_a_float32_scale():
    grid = UniformGrid(bits=8, symmetric=False, group_size=32, scale_dtype="float32")
    weight = gaussian().sign() * 3e38
    codes, parameters = grid.quantize(weight)
    decoded = grid.decode(codes, parameters)
    torch.testing.assert_close(decoded, weight, rtol=0.01, atol=0.0)


def test_bits_per_weight_counts_scales_and_zero_points():
    shape = (64, 256)
    assert UniformGrid(bits=4, symmetric=True, group_size=32).bits_per_weight(shape) == 4.5
    assert UniformGrid(bits=4, symmetric=False, group_size=32).bits_per_weight(shape) == 4.625
    channel = UniformGrid(bits=8, symmetric=True, group_size="channel", scale_dtype="float32")
    assert channel.bits_per_weight(shape) == 8.125
    tensor = UniformGrid(bits=8, symmetric=True, group_size="tensor", scale_dtype="float32")
    assert tensor.bits_per_weight(shape) == 8 + 32 / (64 * 256)


# --- the fit --------------------------------------------------------------------------------------


@every_grid
@pytest.mark.parametrize("weighted", [False, True])
def test_searched_error_is_never_above_the_plain_one_in_any_group(grid, weighted):
    weight = gaussian(96, seed=2)
    weight[5] *= 30
    weight[:, 7] *= 8  # an outlier channel
    importance = some_importance() if weighted else None
    searched = group_errors(grid, weight, importance)
    simple = group_errors(plain(grid), weight, importance)
    # Sums in float32 rank candidates; float64 here may see ties the other way round.
    assert (searched <= simple * (1 + 1e-5)).all()
    kept_whole = not weighted and not grid.symmetric and grid.bits <= 4
    assert kept_whole or searched.sum() < simple.sum()


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_few_bits_with_zero_points_span_the_whole_range_where_no_importance_is_known(bits):
    grid = UniformGrid(bits=bits, symmetric=False, group_size=32)
    weight = gaussian(seed=9)
    same = all(
        torch.equal(fitted, grid_fitted)
        for fitted, grid_fitted in zip(
            grid.fit(weight).values(), plain(grid).fit(weight).values(), strict=True
        )
    )
    assert same == (bits <= 4)


def test_search_cuts_the_error_of_four_bits_by_a_tenth():
    for symmetric in (True, False):
        grid = UniformGrid(bits=4, symmetric=symmetric, group_size=32)
        weight, importance = gaussian(256), some_importance()
        searched = group_errors(grid, weight, importance).sum()
        assert searched < 0.9 * group_errors(plain(grid), weight, importance).sum()


@pytest.mark.parametrize("search", ["search", "absmax"])
def test_full_range_beats_narrow_on_gaussian_weights(search):
    full = UniformGrid(bits=4, symmetric=True, group_size=32, search=search)
    narrow = dataclasses.replace(full, narrow=True)
    weight = gaussian(256)
    assert group_errors(full, weight, None).sum() < 0.95 * group_errors(narrow, weight, None).sum()


@every_grid
def test_importance_steers_the_error_to_where_it_costs_least(grid):
    weight = gaussian(seed=3)
    weight[:, ::8] *= 0.2
    importance = torch.ones(96)
    importance[::8] = 1000.0
    indifferent = grid.decode(*grid.quantize(weight)) - weight
    steered = grid.decode(*grid.quantize(weight, importance)) - weight
    assert steered[:, ::8].square().sum() < indifferent[:, ::8].square().sum()


@every_grid
def test_scaling_the_importance_by_a_power_of_two_changes_nothing(grid):
    weight, importance = gaussian(), some_importance()
    codes, parameters = grid.quantize(weight, importance)
    for factor in (2.0**-80, 2.0**100):
        other, others = grid.quantize(weight, importance * factor)
        assert torch.equal(codes, other)
        assert all(torch.equal(parameters[name], others[name]) for name in parameters)


def test_groups_without_importance_are_fitted_plainly():
    grid = UniformGrid(bits=4, symmetric=True, group_size=32)
    weight = gaussian()
    assert torch.equal(grid.fit(weight, torch.zeros(96))["scale"], plain(grid).fit(weight)["scale"])


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid.rows_independent])
def test_a_row_is_quantized_the_same_alone_and_among_others(grid):
    weight, importance = gaussian(), some_importance()
    codes, parameters = grid.quantize(weight, importance)
    for row in (0, 63, 64, 69):
        alone, own = grid.quantize(weight[row : row + 1], importance)
        assert torch.equal(alone[0], codes[row])
        assert all(torch.equal(own[name][0], parameters[name][row]) for name in own)


@every_grid
def test_the_number_of_threads_changes_nothing(grid):
    weight, importance = gaussian(300), some_importance()
    expected, parameters = grid.quantize(weight, importance)
    results = []

    def work():
        results.append(grid.quantize(weight, importance))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    for codes, found in results:
        assert torch.equal(codes, expected)
        assert all(torch.equal(found[name], parameters[name]) for name in parameters)


@every_grid
def test_strided_and_grad_carrying_weights_quantize_like_plain_ones(grid):
    weight = gaussian()
    codes, parameters = grid.quantize(weight)
    odd = weight.t().contiguous().t().requires_grad_()
    other, others = grid.quantize(odd)
    assert torch.equal(codes, other)
    assert all(torch.equal(parameters[name], others[name]) for name in parameters)


# --- the kernels ----------------------------------------------------------------------------------

SHAPES = [(96, 3, 70), (37, 1, 130), (64, 2, 64), (5, 5, 1), (272, 1, 3)]  # columns, groups, rows


def kernel_inputs(columns: int, groups: int, rows: int):
    generator = torch.Generator().manual_seed(columns)
    weight = torch.randn(columns, rows, generator=generator)
    importance = torch.rand(columns, generator=generator)
    scale = torch.randn(groups, rows, generator=generator) * 0.3
    zero = torch.randint(0, 16, (groups, rows), generator=generator).float()
    return weight, importance, scale, 1.0 / scale, -zero, 15.0 - zero


@pytest.mark.parametrize("by_magnitude", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_compiled_sums_equal_the_reference_bit_for_bit(shape, by_magnitude):
    weight, importance, scale, inverse, low, high = kernel_inputs(*shape)
    compiled = kernels.dots(weight, importance, inverse, low, high, by_magnitude=by_magnitude)
    reference = kernels.dots_reference(
        weight, importance, inverse, low, high, by_magnitude=by_magnitude
    )
    assert torch.equal(compiled[0], reference[0])
    assert torch.equal(compiled[1], reference[1])
    assert torch.equal(
        kernels.errors(weight, importance, scale, inverse, low, high, by_magnitude=by_magnitude),
        kernels.errors_reference(
            weight, importance, scale, inverse, low, high, by_magnitude=by_magnitude
        ),
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_compiled_codes_equal_the_reference(shape, dtype):
    weight, _, _, inverse, low, high = (each.t().contiguous() for each in kernel_inputs(*shape))
    zero = -low if dtype == torch.uint8 else torch.zeros_like(low)
    arguments = (weight, inverse, low, high, zero, dtype)
    assert torch.equal(kernels.codes(*arguments), kernels.codes_reference(*arguments))


@every_grid
@pytest.mark.parametrize("weighted", [False, True])
def test_the_reference_fits_the_same_codes_and_scales(grid, weighted, monkeypatch):
    weight, importance = gaussian(seed=4), some_importance() if weighted else None
    codes, parameters = grid.quantize(weight, importance)
    for name in ("dots", "errors", "codes"):
        monkeypatch.setattr(kernels, name, getattr(kernels, f"{name}_reference"))
    monkeypatch.setattr(_uniform_fit, "fit_rows", _uniform_fit.fit_rows_reference)
    monkeypatch.setattr(_uniform_fit, "is_fused", lambda *_: False)
    other, others = grid.quantize(weight, importance)
    assert torch.equal(codes, other)
    assert all(torch.equal(parameters[name], others[name]) for name in parameters)


def corners(dtype: torch.dtype) -> torch.Tensor:
    """Rows of every kind, among them more than are fitted side by side; all of them stored."""
    weight = gaussian(rows=70)
    weight[1] = 0.0
    weight[2] = -0.0
    weight[3] = weight[3].abs()
    weight[4] = -weight[4].abs()
    weight[5] *= 1e-5  # subnormal in float16
    weight[6, 7] = 6.0
    return weight.to(dtype)


@every_grid
@pytest.mark.parametrize("search", ["search", "absmax"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_as_stored_give_the_codes_of_the_reference(grid, search, dtype, monkeypatch):
    grid = dataclasses.replace(grid, search=search)
    codes, parameters = grid.quantize(corners(dtype))
    monkeypatch.setattr(_uniform_fit, "fit_rows", _uniform_fit.fit_rows_reference)
    monkeypatch.setattr(_uniform_fit, "is_fused", lambda *_: False)
    other, others = grid.quantize(corners(dtype).float())
    assert torch.equal(codes, other)
    assert all(torch.equal(parameters[name], others[name]) for name in parameters)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_fused_fit_refuses_what_is_not_finite(dtype, value):
    weight = corners(dtype)
    weight[65, 40] = value
    grid = UniformGrid(bits=4, symmetric=False, group_size=32, search="absmax")
    with pytest.raises(UnsupportedGrid, match="1 values that are not finite, the first in row 65"):
        grid.quantize(weight)


def test_the_fused_fit_refuses_what_its_scales_cannot_hold():
    weight = gaussian()
    weight[3, 4] = 3e6
    grid = UniformGrid(bits=4, symmetric=False, group_size=32, search="absmax")
    with pytest.raises(UnsupportedGrid, match="needs scale 2e.05, but float16 ends at 6.55e.04"):
        grid.quantize(weight)


def test_steps_round_half_to_even():
    weight = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 3.5]])
    ones = torch.ones(1, 1)
    found = kernels.codes(weight, ones, -8 * ones, 7 * ones, 0 * ones, torch.int8)
    assert found.tolist() == [[0, 2, 2, 0, -2, 4]]


# --- what it refuses ------------------------------------------------------------------------------


def test_a_group_size_that_does_not_divide_names_one_that_does():
    grid = UniformGrid(bits=4, symmetric=True, group_size=128)
    text = (
        "^tensor 'lm_head.weight': 1000 columns are not a multiple of group size 128; "
        "use group size 40 or skip it$"
    )
    with pytest.raises(UnsupportedGrid, match=text):
        grid.check_shape((10, 1000), "lm_head.weight")
    with pytest.raises(UnsupportedGrid, match="use group size 64 or skip it"):
        grid.check_shape((10, 576))
    with pytest.raises(UnsupportedGrid, match="use group size 'channel' or skip it"):
        grid.check_shape((10, 7))
    grid.check_shape((10, 256))


def test_sizes_only_a_hostile_file_has_are_refused_at_once():
    grid = UniformGrid(bits=4, symmetric=True, group_size=2**47)
    with pytest.raises(UnsupportedGrid, match="use group size 1024 or skip it"):
        grid.check_shape((1, 2**47 + 2**46))


@given(columns=st.integers(1, 5000), size=st.sampled_from([32, 64, 128]))
@settings(max_examples=60, deadline=None)
def test_the_size_it_names_works(columns, size):
    grid = UniformGrid(bits=4, symmetric=True, group_size=size)
    try:
        grid.check_shape((1, columns))
    except UnsupportedGrid as error:
        advice = str(error).split("use group size ")[1].split(" or")[0]
        better = "channel" if advice == "'channel'" else int(advice)
        dataclasses.replace(grid, group_size=better).check_shape((1, columns))
        assert better == "channel" or better <= size


@pytest.mark.parametrize("shape", [(0, 32), (32, 0), (32,), (2, 3, 32)])
def test_only_non_empty_matrices_are_quantized(shape):
    grid = UniformGrid(bits=4, symmetric=True, group_size=32)
    with pytest.raises(UnsupportedGrid, match="quantize linear weights only, copy this one"):
        grid.check_shape(shape)
    with pytest.raises(UnsupportedGrid, match="copy this one|grids work on 2-D float32"):
        grid.quantize(torch.zeros(shape))


@every_grid
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_with_their_place(grid, value):
    weight = gaussian()
    parameters = grid.fit(weight)
    weight[3, 5] = value
    for call in (
        lambda: grid.fit(weight),
        lambda: grid.quantize(weight),
        lambda: grid.round(weight, parameters),
    ):
        with pytest.raises(
            UnsupportedGrid, match="1 values that are not finite, the first in row 3, column 5"
        ):
            call()


def test_a_scale_beyond_its_dtype_is_refused():
    grid = UniformGrid(bits=4, symmetric=True, group_size=32)
    with pytest.raises(UnsupportedGrid, match="float16 ends at .*; use scale_dtype bfloat16"):
        grid.quantize(gaussian() * 1e8)


def test_weights_that_are_not_float32_are_refused():
    grid = UniformGrid(bits=4, symmetric=True, group_size=32)
    with pytest.raises(UnsupportedGrid, match=r"torch.bfloat16; .* call .float\(\) first"):
        grid.fit(gaussian().bfloat16())
    for search in ("search", "absmax"):
        with pytest.raises(UnsupportedGrid, match=r"torch.float64; .* call .float\(\) first"):
            dataclasses.replace(grid, search=search).quantize(gaussian().double())


def test_importance_must_fit_the_columns():
    grid = UniformGrid(bits=4, symmetric=True, group_size=32)
    with pytest.raises(UnsupportedGrid, match=r"96 columns needs \(96,\) torch.float32"):
        grid.fit(gaussian(), torch.ones(95))


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_importance_must_be_finite_and_not_negative(value):
    grid = UniformGrid(bits=4, symmetric=True, group_size=32)
    importance = some_importance()
    importance[4] = value
    with pytest.raises(UnsupportedGrid, match="it must be finite and not negative"):
        grid.fit(gaussian(), importance)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"bits": 9}, "bits is 9; choose a whole number from 2 to 8"),
        ({"bits": True}, "bits is True; choose"),
        ({"bits": "4"}, "bits is '4'; choose"),
        ({"group_size": 0}, "group_size is 0; choose a positive number, 'channel' or 'tensor'"),
        ({"group_size": "row"}, "group_size is 'row'; choose"),
        ({"symmetric": 1}, "symmetric is 1; choose true or false"),
        ({"narrow": None}, "narrow is None; choose true or false"),
        ({"scale_dtype": "float64"}, "scale_dtype is 'float64'; choose float16 or bfloat16 or"),
        ({"search": "best"}, "search is 'best'; choose search or absmax"),
        ({"symmetric": False, "narrow": True}, "narrow goes with symmetric codes only"),
        ({"colour": "red"}, "unexpected keyword argument 'colour'.*; options are bits, symmetric"),
    ],
)
def test_options_out_of_range_are_refused(change, text):
    spec = {"family": "uniform", "bits": 4, "symmetric": True, "group_size": 32}
    with pytest.raises(UsageError, match=text):
        UniformGrid.from_spec({**spec, **change})


def test_a_spec_without_its_options_is_refused():
    with pytest.raises(UsageError, match="missing .* 'group_size'"):
        UniformGrid.from_spec({"family": "uniform", "bits": 4, "symmetric": True})


def test_names_say_kind_bits_and_unit():
    assert [grid.name for grid in GRIDS[:2]] == ["int4_g32", "uint4_g32"]
    assert [grid.name for grid in GRIDS[-2:]] == ["int8_tensor", "uint5_tensor"]
    assert GRIDS[5].name == "int8_channel"
