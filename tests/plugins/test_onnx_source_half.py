"""Graphs of float16 as sources: they go on in float16, integer products aside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx_sources import cnn, decoded, mlp, run, save, values

import qconv
from qconv.errors import Unsupported

#: Targets, and how far onnxruntime may be from the decoded weights: the rounding of float16, and
#: of inputs to 8 bits.
_TARGETS = [
    ("w8,accuracy_level=1", 0.004),
    ("int4,accuracy_level=1", 0.004),
    ("int4_qdq", 0.004),
    ("w8a8", 0.03),
    ("int8_static", 0.03),
    ("w8a8,provider=cuda", 0.004),
]


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with all values in float16."""
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


def _convert(source: Path, target: str, out: Path, x: np.ndarray, **options) -> Path:
    np.savez(out / "samples.npz", x=x)
    made = qconv.convert(
        source, f"onnx:{target}", calibration=out / "samples.npz", out=out, threads=1, **options
    )
    return made.artifacts[0].files[0].parent


@pytest.mark.parametrize(("target", "error"), _TARGETS)
def test_a_graph_of_float16_computes_what_its_decoded_weights_do(tmp_path, target, error):
    made, x = half(mlp(opset=21)), values(9, 64, seed=1).astype(np.float16)
    artifact = _convert(save(made, tmp_path / "source"), target, tmp_path, x)
    onnx.checker.check_model(artifact / "model.onnx", full_check="qdq" in target)
    wanted = run(decoded(made, artifact), x).astype(np.float32)
    found = run(artifact / "model.onnx", x)
    assert found.dtype == np.float16
    assert np.linalg.norm(found - wanted) <= error * np.linalg.norm(wanted)
    off = np.linalg.norm(wanted - run(made, x)) / np.linalg.norm(wanted)
    assert 0 < off < (0.2 if "int4" in target else 0.03)


def test_scales_are_stored_in_float16_but_for_integer_products(tmp_path):
    x = values(9, 64).astype(np.float16)
    source = save(half(mlp(opset=21)), tmp_path / "source")
    for target, kind in (("w8", TensorProto.FLOAT16), ("w8a8", TensorProto.FLOAT)):
        artifact = _convert(source, target, tmp_path, x)
        stored = onnx.load(artifact / "model.onnx", load_external_data=False).graph.initializer
        assert {e.data_type for e in stored if e.name.endswith("_scale")} == {kind}


def test_siblings_share_one_cast_to_float(tmp_path):
    x = values(9, 64).astype(np.float16)
    made = half(mlp(opset=21))
    made.graph.node.insert(0, onnx.helper.make_node("MatMul", ["x", "other"], ["beside"]))
    other = numpy_helper.from_array(values(64, 96).astype(np.float16), "other")
    made.graph.initializer.append(other)
    made.graph.output.append(
        onnx.helper.make_tensor_value_info("beside", TensorProto.FLOAT16, ["n", 96])
    )
    artifact = _convert(save(made, tmp_path / "source"), "w8a8", tmp_path, x)
    nodes = onnx.load(artifact / "model.onnx", load_external_data=False).graph.node
    assert sum(node.op_type == "Cast" and node.input[0] == "x" for node in nodes) == 1


def test_convolutions_of_float16_decode_their_weights(tmp_path):
    made, x = half(cnn(opset=21)), values(2, 3, 16, 16).astype(np.float16)
    artifact = _convert(save(made, tmp_path / "source"), "w8,accuracy_level=1", tmp_path, x)
    wanted = run(decoded(made, artifact), x).astype(np.float32)
    found = run(artifact / "model.onnx", x)
    assert np.linalg.norm(found - wanted) <= 0.004 * np.linalg.norm(wanted)


def test_gptq_takes_statistics_of_float16(tmp_path):
    source, x = save(half(mlp(opset=21)), tmp_path / "source"), values(64, 64).astype(np.float16)
    codes = []
    for method in ("rtn", "gptq"):
        (tmp_path / method).mkdir()
        artifact = _convert(source, "int4", tmp_path / method, x, method=method)
        codes.append((artifact / "model.onnx.data").read_bytes())
    assert codes[0] != codes[1]


def test_an_opset_that_decodes_to_float32_only_is_refused(tmp_path):
    source = save(half(cnn(opset=17)), tmp_path)
    with pytest.raises(Unsupported, match="opset 17, but what computes with .* needs opset 19"):
        qconv.plan(source, "onnx:w8")
