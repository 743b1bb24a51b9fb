"""An ``.onnx`` file as a model: its graph is kept, its products get quantized weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from onnx_sources import cnn, decoded, graph, mlp, run, save, values

import qconv

#: What inputs rounded to 8 bits move outputs by, of their size; where none are, float32 rounding.
_ROUNDED, _EXACT = 0.02, 1e-5


def _converted(path: Path, target: str, out: Path) -> Path:
    made = qconv.convert(path, to=f"onnx:{target}", out=out, threads=1)
    (graph,) = (each for each in made.artifacts[0].files if each.name == "model.onnx")
    return graph.parent


def _off(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("target", ["w8,accuracy_level=1", "int4,accuracy_level=1", "w8a8"])
def test_an_mlp_computes_with_its_decoded_weights(tmp_path, target, external):
    model = mlp()
    path = save(model, tmp_path / "mlp", external=external)
    artifact = _converted(path, target, tmp_path / "out")
    x = values(5, 64, seed=1)
    wanted = run(decoded(model, artifact), x)
    assert _off(run(artifact / "model.onnx", x), wanted) < (
        _ROUNDED if target == "w8a8" else _EXACT
    )
    assert 0.0005 < _off(wanted, run(model, x)) < 0.3


@pytest.mark.parametrize("target", ["w8,accuracy_level=1", "int4,accuracy_level=1", "w8a8"])
def test_a_cnn_computes_with_its_decoded_weights(tmp_path, target):
    model = cnn()
    artifact = _converted(save(model, tmp_path / "cnn"), target, tmp_path / "out")
    x = values(3, 3, 16, 16, seed=1)
    wanted = run(decoded(model, artifact), x)
    assert _off(run(artifact / "model.onnx", x), wanted) < (
        _ROUNDED if target == "w8a8" else _EXACT
    )
    assert 0.0005 < _off(wanted, run(model, x)) < 0.1


@pytest.mark.parametrize(
    ("target", "storage"),
    [
        ("w8,accuracy_level=1", "uint8_g32"),
        ("int4,accuracy_level=1", "uint8_g32"),
        ("w8a8", "int8_channel"),
    ],
)
def test_rows_of_a_table_are_looked_up_as_decoded(tmp_path, target, storage):
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], to=7),
        helper.make_node("Gather", ["table", "ids"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]
    weights = {"table": values(600, 64), "w": values(64, 96)}
    model = graph(nodes, weights, {"x": ["n", "s"]}, {"y": ["n", "s", 96]})
    made = qconv.convert(save(model, tmp_path / "m"), to=f"onnx:{target}", out=tmp_path, threads=1)
    plans = {each.name: each for each in made.plan.targets[0].tensors.tensors}
    assert plans["table"].storage == storage
    artifact = made.artifacts[0].files[0].parent
    x = np.array([[0, 599, 3], [7, 7, 300]], dtype=np.float32)
    wanted = run(decoded(model, artifact), x)
    found = run(artifact / "model.onnx", x)
    assert _off(found, wanted) < (_ROUNDED if target == "w8a8" else _EXACT)
    assert 0.0005 < _off(wanted, run(model, x)) < 0.3


@pytest.mark.parametrize("target", ["w8,accuracy_level=1", "w8a8"])
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_rows_have_the_shape_of_their_numbers(tmp_path, rank, target):
    """Numbers come from a Cast, of whose result the graph does not say the shape."""
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], to=7),
        helper.make_node("Gather", ["table", "ids"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    weights = {"table": values(600, 64), "w": values(64, 96)}
    sizes = [f"n{number}" for number in range(rank)]
    model = graph(nodes, weights, {"x": sizes}, {"y": None})
    artifact = _converted(save(model, tmp_path / "m"), target, tmp_path)
    x = np.arange(2**rank, dtype=np.float32).reshape((2,) * rank)
    wanted = run(decoded(model, artifact), x)
    found = run(artifact / "model.onnx", x)
    assert found.shape == wanted.shape == (*x.shape, 96)
    assert _off(found, wanted) < (_ROUNDED if target == "w8a8" else _EXACT)
