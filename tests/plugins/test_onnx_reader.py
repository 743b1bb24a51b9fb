"""Artifacts are read back as if they were hostile: what they say is checked, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_sources import cnn, edit, graph, mlp, save, values

import qconv
from qconv.errors import UnreadableInput
from qconv_onnx._onnxruntime import _ends
from qconv_onnx._reader import OnnxReader


def _with_table() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], to=7),
        helper.make_node("Gather", ["table", "ids"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]
    weights = {"table": values(600, 64), "w": values(64, 96)}
    return graph(nodes, weights, {"x": ["n", "s"]}, {"y": ["n", "s", 96]}, opset=21)


_SOURCES = {"mlp": lambda: mlp(opset=21), "cnn": cnn, "table": _with_table}


def _written(source: str, target: str, folder: Path) -> Path:
    path = save(_SOURCES[source](), folder / source)
    made = qconv.convert(path, to=f"onnx:{target}", out=folder, threads=1)
    return made.artifacts[0].files[0].parent


def _read(artifact: Path) -> None:
    reader = OnnxReader(artifact)
    for name in reader.tensors:
        reader.read(name)


def _first(model: onnx.ModelProto, operator: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == operator)


def _stored(model: onnx.ModelProto, suffix: str) -> TensorProto:
    return next(each for each in model.graph.initializer if each.name.endswith(suffix))


def _attribute(name: str, value: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        node = _first(model, "MatMulNBits")
        next(each for each in node.attribute if each.name == name).i = value

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda m: _first(m, "MatMulNBits").ClearField("attribute"),
            "says bits=0 and block",
        ),
        (_attribute("block_size", 0), "says bits=4 and block_size=0, but"),
        (_attribute("bits", 5), "says bits=5 and block_size=32, but"),
        (_attribute("block_size", 16), r"_quantized' of type UINT8 is \(96, 2, 16\), but .* 8\)"),
        (lambda m: _first(m, "DequantizeLinear").ClearField("input"), "has 0 inputs and 1 outputs"),
        (lambda m: _stored(m, "_scale").external_data.add(key="basepath"), "is said by 'basepath'"),
        (lambda m: _first(m, "MatMulNBits").ClearField("input"), "has 0 inputs and 1 outputs"),
        (lambda m: _first(m, "MatMulNBits").ClearField("output"), "and 0 outputs, but"),
        (lambda m: _stored(m, "_scale").dims.append(1), r"_scale' of type FLOAT is \(96, 2, 1\)"),
        (lambda m: _stored(m, "_zero_point").dims.pop(), "_zero_point' of type UINT8 is"),
        (lambda m: setattr(_stored(m, "_scale"), "data_type", 999), "_scale' of type unknown is"),
        (lambda m: _stored(m, "_quantized").dims.__setitem__(0, -1), "shape .* is none"),
    ],
)
def test_what_cannot_be_decoded_is_refused_when_opened(tmp_path, change, match):
    artifact = _written("mlp", "int4", tmp_path)
    _read(artifact)
    edit(artifact, change)
    with pytest.raises(UnreadableInput, match=match):
        OnnxReader(artifact)


def test_zero_points_where_none_are_decoded_are_refused(tmp_path):
    artifact = _written("mlp", "int4", tmp_path)

    def change(model: onnx.ModelProto) -> None:
        node = _first(model, "DequantizeLinear")
        node.input.append(node.input[0])

    edit(artifact, change)
    with pytest.raises(UnreadableInput, match="which is not a stored part of a quantized weight"):
        OnnxReader(artifact)


def test_a_float_of_a_type_without_a_name_is_refused_when_read(tmp_path):
    artifact = _written("mlp", "w8", tmp_path)
    edit(artifact, lambda m: setattr(_stored(m, "third_bias"), "data_type", 14))
    with pytest.raises(UnreadableInput, match="tensor 'third_bias' is of a type that"):
        OnnxReader(artifact).read("third_bias")


def test_weights_that_a_link_leads_to_are_refused(tmp_path):
    artifact = _written("mlp", "w8", tmp_path)
    (artifact / "model.onnx.data").rename(tmp_path / "elsewhere")
    (artifact / "model.onnx.data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnreadableInput, match=r"model.onnx.data: links to .*elsewhere, outside"):
        OnnxReader(artifact)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("mlp", "int4"),
        ("mlp", "int4_qdq"),
        ("mlp", "w8a8"),
        ("cnn", "w8"),
        ("table", "w8"),
        ("table", "w8a8"),
    ],
)
def test_flipped_bytes_never_end_in_another_error(tmp_path, source, target):
    artifact = _written(source, target, tmp_path)
    file = artifact / "model.onnx"
    data, rng = file.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        changed = bytearray(data)
        changed[rng.integers(len(data))] = rng.integers(256)
        file.write_bytes(changed)
        try:
            _read(artifact)
        except UnreadableInput:
            refused += 1
    assert 0 < refused < 300


@pytest.mark.parametrize(
    ("said", "ends"),
    [
        ("2", {2}),
        ("[2, 3]", {2, 3}),
        ("[]", set()),
        ('"2"', set()),
        ("[[2], {}, 4, true]", {4}),
    ],
)
def test_ends_of_text_are_token_ids(tmp_path, said, ends):
    (tmp_path / "config.json").write_text(f'{{"eos_token_id": {said}}}')
    assert _ends(tmp_path) == ends
