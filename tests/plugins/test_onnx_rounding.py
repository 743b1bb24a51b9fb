"""Inputs of ``w8a8`` are rounded as ``ActivationGrid`` has it, in onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx_sources import graph, save, values

import qconv
from qconv.grids import ActivationGrid

#: How far from the middle between two codes a value may be that takes either.
_NEAR = 127 * 2.0**-21


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    """``y = x w``, its inputs rounded by row."""
    folder = tmp_path_factory.mktemp("product")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    made = graph(nodes, {"w": values(64, 32)}, {"x": ["n", 64]}, {"y": ["n", 32]}, opset=21)
    done = qconv.convert(save(made, folder / "source"), to="onnx:w8a8", out=folder, threads=1)
    return done.artifacts[0].files[0].parent


def _rounded(artifact: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, largest magnitudes and products."""
    model = onnx.load(artifact / "model.onnx")
    kinds = {"x_codes": TensorProto.UINT8, "x_abs_max": TensorProto.FLOAT}
    for name, kind in kinds.items():
        model.graph.output.append(helper.make_tensor_value_info(name, kind, ["n", None]))
    opened = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    product, codes, largest = opened.run(["y", *kinds], {"x": x})
    return codes.astype(np.int16) - 128, largest, product


def test_codes_are_those_of_the_grid_but_in_the_middle_between_two(artifact):
    x = np.random.default_rng(0).standard_normal((4096, 64)).astype(np.float32)
    x *= np.float32(10.0) ** np.random.default_rng(1).integers(-30, 30, (4096, 1))
    codes, largest, _ = _rounded(artifact, x)
    grid = ActivationGrid()
    parameters = grid.fit(torch.tensor(x))
    expected = grid.round(torch.tensor(x), parameters).numpy()
    steps = x.astype(np.float64) / (np.abs(x).max(1, keepdims=True).astype(np.float64) / 127)
    middle = np.abs(steps - np.floor(steps) - 0.5)
    other = codes != expected
    assert np.abs(codes - expected).max() <= 1
    assert (middle[other] <= _NEAR).all()
    assert other.mean() < 1e-4
    assert np.allclose(largest / np.float32(127), parameters["scale"].numpy(), rtol=2e-7, atol=0)


@pytest.mark.parametrize("magnitude", [0.0, 1e-45, 1e-40, 1e-38])
def test_a_row_of_next_to_nothing_stays_next_to_nothing(artifact, magnitude):
    x = np.full((3, 64), 1.0, dtype=np.float32)
    x[1] = magnitude
    _, _, product = _rounded(artifact, x)
    assert np.isfinite(product).all()
    assert np.abs(product[1]).max() <= 64 * magnitude
    assert np.array_equal(product[0], product[2])
