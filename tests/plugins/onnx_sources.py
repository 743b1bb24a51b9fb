"""Small ONNX graphs built with ``onnx.helper``, converted by the host, and run in onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx


def values(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Values of some spread: rows differ in size."""
    rng = np.random.default_rng(seed + sum(shape))
    spread = rng.uniform(0.5, 2.0, (shape[0], *(1 for _ in shape[1:])))
    return (rng.standard_normal(shape) * spread * 0.2).astype(np.float32)


def graph(
    nodes: Sequence[onnx.NodeProto],
    initializers: Mapping[str, np.ndarray[Any, Any]],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str]],
    *,
    opset: int = 17,
) -> onnx.ModelProto:
    """A model of float inputs and outputs, by name and shape."""
    from onnx import TensorProto, helper, numpy_helper

    made = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    return model


def mlp(*, opset: int = 17) -> onnx.ModelProto:
    """Each way to multiply: MatMul by (in, out), by a Transpose, Gemm both ways round."""
    from onnx import helper

    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Transpose", ["second"], ["second_t"], perm=[1, 0]),
        helper.make_node("MatMul", ["b", "second_t"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "third", "third_bias"], ["e"]),
        helper.make_node("Relu", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "fourth", "fourth_bias"], ["y"], transB=1),
    ]
    weights = {
        "first": values(64, 96),
        "second": values(128, 96),
        "third": values(128, 64),
        "third_bias": values(64),
        "fourth": values(32, 64),
        "fourth_bias": values(32),
    }
    return graph(nodes, weights, {"x": ["n", 64]}, {"y": ["n", 32]}, opset=opset)


def cnn(*, opset: int = 17) -> onnx.ModelProto:
    """Convolutions, one of them in groups, and a classifier."""
    from onnx import helper

    nodes = [
        helper.make_node("Conv", ["x", "c1", "c1_bias"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "c2"], ["c"], pads=[1, 1, 1, 1], group=8),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "c3"], ["e"], strides=[2, 2]),
        helper.make_node("Relu", ["e"], ["f"]),
        helper.make_node("GlobalAveragePool", ["f"], ["g"]),
        helper.make_node("Flatten", ["g"], ["h"]),
        helper.make_node("Gemm", ["h", "fc", "fc_bias"], ["y"], transB=1),
    ]
    weights = {
        "c1": values(32, 3, 3, 3),
        "c1_bias": values(32),
        "c2": values(32, 4, 3, 3),
        "c3": values(64, 32, 1, 1),
        "fc": values(10, 64),
        "fc_bias": values(10),
    }
    return graph(nodes, weights, {"x": ["n", 3, 16, 16]}, {"y": ["n", 10]}, opset=opset)


def save(model: onnx.ModelProto, folder: Path, *, external: bool = False) -> Path:
    """Write ``model.onnx`` into the folder; external: its weights into a file beside it."""
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    copy = onnx.ModelProto()  # which saving changes
    copy.CopyFrom(model)
    onnx.save_model(
        copy, path, save_as_external_data=external, location="weights.bin", size_threshold=0
    )
    return path


def edit(artifact: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    """Change the graph of an artifact, and leave its weights as they are."""
    import onnx

    model = onnx.load(artifact / "model.onnx", load_external_data=False)
    change(model)
    (artifact / "model.onnx").write_bytes(model.SerializeToString())


def decoded(model: onnx.ModelProto, artifact: Path) -> onnx.ModelProto:
    """The float model with the weights that the reader decodes from an artifact of it."""
    import onnx
    from onnx import numpy_helper

    from qconv_onnx._reader import OnnxReader

    reader = OnnxReader(artifact)
    new = onnx.ModelProto()
    new.CopyFrom(model)
    for tensor in new.graph.initializer:
        if tensor.name in reader.tensors:
            read = reader.read(tensor.name).numpy()
            turned = read.T if _is_turned(model, tensor.name) else read
            values = np.ascontiguousarray(turned).reshape(list(tensor.dims))
            array = values.astype(numpy_helper.to_array(tensor).dtype)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return new


def _is_turned(model: onnx.ModelProto, name: str) -> bool:
    """The graph has the weight (in, out)."""
    from onnx import helper

    for node in model.graph.node:
        if len(node.input) > 1 and node.input[1] == name and node.op_type in {"MatMul", "Gemm"}:
            facts = {each.name: helper.get_attribute_value(each) for each in node.attribute}
            return not facts.get("transB")
    return False


def run(model: onnx.ModelProto | Path, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The one output, by onnxruntime on the CPU, which decodes what the graph says is decoded."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x})
    array: np.ndarray[Any, Any] = found
    return array


def write_tokenizer(folder: Path, words: int) -> None:
    """A tokenizer whose words are the numbers below ``words``."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = {str(number): number for number in range(words)}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "0"}'
    )
