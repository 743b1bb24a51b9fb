"""Facts about activation grids: what a runtime makes of a linear layer's input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qconv.errors import UnsupportedGrid, UsageError
from qconv.grids import ActivationGrid

TOKEN = ActivationGrid()
TENSOR = ActivationGrid(scope="tensor")
STATIC = ActivationGrid(scope="tensor", dynamic=False)
ONNX = ActivationGrid(symmetric=False, scope="tensor")
ALL = [
    TOKEN,
    TENSOR,
    STATIC,
    ONNX,
    ActivationGrid(symmetric=False),
    ActivationGrid(bits=4),
    ActivationGrid(bits=2, symmetric=False, scope="tensor", dynamic=False),
    ActivationGrid(scope="group", group_size=8),
    ActivationGrid(symmetric=False, scope="group", group_size=8),
]
FLOAT = ActivationGrid(kind="float")
FLOATS = [
    FLOAT,
    ActivationGrid(kind="float", scope="tensor"),
    ActivationGrid(kind="float", scope="tensor", dynamic=False),
    ActivationGrid(kind="float", scope="group", group_size=8),
]


def rows(seed: int = 0) -> torch.Tensor:
    return torch.randn(5, 24, generator=torch.Generator().manual_seed(seed)) + 0.3


@pytest.mark.parametrize("grid", ALL + FLOATS, ids=lambda grid: grid.name)
def test_a_spec_gives_the_grid_back(grid):
    assert ActivationGrid.from_spec(grid.spec()) == grid


def test_names_tell_grids_apart():
    assert len({grid.name for grid in ALL + FLOATS}) == len(ALL + FLOATS)
    assert (FLOAT.name, FLOATS[3].name) == ("fp8_token", "fp8_g8")
    assert (TOKEN.name, STATIC.name) == ("int8_token", "int8_tensor_static")


@pytest.mark.parametrize("grid", ALL, ids=lambda grid: grid.name)
def test_values_come_back_within_half_a_step(grid):
    x = rows()
    parameters = grid.fit(x)
    error = (grid.fake_quantize(x, parameters) - x).abs()
    # Zero-points are whole numbers, which may push the farther end out by half a step.
    scale = parameters["scale"]
    scale = scale.repeat_interleave(8, 1) if grid.scope == "group" else scale
    assert bool((error <= scale * (0.501 if grid.symmetric else 1.001)).all())


@pytest.mark.parametrize("grid", ALL + FLOATS, ids=lambda grid: grid.name)
def test_codes_stay_in_range_and_zero_stays_zero(grid):
    x = rows()
    x[2] = 0.0
    parameters = grid.fit(x)
    codes = grid.round(x * 3, parameters)
    assert grid.lowest <= int(codes.min())
    assert int(codes.max()) <= grid.highest
    assert torch.equal(grid.fake_quantize(x, parameters)[2], torch.zeros(24))


def test_per_token_symmetric_is_absmax_over_127():
    x = rows()
    parameters = TOKEN.fit(x)
    assert parameters["scale"].shape == (5, 1)
    expected = x.numpy().__abs__().max(1, keepdims=True) / np.float32(127)
    assert np.array_equal(parameters["scale"].numpy(), expected)
    assert np.array_equal(TOKEN.round(x, parameters).numpy(), np.rint(x.numpy() / expected))


def test_ties_go_to_even_codes():
    parameters = {"scale": torch.ones(1)}
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 200.0, -200.0]])
    assert STATIC.round(x, parameters).tolist() == [[0, 2, 2, 0, -2, 127, -128]]


def test_asymmetric_follows_dynamic_quantize_linear():
    # The ONNX operator's own example: https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear
    x = torch.tensor([[0.0, 2.0, -3.0, -2.5, 1.34, 0.5]])
    parameters = ONNX.fit(x)
    assert parameters["zero_point"].tolist() == [153]
    assert parameters["scale"].item() == pytest.approx(0.0196078438)
    assert ONNX.round(x, parameters).tolist() == [[153, 255, 0, 26, 221, 179]]


def test_each_token_is_on_its_own_and_a_tensor_is_not():
    x = rows()
    louder = x.clone()
    louder[0] *= 100
    assert torch.equal(TOKEN.fake_quantize(louder)[1:], TOKEN.fake_quantize(x)[1:])
    assert not torch.equal(TENSOR.fake_quantize(louder)[1:], TENSOR.fake_quantize(x)[1:])


def test_static_parameters_come_from_calibration():
    x = rows()
    parameters = STATIC.fit_range(x.amin(0), x.amax(0))
    assert parameters.keys() == STATIC.layout().keys() == {"scale"}
    assert parameters["scale"].shape == STATIC.layout()["scale"][0]
    assert torch.equal(parameters["scale"], STATIC.fit(x)["scale"])
    assert TOKEN.fit_range(x.amin(0), x.amax(0)) == TOKEN.layout() == {}


def test_extreme_inputs_keep_scales_positive_and_finite():
    large = torch.tensor([[3e38, -1e38] * 4])
    small = torch.tensor([[1e-45, 0.0] * 4])
    for grid in ALL:
        for x in (large, small, torch.zeros(1, 8)):
            scale = grid.fit(x)["scale"]
            assert 0 < float(scale) < float("inf")
            assert bool(torch.isfinite(grid.fake_quantize(x)).all())


def test_inputs_are_not_modified():
    x = rows()
    TOKEN.fake_quantize(x)
    assert torch.equal(x, rows())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value):
    x = rows()
    x[3, 4] = value
    with pytest.raises(UnsupportedGrid, match="int8_token: the input has values that are not fin"):
        TOKEN.fit(x)
    with pytest.raises(UnsupportedGrid, match="repeat the calibration without"):
        STATIC.fit_range(x.amin(0), x.amax(0))


@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
def test_a_static_zero_point_serves_values_of_one_sign(shift):
    grid, x = ActivationGrid(symmetric=False, scope="tensor", dynamic=False), rows() + shift
    parameters = grid.fit_range(x.amin(0), x.amax(0))
    assert {name: tuple(value.shape) for name, value in parameters.items()} == {
        name: shape for name, (shape, _) in grid.layout().items()
    }
    assert all(torch.equal(value, grid.fit(x)[name]) for name, value in parameters.items())
    assert torch.equal(grid.decode(parameters["zero_point"][None], parameters), torch.zeros(1, 1))
    reach = max(float(x.max()), 0) - min(float(x.min()), 0)
    assert float((grid.fake_quantize(x, parameters) - x).abs().max()) <= 1.01 * reach / 255 / 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bits": 1}, "bits is 1; choose a whole number from 2 to 8"),
        ({"bits": True}, "bits is True; choose"),
        ({"symmetric": "yes"}, "symmetric is 'yes'; choose true or false"),
        ({"dynamic": 1}, "dynamic is 1; choose true or false"),
        ({"scope": "row"}, "scope is 'row'; choose token or tensor or group"),
        ({"dynamic": False}, "a scale per token cannot be static"),
        ({"group": 3}, "options are bits, symmetric, scope, dynamic, kind, group_size"),
        ({"kind": "fp8"}, "kind is 'fp8'; choose int or float"),
        ({"kind": "float", "bits": 4}, "a float has 8 bits and no zero-point, but bits is 4"),
        ({"kind": "float", "symmetric": False}, "and symmetric False; leave them out or set kind"),
        ({"scope": "group"}, "scope is 'group' and group_size None; scope 'group' needs"),
        ({"group_size": 8}, "scope is 'token' and group_size 8; .* the others take none"),
        ({"scope": "group", "group_size": 0}, "group_size is 0; choose a positive number"),
        ({"scope": "group", "group_size": 8, "dynamic": False}, "scale per group cannot be static"),
    ],
)
def test_odd_options_are_refused(options, text):
    with pytest.raises(UsageError, match=text):
        ActivationGrid.from_spec(options)


# --- floats and groups ----------------------------------------------------------------------------


def test_a_float_is_the_nearest_fp8_value_under_absmax_over_448():
    x = rows()
    scale = x.abs().amax(1, keepdim=True) / torch.tensor(448.0)
    parameters = FLOAT.fit(x)
    assert torch.equal(parameters["scale"], scale)
    codes = FLOAT.round(x, parameters)
    assert codes.dtype == torch.uint8
    assert torch.equal(
        codes, (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    )
    assert torch.equal(
        FLOAT.decode(codes, parameters), codes.view(torch.float8_e4m3fn).float() * scale
    )


@pytest.mark.parametrize("grid", FLOATS, ids=lambda grid: grid.name)
def test_floats_come_back_within_a_sixteenth(grid):
    x = rows()
    error = (grid.fake_quantize(x) - x).abs()
    # Half a step of three bits of mantissa; below 2**-6 steps are 2**-9.
    assert bool((error <= x.abs() / 16 + x.abs().max() / 448 * 2**-10).all())


@pytest.mark.parametrize("grid", FLOATS, ids=lambda grid: grid.name)
def test_float_codes_are_never_nan(grid):
    x = rows()
    codes = grid.round(x * 1e6, grid.fit(x))
    assert not ((codes & 0x7F) == 0x7F).any()
    large, small = torch.full((1, 8), 3e38), torch.full((1, 8), 1e-45)
    for extreme in (large, -large, small, 0 * small):
        assert bool(torch.isfinite(grid.fake_quantize(extreme)).all())


def test_static_floats_come_from_calibration():
    grid, x = FLOATS[2], rows()
    parameters = grid.fit_range(x.amin(0), x.amax(0))
    assert parameters["scale"].shape == grid.layout()["scale"][0] == (1,)
    assert torch.equal(parameters["scale"], grid.fit(x)["scale"])


@pytest.mark.parametrize("kind", ["int", "float"])
def test_a_group_is_a_token_of_its_own(kind):
    grid = ActivationGrid(kind=kind, scope="group", group_size=8)
    token = ActivationGrid(kind=kind)
    x = rows()
    parameters = grid.fit(x)
    assert parameters["scale"].shape == (5, 3)
    alone = torch.cat([token.fake_quantize(part) for part in x.split(8, dim=1)], dim=1)
    assert torch.equal(grid.fake_quantize(x), alone)
    assert grid.fit_range(x.amin(0), x.amax(0)) == grid.layout() == {}


def test_groups_must_divide_the_input():
    grid = ActivationGrid(kind="float", scope="group", group_size=7)
    with pytest.raises(
        UnsupportedGrid, match="fp8_g7: an input of 24 columns is not a multiple of"
    ):
        grid.fit(rows())
