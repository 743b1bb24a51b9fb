"""Queries, keys and values of an encoder are one integer product, of weights that stay apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx_driver import decoded, run, save_bert, session, write

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
    model = decoded(bert, artifact)
    grid = ActivationGrid()
    for module in model.encoder.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _, args: grid.fake_quantize(args[0].flatten(0, 1)).view(args[0].shape)
            )
    with torch.no_grad():
        expected = model(torch.tensor(IDS)).last_hidden_state.numpy()
    found = run(session(artifact), IDS)["last_hidden_state"]
    assert np.abs(found - expected).mean() <= 1e-3
    assert np.abs(expected).mean() > 0.5


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
    model = onnx.load(artifact / "model.onnx", load_external_data=False)
    change(
        [
            node
            for node in model.graph.node
            if node.op_type == "Concat" and "joined" in node.output[0]
        ]
    )
    (artifact / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnreadableInput, match="which is not a stored part of a quantized weight"):
        OnnxReader(artifact)


def test_a_table_that_is_decoded_in_two_ways_is_refused(backend, tmp_path):
    from onnx_driver import save_llama

    source = save_llama(tmp_path / "tiny", num_hidden_layers=1, vocab_size=64)
    artifact, _ = write(OnnxBackend(), source, tmp_path, "w8a8")
    model = onnx.load(artifact / "model.onnx", load_external_data=False)
    (gather,) = (
        node
        for node in model.graph.node
        if node.op_type == "Gather" and node.input[0] == "model.embed_tokens.weight_scale"
    )
    other = next(each for each in model.graph.initializer if each.name == gather.input[0])
    copy = model.graph.initializer.add()
    copy.CopyFrom(other)
    copy.name = gather.input[0] = "another_scale"
    (artifact / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnreadableInput, match="decodes 'model.embed_tokens.weight_quantized' in"):
        OnnxReader(artifact)
