"""Of the tables of a graph, embeddings are quantized: what tokens choose the rows of."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from onnx_sources import graph, run, save, values

import qconv

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
