"""Queries, keys and values of an encoder are one integer product, of weights that stay apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_sources
import pytest
import torch
from onnx import helper
from onnx_driver import decoded, run, save_bert, save_llama, session, write

import qconv
from qconv.errors import UnreadableInput
from qconv.grids import ActivationGrid
from qconv_onnx._backend import OnnxBackend
from qconv_onnx._reader import OnnxReader

IDS = np.random.default_rng(0).integers(3, 160, (2, 9))
_LAYERS = 2


@pytest.fixture(scope="module")
def backend() -> OnnxBackend:
    return OnnxBackend()


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert") / "tiny")


def _nodes(artifact: Path) -> list[onnx.NodeProto]:
    return list(onnx.load(artifact / "model.onnx", load_external_data=False).graph.node)


def test_products_before_attention_are_one(bert, backend, tmp_path):
    artifact, values = write(backend, bert, tmp_path, "w8a8")
    kinds = [node.op_type for node in _nodes(artifact)]
    assert kinds.count("Split") == kinds.count("MultiHeadAttention") == _LAYERS
    assert kinds.count("MatMulIntegerToFloat") == 4 * _LAYERS
    reader = OnnxReader(artifact)
    for name, value in values.items():
        expected = value.float() if isinstance(value, torch.Tensor) else value.dequantize()
        assert torch.equal(reader.read(name).reshape(expected.shape), expected), name
    _holds(bert, artifact)


def test_tables_by_position_and_what_is_beside_the_blocks_hold_in_the_runtime(backend, tmp_path):
    source = save_bert(tmp_path / "wide", hidden_size=128, max_position_embeddings=128)
    artifact, _ = write(OnnxBackend(), source, tmp_path, "w8a8")
    kinds = {name: info.dtype for name, info in OnnxReader(artifact).tensors.items()}
    assert kinds["embeddings.position_embeddings.weight"] == "int8_channel"
    assert kinds["pooler.dense.weight"] == "int8_channel"
    _holds(source, artifact)


def _holds(source: Path, artifact: Path) -> None:
    """Outputs are those of the decoded weights, inputs rounded as the grid says."""
    model = decoded(source, artifact)
    grid = ActivationGrid()

    def rounded(_: object, args: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return grid.fake_quantize(args[0].flatten(0, -2)).view(args[0].shape)

    reader = OnnxReader(artifact)
    for name, module in model.named_modules():
        stored = reader.tensors.get(f"{name}.weight")
        if isinstance(module, torch.nn.Linear) and stored and stored.dtype == "int8_channel":
            module.register_forward_pre_hook(rounded)
    with torch.no_grad():
        expected = model(torch.tensor(IDS))
    found = run(session(artifact), IDS)
    for name in ("last_hidden_state", "pooler_output"):
        states = expected[name].numpy()
        assert np.abs(found[name] - states).mean() <= 1e-3
        assert np.abs(states).mean() > 0.2


@pytest.mark.parametrize("target", ["w8", "w8a8,sensitive=query"])
def test_others_stay_apart(bert, backend, tmp_path, target):
    target, _, option = target.partition(",sensitive=")
    options = {"sensitive": option} if option else {}
    artifact, _ = write(backend, bert, tmp_path, target, **options)
    assert "Split" not in {node.op_type for node in _nodes(artifact)}


def _axis(number: int) -> Callable[[list[onnx.NodeProto]], object]:
    """Another axis of the first or second Concat of stored parts."""

    def change(joined: list[onnx.NodeProto]) -> None:
        joined[number].attribute[0].i = 1 - joined[number].attribute[0].i

    return change


@pytest.mark.parametrize(
    "change",
    [_axis(0), _axis(1), lambda joined: joined[1].input.pop()],
    ids=["axis of weights", "axis of scales", "a scale less"],
)
def test_weights_that_are_put_together_otherwise_than_their_scales_are_refused(
    bert, backend, tmp_path, change
):
    artifact, _ = write(backend, bert, tmp_path, "w8a8")
    onnx_sources.edit(artifact, lambda model: change(_all(model, "Concat", "joined")))
    with pytest.raises(UnreadableInput, match="which is not a stored part of a quantized weight"):
        OnnxReader(artifact)


def _all(model: onnx.ModelProto, operator: str, named: str) -> list[onnx.NodeProto]:
    """Nodes of an operator one of whose names holds a text."""
    return [
        node
        for node in model.graph.node
        if node.op_type == operator and named in " ".join((*node.input, *node.output))
    ]


def _another_scale(model: onnx.ModelProto) -> None:
    (gather,) = _all(model, "Gather", "embed_tokens.weight_scale")
    copy = model.graph.initializer.add()
    copy.CopyFrom(next(each for each in model.graph.initializer if each.name == gather.input[0]))
    copy.name = gather.input[0] = "another_scale"


def _unturned(model: onnx.ModelProto) -> None:
    (turned,) = _all(model, "Transpose", "embed_tokens.weight_quantized")
    turned.attribute[0].ints[:] = [0, 1]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_another_scale, "decodes 'model.embed_tokens.weight_quantized' in two ways"),
        (_unturned, "which is not a stored part of a quantized weight"),
    ],
)
def test_a_table_that_lookups_and_product_take_otherwise_is_refused(tmp_path, change, match):
    source = save_llama(tmp_path / "tiny", num_hidden_layers=1, vocab_size=64)
    artifact, _ = write(OnnxBackend(), source, tmp_path, "w8a8")
    onnx_sources.edit(artifact, change)
    with pytest.raises(UnreadableInput, match=match):
        OnnxReader(artifact)


@pytest.mark.parametrize("opset", [17, 21])
def test_graphs_of_others_keep_their_products_and_names(tmp_path, opset):
    nodes = [helper.make_node("MatMul", ["x", name], [f"{name}_out"]) for name in "qkv"]
    attention = helper.make_node(
        "MultiHeadAttention",
        ["q_out", "k_out", "v_out"],
        ["y"],
        domain="com.microsoft",
        num_heads=2,
    )
    weights = {name: onnx_sources.values(64, 64, seed=ord(name)) for name in "qkv"}
    shape = ["n", "s", 64]
    made = onnx_sources.graph(
        [*nodes, attention], weights, {"x": shape}, {"y": shape, "q_out": shape}, opset=opset
    )
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    source = onnx_sources.save(made, tmp_path / "source")
    done = qconv.convert(source, to="onnx:w8a8", out=tmp_path, threads=1)
    artifact = done.artifacts[0].files[0].parent
    opened = session(artifact)
    x = onnx_sources.values(2, 5, 64)
    found = dict(zip(("y", "q_out"), opened.run(None, {"x": x}), strict=True))
    expected = x @ OnnxReader(artifact).read("q").numpy().T
    off = np.linalg.norm(found["q_out"] - expected) / np.linalg.norm(expected)
    assert 0 < off < 0.02
    assert "k_out" in {name for node in _nodes(artifact) for name in node.output}
