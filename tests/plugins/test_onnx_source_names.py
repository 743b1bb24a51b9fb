"""Names that a graph has already are not given to what is added to it."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_sources import decoded, graph, run, save, values

import qconv

#: Each is what a weight ``w`` or an input ``x`` would get beside it.
_OF_WEIGHTS = (
    *("w_quantized", "w_scale", "w_zero_point", "w_product"),
    *("w_input_scale", "w_input_zero_point"),
)
_OF_INPUTS = ("x_abs", "x_abs_max", "x_parts", "x_codes")
_CONSTANTS = ("qconv_step", "qconv_last_axis", "qconv_zero_point_128")
_TARGETS = ("w8,accuracy_level=1", "w8a8", "int8_static")


def _chain(name: str) -> list:
    """Two products, between them a value called ``name``."""
    return [
        helper.make_node("MatMul", ["x", "w"], [name]),
        helper.make_node("Relu", [name], ["b"]),
        helper.make_node("MatMul", ["b", "v"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]


def _holds(model, target: str, tmp_path) -> None:
    """What is written computes what its decoded weights compute in the graph as it was."""
    x = values(5, 64, seed=1)
    np.savez(tmp_path / "samples.npz", x=x)
    made = qconv.convert(
        save(model, tmp_path / "source"),
        to=f"onnx:{target}",
        calibration=tmp_path / "samples.npz",
        out=tmp_path,
        threads=1,
    )
    artifact = made.artifacts[0].files[0].parent
    wanted = run(decoded(model, artifact), x)
    off = np.linalg.norm(run(artifact / "model.onnx", x) - wanted) / np.linalg.norm(wanted)
    assert off < (0.03 if target in {"w8a8", "int8_static"} else 1e-5)
    assert np.linalg.norm(wanted - run(model, x)) < 0.3 * np.linalg.norm(wanted)


@pytest.mark.parametrize("target", _TARGETS)
@pytest.mark.parametrize("name", [*_OF_WEIGHTS, *_OF_INPUTS, *_CONSTANTS])
def test_a_value_of_the_graph_keeps_its_name(tmp_path, name, target):
    weights = {"w": values(64, 96), "v": values(96, 64)}
    made = graph(_chain(name), weights, {"x": ["n", 64]}, {"y": ["n", 64]}, opset=21)
    _holds(made, target, tmp_path)


@pytest.mark.parametrize("target", _TARGETS)
@pytest.mark.parametrize("name", [*_OF_WEIGHTS, *_CONSTANTS])
def test_an_initializer_keeps_its_name_and_its_values(tmp_path, name, target):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["a", name], ["b"]),
        helper.make_node("MatMul", ["b", "v"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    weights = {"w": values(64, 96), name: values(96), "v": values(96, 64)}
    made = graph(nodes, weights, {"x": ["n", 64]}, {"y": ["n", 64]}, opset=21)
    _holds(made, target, tmp_path)


def test_a_weight_called_like_the_codes_of_another_is_read_back(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "w_quantized"], ["b"]),
        helper.make_node("MatMul", ["b", "w_quantized_2"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    weights = {"w": values(64, 96), "w_quantized": values(96, 64), "w_quantized_2": values(64, 64)}
    made = graph(nodes, weights, {"x": ["n", 64]}, {"y": ["n", 64]})
    _holds(made, "w8,accuracy_level=1", tmp_path)


@pytest.mark.parametrize("target", _TARGETS)
def test_values_of_graphs_within_nodes_keep_their_names(tmp_path, target):
    branch = helper.make_graph(
        [helper.make_node("Add", ["a", "w_scale"], ["x_abs"])],
        "branch",
        [],
        [helper.make_tensor_value_info("x_abs", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values(96), "w_scale")],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("If", ["yes"], ["b"], then_branch=branch, else_branch=branch),
        helper.make_node("MatMul", ["b", "v"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    weights = {"w": values(64, 96), "v": values(96, 64), "yes": np.array(True)}
    made = graph(nodes, weights, {"x": ["n", 64]}, {"y": ["n", 64]}, opset=21)
    _holds(made, target, tmp_path)
