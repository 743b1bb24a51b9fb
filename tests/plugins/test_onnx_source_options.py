"""What a target's options do to an ``.onnx`` source, or that they do nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from onnx_sources import cnn, decoded, graph, mlp, run, save, values

import qconv
from qconv.errors import UsageError


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return save(mlp(), tmp_path_factory.mktemp("source") / "mlp")


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> Path:
    """A table that is the head, too, and a product named as in a checkpoint."""
    return save(_tied(), tmp_path_factory.mktemp("source") / "tied")


def _tied():
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], to=7),
        helper.make_node("Gather", ["table", "ids"], ["a"]),
        helper.make_node("MatMul", ["a", "layers.0.mlp.up_proj.weight"], ["b"]),
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["b", "turned"], ["y"]),
    ]
    weights = {"table": values(600, 64), "layers.0.mlp.up_proj.weight": values(64, 64)}
    return graph(nodes, weights, {"x": ["n", "s"]}, {"y": ["n", "s", 600]})


def _storage(path: Path, target: str) -> dict[str, str]:
    (made,) = qconv.plan(path, to=f"onnx:{target}").targets
    return {each.name: each.storage for each in made.tensors.tensors}


@pytest.mark.parametrize(
    ("target", "storage"),
    [
        ("w8", "uint8_g32"),
        ("w8,head=8", "uint8_g32"),
        ("w8,head=4", "uint4_g32"),
        ("w8,head=float", "FLOAT"),
        ("int4", "int8_channel"),
        ("int4,head=8", "int8_channel"),
        ("int4,head=4", "uint4_g32"),
        ("int4,head=4,symmetric=true", "int4_g32"),
        ("int4,head=4,group_size=128", "int8_channel"),
        ("int4,head=float", "FLOAT"),
        ("w8a8,head=4", "uint4_g32"),
        ("w8a8,head=float", "FLOAT"),
    ],
)
def test_what_gives_an_output_has_the_bits_of_the_head(source, target, storage):
    assert _storage(source, target)["fourth"] == storage


@pytest.mark.parametrize(
    ("target", "storage"),
    [
        ("w8", "uint8_g32"),
        ("int4", "uint8_g32"),
        ("int4,head=4", "int4_g32"),
        ("int4,head=float", "FLOAT"),
        ("w8a8,head=4", "int4_g32"),
        ("w8a8", "int8_channel"),
        ("w8a8,sensitive=head", "uint8_g32"),
        ("w8a8,sensitive=table", "uint8_g32"),
        ("w8a8,provider=cuda", "uint8_g32"),
        ("int8_static", "uint8_g32"),
        ("int4,embedding=float,head=4", "FLOAT"),
    ],
)
def test_a_table_tied_to_the_head_has_its_bits(tied, target, storage):
    assert _storage(tied, target)["table"] == storage


@pytest.mark.parametrize("target", ["w8,head=4", "int4,head=4", "w8,head=float"])
def test_a_graph_computes_with_a_head_of_any_bits(tied, tmp_path, target):
    made = qconv.convert(tied, to=f"onnx:{target},accuracy_level=1", out=tmp_path, threads=1)
    artifact = made.artifacts[0].files[0].parent
    x = np.array([[0, 599, 3], [7, 7, 300]], dtype=np.float32)
    wanted = run(decoded(_tied(), artifact), x)
    found = run(artifact / "model.onnx", x)
    assert np.linalg.norm(found - wanted) < 1e-5 * np.linalg.norm(wanted)
    assert 0.0005 < np.linalg.norm(wanted - run(_tied(), x)) / np.linalg.norm(wanted) < 0.3


def test_a_head_is_not_told_of_where_there_is_none(tmp_path):
    made = cnn()
    made.graph.node.append(helper.make_node("Sin", ["y"], ["z"]))
    made.graph.output[0].name = "z"
    with pytest.raises(UsageError, match="head=float: no MatMul or Gemm of the graph gives an out"):
        qconv.plan(save(made, tmp_path), to="onnx:w8,head=float")


@pytest.mark.parametrize("target", ["w8a8", "int8_static"])
def test_inputs_of_what_is_named_stay_float(source, tied, target):
    plans = qconv.plan(source, to=f"onnx:{target},sensitive=first+third").targets[0].tensors.tensors
    stay = {each.name: each for each in plans if each.grid and each.activation is None}
    assert {name: each.storage for name, each in stay.items()} == {
        "first": "uint8_g32",
        "third": "uint8_g32",
    }
    assert stay["first"].reason == "its input stays float as asked: 8 bits, weights only"
    storage = _storage(tied, f"{target},sensitive=mlp")
    assert storage["layers.0.mlp.up_proj.weight"] == "uint8_g32"
    assert "uint8_g32" not in _storage(source, f"{target},sensitive=none").values()


def test_what_is_named_is_by_channel_where_blocks_do_not_divide_it(tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    made = graph(nodes, {"w": values(50, 48)}, {"x": ["n", 50]}, {"y": ["n", 48]})
    done = qconv.convert(save(made, tmp_path), to="onnx:w8a8,sensitive=w", out=tmp_path, threads=1)
    (plan,) = done.plan.targets[0].tensors.tensors
    assert (plan.storage, plan.activation) == ("int8_channel", None)
    artifact, x = done.artifacts[0].files[0].parent, values(5, 50)
    wanted = run(decoded(made, artifact), x)
    assert np.linalg.norm(run(artifact / "model.onnx", x) - wanted) < 1e-5 * np.linalg.norm(wanted)


def test_a_name_that_no_weight_has_is_refused(source):
    match = "sensitive=nonsense: no weight of a product is called so, .* there are 4, such as first"
    with pytest.raises(UsageError, match=match):
        qconv.plan(source, to="onnx:w8a8,sensitive=first+nonsense")


@pytest.mark.parametrize("option", ["sensitive=auto", "sensitive_above=0.2"])
def test_what_needs_a_measurement_is_refused(source, option):
    with pytest.raises(UsageError, match=f"{option}: of an .onnx source, .* is not measured; name"):
        qconv.plan(source, to=f"onnx:w8a8,{option}")
