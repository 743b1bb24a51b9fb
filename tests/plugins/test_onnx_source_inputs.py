"""Initializers that are inputs, too: a default that callers may replace, or an old format."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_sources import mlp, run, save, values

import qconv
from qconv.errors import Unsupported


def _with_inputs(*names: str, ir: int = 8) -> ModelProto:
    made = mlp()
    made.ir_version = ir
    for tensor in made.graph.initializer:
        if tensor.name in names or not names:
            value = helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims)
            made.graph.input.append(value)
    return made


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("target", ["w8,accuracy_level=1", "w8a8"])
def test_callers_may_still_replace_a_default(tmp_path, target, external):
    model = _with_inputs("second", "third_bias")
    path = save(model, tmp_path / "mlp", external=external)
    made = qconv.convert(path, to=f"onnx:{target}", out=tmp_path, threads=1)
    plans = {each.name: each for each in made.plan.targets[0].tensors.tensors}
    assert plans["second"].grid is None
    assert plans["second"].reason == "an input, too, which callers may give other values"
    assert {name for name, each in plans.items() if each.grid} == {"first", "third", "fourth"}
    artifact = made.artifacts[0].files[0].parent / "model.onnx"
    x, other = values(5, 64, seed=1), {"second": values(128, 96, seed=9)}
    sessions = [onnxruntime.InferenceSession(str(each)) for each in (artifact, path)]
    for more in ({}, other):
        found, wanted = (each.run(None, {"x": x, **more})[0] for each in sessions)
        assert np.linalg.norm(found - wanted) < 0.05 * np.linalg.norm(wanted)
    names = [[each.name for each in one.get_overridable_initializers()] for one in sessions]
    assert names[0] == names[1] == ["second", "third_bias"]


def test_a_default_that_nothing_uses_stays_an_input(tmp_path):
    model = _with_inputs("second")
    model.graph.node[2].input[0] = "other"
    model.graph.initializer.append(numpy_helper.from_array(values(128, 96), "other"))
    made = qconv.convert(save(model, tmp_path / "mlp"), to="onnx:w8", out=tmp_path, threads=1)
    session = onnxruntime.InferenceSession(str(made.artifacts[0].files[0].parent / "model.onnx"))
    assert [each.name for each in session.get_overridable_initializers()] == ["second"]


def test_before_ir_version_4_all_initializers_are_inputs_and_are_quantized(tmp_path):
    path = save(_with_inputs(ir=3), tmp_path / "old")
    made = qconv.convert(path, to="onnx:w8", out=tmp_path, threads=1)
    plans = {each.name for each in made.plan.targets[0].tensors.tensors if each.grid}
    assert plans == {"first", "second", "third", "fourth"}
    x = values(5, 64, seed=1)
    wanted = run(mlp(), x)
    found = run(made.artifacts[0].files[0].parent / "model.onnx", x)
    assert np.linalg.norm(found - wanted) < 0.05 * np.linalg.norm(wanted)


def test_a_graph_whose_weights_are_all_inputs_is_refused_with_what_makes_them_constants(tmp_path):
    path = save(_with_inputs(), tmp_path / "inputs")
    match = "6 initializers are inputs, too, .*tools.remove_initializer_from_input --input"
    with pytest.raises(Unsupported, match=match):
        qconv.plan(path, to="onnx:w8")
