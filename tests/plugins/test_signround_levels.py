"""Facts about learned rounding on grids whose codes look values up."""

from __future__ import annotations

import torch
from signround_block import TinyBlock

import qconv_signround
from qconv.grids import ColumnGrid
from qconv.tensors import QuantTensor
from qconv_signround._levels import Levels

#: FP4 (e2m1): the sign is the highest bit, so codes are not in order, and zero has two of them.
FP4 = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


class LookUp:
    """A grid of FP4 values under a scale per 32 columns, fitted to the largest magnitude."""

    name, rows_independent = "fp4_g32", True

    def columns(self, in_features):
        return 32

    def layout(self, shape):
        return {"codes": (shape, "uint8"), "scale": ((shape[0], shape[1] // 32), "float32")}

    def quantize(self, weight, importance=None):
        scale = weight.view(len(weight), -1, 32).abs().amax(-1) / 6
        steps = weight.view(len(weight), -1, 32) / scale[..., None]
        codes = (steps[..., None] - FP4).abs().argmin(-1).to(torch.uint8)
        return codes.view(weight.shape), {"scale": scale}

    def decode(self, codes, parameters):
        values = FP4[codes.long()].view(len(codes), -1, 32)
        return (values * parameters["scale"][..., None]).view(codes.shape)

    def rescaled(self, parameters, factor):
        return {"scale": parameters["scale"] * factor}

    def column(self, parameters, index):
        scale = parameters["scale"][:, index // 32]
        return ColumnGrid(
            scale=scale, offset=torch.zeros_like(scale), lowest=0, highest=15, codebook=FP4
        )


def levels(**changes) -> Levels:
    scale = torch.ones(1)
    column = {"scale": scale, "offset": scale, "lowest": 0, "highest": 15, "codebook": FP4}
    return Levels.of(ColumnGrid(**{**column, **changes}))


def test_levels_are_in_order_and_each_value_is_there_once():
    found = levels()
    assert found.values.tolist() == [-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert (found.lowest, found.highest) == (0, 14)
    assert torch.equal(FP4[found.codes], found.values)


def test_a_place_is_whole_at_a_level_and_the_nearest_place_is_the_nearest_level():
    found = levels()
    assert found.place(found.values).tolist() == list(range(15))
    values = torch.linspace(-6, 6, 977)
    nearest = found.value(found.place(values).round())
    least = (values[:, None] - FP4).abs().amin(-1)
    assert torch.allclose((values - nearest).abs(), least)


def test_beyond_the_ends_places_go_on():
    assert levels().place(torch.tensor([-8.0, 7.0])).tolist() == [-1.0, 14.5]


def test_codes_that_stand_for_themselves_are_their_own_places():
    found = levels(codebook=None, lowest=-8, highest=7)
    values = torch.tensor([-9.25, 3.5])
    assert (found.lowest, found.highest) == (-8, 7)
    assert torch.equal(found.place(values), values)
    assert found.code(torch.tensor([-8.0, 3.0]), torch.int8).tolist() == [-8, 3]


def test_it_learns_on_a_grid_of_looked_up_values():
    block, grid = TinyBlock(), LookUp()
    (spec,) = qconv_signround.qconv_methods()
    rounder = spec.load()(iterations="24")
    learned = rounder.quantize_block(block, dict.fromkeys(block.weights, grid), {})
    start = {}
    for name, weight in block.weights.items():
        codes, parameters = grid.quantize(weight)
        start[name] = QuantTensor(grid=grid, codes=codes, parameters=parameters)
    assert block.loss(learned) < 0.8 * block.loss(start)
