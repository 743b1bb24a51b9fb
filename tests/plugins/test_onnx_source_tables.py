"""Of the tables of a graph, embeddings are quantized: what tokens choose the rows of."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_sources import decoded, graph, run, save, values

import qconv
from qconv.errors import Unsupported
from qconv.grids import ActivationGrid
from qconv_onnx._reader import OnnxReader

_FLOAT = "a table by positions or by what the graph computes stays float"


def _model(*choosing, name: str = "input_ids", tied: bool = False):
    """A product of rows of a table, that ``choosing`` makes numbers of from input ``name``."""
    nodes = [
        helper.make_node("Cast", [name], ["numbers"], to=7),
        *choosing,
        helper.make_node("Gather", ["table", "rows"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("MatMul", ["b", "turned"], ["y"]),
    ]
    table = "table" if tied else "v"
    nodes.insert(0, helper.make_node("Transpose", [table], ["turned"], perm=[1, 0]))
    weights = {
        "table": values(600, 64),
        "v": values(600, 64),
        "w": values(64, 64),
        "one": np.array(1),
        "zero": np.array(0),
        "flat": np.array([-1]),
    }
    return graph(nodes, weights, {name: ["n"]}, {"y": None})


def _table(model, tmp_path):
    plans = qconv.plan(save(model, tmp_path), to="onnx:w8").targets[0].tensors.tensors
    return next(each for each in plans if each.name == "table")


_AS_IT_IS = (helper.make_node("Identity", ["numbers"], ["rows"]),)
_RESHAPED = (
    helper.make_node("Unsqueeze", ["numbers", "flat"], ["more"]),
    helper.make_node("Reshape", ["more", "flat"], ["rows"]),
)
_COMPUTED = (helper.make_node("CumSum", ["numbers", "zero"], ["rows"]),)


@pytest.mark.parametrize("choosing", [_AS_IT_IS, _RESHAPED])
def test_a_table_that_an_input_chooses_rows_of_has_8_bits(tmp_path, choosing):
    assert _table(_model(*choosing), tmp_path).reason == "a table, 8 bits in blocks"


@pytest.mark.parametrize("choosing", [_AS_IT_IS, _RESHAPED])
@pytest.mark.parametrize("name", ["position_ids", "Positions"])
def test_a_table_by_position_stays_float(tmp_path, choosing, name):
    plan = _table(_model(*choosing, name=name), tmp_path)
    assert (plan.grid, plan.reason) == (None, _FLOAT)


def test_a_table_by_what_the_graph_computes_stays_float(tmp_path):
    plan = _table(_model(*_COMPUTED), tmp_path)
    assert (plan.grid, plan.reason) == (None, _FLOAT)


def test_a_table_that_is_looked_up_otherwise_too_stays_float(tmp_path):
    more = helper.make_node("Gather", ["table", "sum"], ["unused"])
    summed = helper.make_node("CumSum", ["numbers", "zero"], ["sum"])
    plan = _table(_model(*_AS_IT_IS, summed, more), tmp_path)
    assert (plan.grid, plan.reason) == (None, _FLOAT)


def test_a_table_that_the_graph_multiplies_by_has_8_bits_whatever_chooses_rows(tmp_path):
    plan = _table(_model(*_COMPUTED, tied=True), tmp_path)
    assert plan.reason == "a table, 8 bits in blocks"


def _summed(*more, first: str = "c"):
    """Rows of a table by position, added to rows that tokens choose, maybe after others."""
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], to=7),
        helper.make_node("CumSum", ["ids", "zero"], ["numbers"]),
        helper.make_node("Gather", ["table", "numbers"], ["a"]),
        helper.make_node("Gather", ["tokens", "ids"], ["b"]),
        helper.make_node("Add", ["b", "kinds"], ["c"]),
        helper.make_node("Exp", ["c"], ["d"]),
        helper.make_node("Add", ["a", first], ["e"]),
        *more,
        helper.make_node("MatMul", ["e", "w"], ["y"]),
    ]
    weights = {
        "table": values(600, 64),
        "tokens": values(600, 64, seed=1),
        "kinds": values(64),
        "w": values(64, 64),
        "zero": np.array(1),
    }
    return graph(nodes, weights, {"x": ["n", "s"]}, {"y": None})


@pytest.mark.parametrize("target", ["w8", "w8a8"])
def test_a_table_that_is_added_to_an_embedding_is_one_whatever_chooses_rows(tmp_path, target):
    made = _summed()
    source = save(made, tmp_path / "source")
    done = qconv.convert(source, to=f"onnx:{target}", out=tmp_path, threads=1)
    plans = {each.name: each for each in done.plan.targets[0].tensors.tensors}
    assert plans["table"].grid is not None
    artifact = done.artifacts[0].files[0].parent
    x = np.array([[0, 0, 3, 1], [7, 7, 300, 2]], dtype=np.float32)
    wanted = run(decoded(made, artifact), x)
    off = np.linalg.norm(run(artifact / "model.onnx", x) - wanted) / np.linalg.norm(wanted)
    assert off < 0.03


def test_a_table_that_is_added_to_something_else_stays_float(tmp_path):
    assert _table(_summed(first="d"), tmp_path).reason == _FLOAT
    also = helper.make_node("Sin", ["a"], ["unused"])
    assert _table(_summed(also), tmp_path).reason == _FLOAT


def test_sums_of_sums_of_the_same_are_looked_at_once(tmp_path):
    sums = [
        helper.make_node("Sum", [f"e{number}" if number else "e"] * 200, [f"e{number + 1}"])
        for number in range(6)
    ]
    made = _summed(*sums)
    made.graph.node[-1].input[0] = "e6"
    assert _table(made, tmp_path).grid is not None


def test_an_integer_product_of_a_table_needs_an_opset(tmp_path):
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], to=7),
        helper.make_node("Gather", ["table", "ids"], ["a"]),
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["a", "turned"], ["y"]),
    ]
    made = graph(nodes, {"table": values(600, 64)}, {"x": ["n"]}, {"y": None}, opset=9)
    with pytest.raises(Unsupported, match="of opset 9, but what computes with 'table' needs opset"):
        qconv.plan(save(made, tmp_path), to="onnx:w8a8")


@pytest.mark.parametrize("half", [False, True])
def test_a_tied_table_by_row_serves_lookups_and_an_integer_product(tmp_path, half):
    made = _model(*_AS_IT_IS, tied=True)
    if half:
        made = _in_half(made)
    done = qconv.convert(save(made, tmp_path / "source"), to="onnx:w8a8", out=tmp_path, threads=1)
    (plan,) = (each for each in done.plan.targets[0].tensors.tensors if each.name == "table")
    assert (plan.storage, plan.activation) == ("int8_channel", ActivationGrid())
    artifact = done.artifacts[0].files[0].parent
    nodes = onnx.load(artifact / "model.onnx", load_external_data=False).graph.node
    assert [node.op_type for node in nodes].count("MatMulIntegerToFloat") == 2
    x = np.array([0, 599, 3, 7, 7, 300], dtype=np.float32)
    reader, rounded = OnnxReader(artifact), ActivationGrid().fake_quantize
    table, w = (reader.read(name) for name in ("table", "w"))
    wanted = (rounded(rounded(table[x.astype(int)]) @ w.T) @ table.T).numpy()
    off = np.linalg.norm(run(artifact / "model.onnx", x) - wanted) / np.linalg.norm(wanted)
    assert off < (5e-3 if half else 1e-5)  # float16 in between turns some roundings


def _in_half(model):
    """The same with weights in float16, and what comes of them in float32 again."""
    new = onnx.ModelProto()
    new.CopyFrom(model)
    for tensor in new.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    new.graph.node[-1].output[0] = "z"
    new.graph.node.append(helper.make_node("Cast", ["z"], ["y"], to=1))
    new.opset_import[0].version = 19
    return new


def test_angles_come_out_as_they_were(tmp_path):
    angles = np.outer(np.arange(600), 10000.0 ** -(np.arange(64) / 64))
    nodes = [
        helper.make_node("Cast", ["position_ids"], ["ids"], to=7),
        helper.make_node("Gather", ["cos_cache", "ids"], ["cos"]),
        helper.make_node("MatMul", ["position_ids", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Mul", ["b", "zero"], ["c"]),
        helper.make_node("ReduceSum", ["c"], ["d"], keepdims=0),
        helper.make_node("Add", ["cos", "d"], ["y"]),
    ]
    weights = {
        "cos_cache": np.cos(angles).astype(np.float32),
        "w": values(32, 32),
        "zero": np.array(0, np.float32),
    }
    made = graph(nodes, weights, {"position_ids": ["n", 32]}, {"y": None})
    done = qconv.convert(save(made, tmp_path / "m"), to="onnx:w8", out=tmp_path, threads=1)
    x = np.arange(64, dtype=np.float32).reshape(2, 32)
    found = run(done.artifacts[0].files[0].parent / "model.onnx", x)
    assert np.array_equal(found, run(made, x))
