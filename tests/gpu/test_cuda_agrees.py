"""On CUDA, grids give the codes and parameters that they give on the CPU, bit for bit.

The same tests also run on the CPU, with the torch code that CUDA runs in place of the compiled
loops, and dividing as CUDA does: by a Python number, torch multiplies with its inverse there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qconv.grids import (
    BlockGrid,
    CodebookGrid,
    FloatGrid,
    Grid,
    SuperBlockGrid,
    UniformGrid,
    _codebook_fit,
    _uniform_fit,
)
from qconv.kernels import codebook, floats, reference, search, uniform

BLOCKS = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
SUPER_BLOCKS = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
GRIDS: dict[str, Grid] = {
    **{name: BlockGrid(type=name) for name in BLOCKS},
    **{name: SuperBlockGrid(type=name) for name in SUPER_BLOCKS},
    "q4_1 of ggml": BlockGrid(type="q4_1", search="ggml"),
    "q4_k of ggml": SuperBlockGrid(type="q4_k", search="ggml"),
    "int4": UniformGrid(bits=4, symmetric=True, group_size=64),
    "uint4": UniformGrid(bits=4, symmetric=False, group_size=128),
    "uint3 in bfloat16": UniformGrid(
        bits=3, symmetric=False, group_size=32, scale_dtype="bfloat16"
    ),
    "narrow int8 per channel": UniformGrid(
        bits=8, symmetric=True, group_size="channel", narrow=True, scale_dtype="float32"
    ),
    "int8 per tensor": UniformGrid(
        bits=8, symmetric=True, group_size="tensor", scale_dtype="float32"
    ),
    "nf4": CodebookGrid(codebook="nf4"),
    "fp4 double": CodebookGrid(codebook="fp4", block_size=128, double_quant=True),
    "nf4 of bitsandbytes": CodebookGrid(codebook="nf4", double_quant=True, search="absmax"),
    "fp8 per tensor": FloatGrid(scope="tensor"),
    "fp8 per channel": FloatGrid(scope="channel", search="search", scale_dtype="bfloat16"),
    "fp8 per block": FloatGrid(scope="block", block=(20, 100), search="search"),
    "uint8 by absmax": UniformGrid(
        bits=8, symmetric=False, group_size="channel", search="absmax", scale_dtype="float32"
    ),
}

every_grid = pytest.mark.parametrize("name", GRIDS)
with_and_without_importance = pytest.mark.parametrize("weighted", [False, True])
every_device = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(
                not torch.cuda.is_available(), reason="no CUDA device that torch can use"
            ),
        ),
    ],
)


class DivideAsCuda(TorchDispatchMode):
    """``tensor / number`` becomes ``tensor * (1 / number)``."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.div.Tensor and not isinstance(args[1], torch.Tensor):
            return args[0] * (1 / torch.tensor(args[1], dtype=torch.float32))
        return func(*args, **(kwargs or {}))


@contextmanager
def as_on(device: str) -> Iterator[None]:
    """Run what a CUDA device runs: on it nothing changes, on the CPU the kernels do."""
    if device == "cuda":
        yield
        return

    def by_reference(
        grid: str, weight: torch.Tensor, importance: torch.Tensor | None = None
    ) -> reference.Found:
        return reference.quantize(grid, weight, search._normal(importance, weight))

    with (
        mock.patch.object(search, "quantize", by_reference),
        mock.patch.object(uniform, "dots", uniform.dots_reference),
        mock.patch.object(uniform, "errors", uniform.errors_reference),
        mock.patch.object(uniform, "codes", uniform.codes_reference),
        mock.patch.object(_codebook_fit, "searched", _codebook_fit.searched_reference),
        mock.patch.object(codebook, "codes", codebook.codes_reference),
        mock.patch.object(floats, "sums", floats.sums_reference),
        mock.patch.object(floats, "errors", floats.errors_reference),
        mock.patch.object(_uniform_fit, "fit_rows", _uniform_fit.fit_rows_reference),
        DivideAsCuda(),
    ):
        yield


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weights() -> torch.Tensor:
    """Normal, heavy-tailed, one-signed, of mixed scale, far from zero, tiny, constant and zero."""
    normal = random(12, 768, seed=0) * 0.02
    rows = [normal, normal * random(12, 768, seed=1) ** 2, normal.abs(), -normal.abs()]
    rows += [normal * torch.exp(2 * random(12, 1, seed=2)), 1 + normal[:3], normal[:3] * 1e-6]
    rows += [torch.full((2, 768), 0.3), torch.zeros(2, 768)]
    return torch.cat(rows)


def importance(*, weighted: bool) -> torch.Tensor | None:
    """Log-normal, with inputs that calibration never saw."""
    if not weighted:
        return None
    values = torch.exp(1.5 * random(768, seed=3))
    values[100:140] = 0
    return values


def moved(tensors: Any, device: str) -> Any:
    return {name: values.to(device) for name, values in tensors.items()}


def assert_same(got: Any, expected: Any, device: str) -> None:
    assert list(got) == list(expected)
    for name, values in expected.items():
        assert got[name].device.type == device, name
        assert got[name].dtype == values.dtype, name
        assert torch.equal(got[name].cpu(), values), name


@every_device
@with_and_without_importance
@every_grid
def test_quantizing_agrees(name: str, weighted: bool, device: str) -> None:
    grid, weight, given = GRIDS[name], weights(), importance(weighted=weighted)
    codes, parameters = grid.quantize(weight, given)
    on_device = None if given is None else given.to(device)
    with as_on(device):
        got, got_parameters = grid.quantize(weight.to(device), on_device)
    assert_same({"codes": got, **got_parameters}, {"codes": codes, **parameters}, device)


@every_device
@every_grid
def test_fitting_agrees(name: str, device: str) -> None:
    grid, weight = GRIDS[name], weights()
    expected = grid.fit(weight)
    with as_on(device):
        got = grid.fit(weight.to(device))
    assert_same(got, expected, device)


@every_device
@every_grid
def test_rounding_agrees(name: str, device: str) -> None:
    grid, weight = GRIDS[name], weights()
    parameters = grid.fit(weight)
    other = weight + random(*weight.shape, seed=4) * 0.005  # as GPTQ does, round what was not fit
    expected = grid.round(other, parameters)
    with as_on(device):
        got = grid.round(other.to(device), moved(parameters, device))
    assert_same({"codes": got}, {"codes": expected}, device)


@every_device
@every_grid
def test_decoding_agrees(name: str, device: str) -> None:
    grid = GRIDS[name]
    codes, parameters = grid.quantize(weights())
    expected = grid.decode(codes, parameters)
    with as_on(device):
        got = grid.decode(codes.to(device), moved(parameters, device))
    assert_same({"values": got}, {"values": expected}, device)


@every_device
@every_grid
def test_columns_agree(name: str, device: str) -> None:
    grid = GRIDS[name]
    parameters = grid.fit(weights())
    for index in (0, 37, 767):
        expected = grid.column(parameters, index)
        with as_on(device):
            got = grid.column(moved(parameters, device), index)
        assert_same(
            {"scale": got.scale, "offset": got.offset},
            {"scale": expected.scale, "offset": expected.offset},
            device,
        )


@pytest.mark.parametrize("name", ["q4_0", "q8_0", "q3_k", "q4_k"])
def test_rows_in_slabs_give_what_all_rows_give(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weights()
    expected, expected_parameters = reference.quantize(name, weight)
    monkeypatch.setattr(search, "_SLAB", 7 * weight.shape[1] + 5)  # the last is no whole slab
    codes, parameters = search._by_slabs(name, weight, None)
    assert_same({"codes": codes, **parameters}, {"codes": expected, **expected_parameters}, "cpu")
