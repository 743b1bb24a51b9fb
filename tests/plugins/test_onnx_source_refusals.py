"""What cannot be made of an ``.onnx`` source is refused, and what it is planned as."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_sources import cnn, graph, mlp, run, save, values

import qconv
from qconv.checkpoint import open_checkpoint
from qconv.errors import UnreadableInput, Unsupported, UsageError
from qconv.plugin import PlanRequest
from qconv_onnx._backend import OnnxBackend


def _plan(path, target: str = "w8"):
    (made,) = qconv.plan(path, to=f"onnx:{target}").targets
    return made.tensors


def test_every_tensor_is_planned_with_its_reason(tmp_path):
    plans = _plan(save(mlp(), tmp_path / "mlp"), "int4").tensors
    assert {each.name: (each.storage, each.shape, each.arrangement) for each in plans} == {
        "first": ("uint4_g32", (96, 64), "transposed"),
        "second": ("uint4_g32", (128, 96), "rows"),
        "third": ("uint4_g32", (64, 128), "transposed"),
        "third_bias": ("FLOAT", (64,), "rows"),
        "fourth": ("int8_channel", (32, 64), "rows"),
    }
    reasons = {each.name: each.reason for each in plans}
    assert reasons["fourth"] == "gives an output, so not below 8 bits"
    assert reasons["third_bias"] == "not the weight of a MatMul, Gemm or Conv"


def test_a_convolution_is_a_matrix_of_all_that_makes_one_output(tmp_path):
    plans = {each.name: each for each in _plan(save(cnn(), tmp_path), "int4").tensors}
    assert {name: plans[name].shape for name in ("c1", "c2", "c3")} == {
        "c1": (32, 27),
        "c2": (32, 36),
        "c3": (64, 32),
    }
    assert {plans[name].storage for name in ("c1", "c2", "c3", "fc")} == {"int8_channel"}


def test_columns_that_groups_do_not_divide_fall_back_to_8_bits_by_channel(tmp_path):
    node = helper.make_node("MatMul", ["x", "w"], ["a"])
    after = helper.make_node("Relu", ["a"], ["y"])
    made = graph([node, after], {"w": values(50, 48)}, {"x": ["n", 50]}, {"y": ["n", 48]})
    (plan,) = _plan(save(made, tmp_path), "int4").tensors
    assert (plan.storage, plan.fallback_from) == ("int8_channel", "uint4_g32")


def test_weights_that_something_else_uses_stay_float(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("ReduceSum", ["w"], ["b"], keepdims=0),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("MatMul", ["c", "v"], ["y"]),
    ]
    weights = {"w": values(64, 96), "v": values(96, 64)}
    made = graph(nodes, weights, {"x": ["n", 64]}, {"y": ["n", 64]})
    plans = {each.name: each.grid for each in _plan(save(made, tmp_path)).tensors}
    assert plans["w"] is None
    assert plans["v"] is not None


def test_initializers_that_nothing_uses_are_dropped(tmp_path):
    made = mlp()
    made.graph.initializer.append(numpy_helper.from_array(values(64, 64), "left_over"))
    (dropped,) = _plan(save(made, tmp_path)).dropped
    assert (dropped.name, dropped.reason) == ("left_over", "nothing in the graph uses it")


def test_a_quantized_graph_is_refused(tmp_path):
    made = qconv.convert(save(mlp(), tmp_path / "mlp"), to="onnx:w8", out=tmp_path, threads=1)
    again = made.artifacts[0].files[0].parent
    with pytest.raises(Unsupported, match="the graph is quantized already .* such as MatMulNBits"):
        _plan(again)


def test_a_graph_without_products_has_nothing_to_quantize(tmp_path):
    node = helper.make_node("Add", ["x", "w"], ["y"])
    made = graph([node], {"w": values(64, 64)}, {"x": [64, 64]}, {"y": [64, 64]})
    with pytest.raises(Unsupported, match="no MatMul, Gemm or Conv of the graph multiplies by"):
        _plan(save(made, tmp_path))


def test_double_precision_is_carried_and_not_quantized(tmp_path):
    made = mlp()
    for tensor in made.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    with pytest.raises(Unsupported, match="by a float32 or float16 initializer"):
        _plan(save(made, tmp_path))
    plans = _plan(save(made, tmp_path), "fp32").tensors
    assert {each.storage for each in plans} == {"DOUBLE"}


@pytest.mark.parametrize(("opset", "target", "needed"), [(17, "int4_qdq", 21), (11, "int4", 13)])
def test_an_opset_that_lacks_the_operator_is_refused(tmp_path, opset, target, needed):
    path = save(mlp(opset=opset), tmp_path)
    with pytest.raises(Unsupported, match=f"opset {opset}, but .* needs opset {needed}; convert"):
        _plan(path, target)


def test_float16_is_not_made_of_a_float32_graph(tmp_path):
    with pytest.raises(Unsupported, match="onnx:fp16 is not made from an .onnx source"):
        _plan(save(mlp(), tmp_path), "fp16")


def test_a_cache_is_not_made_of_a_graph_without(tmp_path):
    with pytest.raises(UsageError, match="option 'kv_cache' means nothing for an .onnx source"):
        _plan(save(mlp(), tmp_path), "w8,kv_cache=false")


@pytest.mark.parametrize("target", ["gguf:q8_0", "safetensors:int4"])
def test_a_backend_that_does_not_read_graphs_says_who_does(tmp_path, target):
    path = save(mlp(), tmp_path)
    with pytest.raises(Unsupported, match=f"{target} cannot be made from a source of kind 'onnx'"):
        qconv.plan(path, to=target)


def test_a_gguf_is_no_graph(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("output_norm.weight", values(64))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    match = "onnx:w8 cannot be made from a source of kind 'gguf'; what can: "
    with pytest.raises(Unsupported, match=match):
        qconv.plan(tmp_path / "model.gguf", to="onnx:w8")


def test_constants_of_inner_graphs_in_another_file_are_not_lost(tmp_path):
    constant = helper.make_tensor(
        "inner", TensorProto.FLOAT, [64, 64], values(64, 64).tobytes(), True
    )
    branch = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [64, 64])],
        [constant],
    )
    yes = numpy_helper.from_array(np.array(True), "yes")
    nodes = [
        helper.make_node("If", ["yes"], ["w"], then_branch=branch, else_branch=branch),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "v"], ["y"]),
    ]
    made = graph(nodes, {"v": values(64, 32)}, {"x": ["n", 64]}, {"y": ["n", 32]})
    made.graph.initializer.append(yes)
    path = save(made, tmp_path / "model", external=True)
    with pytest.raises(Unsupported, match="its values lie in another file; save the model with"):
        _plan(path)


def _outside(name: str) -> TensorProto:
    """A tensor whose values lie in ``weights.bin``."""
    tensor = TensorProto(name=name, dims=[4], data_type=TensorProto.FLOAT)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _attribute_of_tensors(model: ModelProto) -> None:
    model.graph.node[1].attribute.append(helper.make_attribute("list", [_outside("listed")]))


def _attribute_of_graphs(model: ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [], [_outside("in_graphs")])
    model.graph.node[1].attribute.append(helper.make_attribute("list", [inner]))


def _function(model: ModelProto) -> None:
    constant = helper.make_node(
        "Constant", [], ["out"], name="fixed", value=_outside("in_function")
    )
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("test", "Fixed", [], ["out"], [constant], opsets))


@pytest.mark.parametrize(
    ("hide", "name"),
    [
        (_attribute_of_tensors, " list"),
        (_attribute_of_graphs, "in_graphs"),
        (_function, "fixed value"),
    ],
)
def test_values_elsewhere_in_a_graph_in_another_file_are_not_lost(tmp_path, hide, name):
    made = mlp()
    hide(made)
    path = save(made, tmp_path)
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    with pytest.raises(Unsupported, match=f"'{name}' is no initializer of the main graph"):
        _plan(path)


def test_a_quantized_product_in_a_function_is_refused(tmp_path):
    made = mlp()
    node = helper.make_node("MatMulInteger", ["a", "b"], ["out"])
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("test", "Product", ["a", "b"], ["out"], [node], opsets)
    made.functions.append(function)
    with pytest.raises(Unsupported, match="quantized already .* such as MatMulInteger"):
        _plan(save(made, tmp_path))


@pytest.mark.parametrize("target", ["w8,accuracy_level=1", "w8a8"])
def test_the_standard_may_be_called_by_its_longer_name(tmp_path, target):
    made = mlp()
    made.opset_import[0].domain = "ai.onnx"
    for node in made.graph.node:
        node.domain = "ai.onnx"
    done = qconv.convert(save(made, tmp_path / "mlp"), to=f"onnx:{target}", out=tmp_path, threads=1)
    x = values(5, 64, seed=1)
    found = run(done.artifacts[0].files[0].parent / "model.onnx", x)
    assert np.linalg.norm(found - run(mlp(), x)) < 0.05 * np.linalg.norm(run(mlp(), x))


def test_weights_in_constant_nodes_are_quantized(tmp_path):
    made = mlp()
    (first,) = [each for each in made.graph.initializer if each.name == "first"]
    made.graph.node.insert(0, helper.make_node("Constant", [], ["first"], value=first))
    made.graph.initializer.remove(first)
    path = save(made, tmp_path / "model")
    assert {each.name for each in _plan(path).tensors if each.grid} >= {"first", "second"}
    done = qconv.convert(path, to="onnx:w8", out=tmp_path, threads=1)
    x = values(5, 64, seed=1)
    off = run(done.artifacts[0].files[0].parent / "model.onnx", x) - run(mlp(), x)
    assert np.linalg.norm(off) < 0.05 * np.linalg.norm(run(mlp(), x))


def test_a_value_from_nowhere_is_unreadable(tmp_path):
    made = mlp()
    made.graph.node[1].input[0] = "nobody"
    with pytest.raises(UnreadableInput, match="takes 'nobody', which nothing gives"):
        _plan(save(made, tmp_path))


def test_a_node_without_an_operator_is_unreadable(tmp_path):
    made = mlp()
    made.graph.node[1].ClearField("op_type")
    with pytest.raises(UnreadableInput, match=r"node '' \(\) has no type; check it with"):
        _plan(save(made, tmp_path))


def test_flipped_bytes_of_a_graph_never_end_in_another_error(tmp_path):
    path = save(mlp(), tmp_path, external=True)
    data, rng, backend = path.read_bytes(), np.random.default_rng(0), OnnxBackend()
    outcomes = set()
    for _ in range(500):
        changed = bytearray(data)
        changed[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(changed)
        try:
            with open_checkpoint(path) as opened:
                request = PlanRequest(model=opened.model, format="w8a8")
                backend.layout(request, backend.plan_tensors(request))
            outcomes.add("sound")
        except (UnreadableInput, Unsupported) as error:
            outcomes.add(type(error).__name__)
    assert outcomes >= {"sound", "UnreadableInput"}
