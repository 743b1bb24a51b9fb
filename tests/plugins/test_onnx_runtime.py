"""Judges of the ONNX backend: onnx.checker, shape inference, and logits of onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx_driver import decoded, run, save_bert, save_llama, session, write

from qconv.grids import ActivationGrid
from qconv_onnx._backend import OnnxBackend
from qconv_onnx._reader import OnnxReader

#: Format, options, and the largest error of a logit: rounding only, or the inputs' 8 bits too.
TARGETS = [
    ("fp32", {}, 1e-5),
    ("w8", {"accuracy_level": "1"}, 1e-5),
    ("w8", {"symmetric": "true", "accuracy_level": "1", "group_size": "64"}, 1e-5),
    ("w8", {}, 6e-2),
    ("int4", {"accuracy_level": "1"}, 1e-5),
    ("int4", {"accuracy_level": "1", "symmetric": "true"}, 1e-5),
    ("int4", {}, 6e-2),
    ("int4_qdq", {}, 6e-2),
    ("int4_qdq", {"symmetric": "true", "group_size": "64"}, 6e-2),
    ("int4", {"accuracy_level": "1", "head": "4"}, 1e-5),
    ("fp16", {}, 5e-3),
]
IDS = np.random.default_rng(0).integers(3, 160, (2, 9))


def _name(value: object) -> str | None:
    if isinstance(value, dict):
        return ",".join(f"{key}={option}" for key, option in value.items()) or "-"
    return None


@pytest.fixture(scope="module")
def backend() -> OnnxBackend:
    """One for all: it keeps the graph it exported last."""
    return OnnxBackend()


@pytest.fixture(scope="module")
def another() -> OnnxBackend:
    """For what needs another graph."""
    return OnnxBackend()


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama") / "tiny")


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert") / "tiny")


def _logits(model, ids: np.ndarray, **more: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(ids), **more).logits.numpy()


@pytest.mark.parametrize(("target", "options", "tolerance"), TARGETS, ids=_name)
def test_logits_are_those_of_the_values_that_the_method_computed(
    llama, backend, another, tmp_path, target, options, tolerance
):
    chosen = another if target == "fp16" else backend
    artifact, values = write(chosen, llama, tmp_path, target, **options)
    reader = OnnxReader(artifact)
    assert set(reader.tensors) == set(values)
    for name, value in values.items():
        expected = value.float() if isinstance(value, torch.Tensor) else value.dequantize()
        assert torch.equal(reader.read(name).reshape(expected.shape), expected), name
        assert (reader.tensors[name].dtype[0] in "iu") == (not isinstance(value, torch.Tensor))
    found = run(session(artifact), IDS)["logits"]
    expected = _logits(decoded(llama, artifact), IDS)
    assert np.abs(found - expected).max() <= tolerance
    assert np.abs(expected).max() > 1  # and so the tolerance is small


@pytest.mark.parametrize("symmetric", ["true", "false"])
def test_blocked_weights_are_exact_where_the_runtime_decodes_them(
    llama, backend, tmp_path, symmetric
):
    artifact, _ = write(backend, llama, tmp_path, "int4_qdq", symmetric=symmetric)
    found = run(session(artifact, fuse=False), IDS)["logits"]
    assert np.abs(found - _logits(decoded(llama, artifact), IDS)).max() <= 1e-5


def test_w8a8_computes_on_inputs_rounded_by_token(llama, backend, tmp_path):
    artifact, values = write(backend, llama, tmp_path, "w8a8", accuracy_level="1")
    model = decoded(llama, artifact)
    grid = ActivationGrid()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _, args: grid.fake_quantize(args[0].flatten(0, 1)).view(args[0].shape)
            )
    found = run(session(artifact), IDS)["logits"]
    # A step at the edge of rounding may fall to either side; most do not.
    assert np.abs(found - _logits(model, IDS)).mean() <= 1e-3
    reader = OnnxReader(artifact)
    for name, value in values.items():
        expected = value.float() if isinstance(value, torch.Tensor) else value.dequantize()
        assert torch.equal(reader.read(name).reshape(expected.shape), expected), name


def test_w8a8_runs_on_integer_kernels(llama, backend, tmp_path):
    artifact, values = write(backend, llama, tmp_path, "w8a8")
    nodes = onnx.load(artifact / "model.onnx", load_external_data=False).graph.node
    kinds = [node.op_type for node in nodes]
    quantized = [name for name, value in values.items() if not isinstance(value, torch.Tensor)]
    assert kinds.count("MatMulIntegerToFloat") == len(quantized) == 15
    # q, k and v share their input, gate and up share theirs; one is the head's
    assert kinds.count("QuantizeLinear") == 9
    assert "MatMulNBits" not in kinds


@pytest.mark.parametrize("target", ["fp32", "w8", "int4", "int4_qdq", "w8a8"])
def test_the_checker_and_shape_inference_accept_the_graph(llama, backend, tmp_path, target):
    artifact, _ = write(backend, llama, tmp_path, target)
    file = artifact / "model.onnx"
    onnx.checker.check_model(file, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(onnx.load(file), strict_mode=True)
    (logits, *_) = inferred.graph.output
    assert [each.dim_param or each.dim_value for each in logits.type.tensor_type.shape.dim] == [
        "batch_size",
        "sequence_length",
        160,
    ]


def test_a_decoder_has_the_names_that_optimum_gives(llama, backend, tmp_path):
    artifact, _ = write(backend, llama, tmp_path, "fp32")
    opened = session(artifact)
    past = [f"past_key_values.{n}.{part}" for n in (0, 1) for part in ("key", "value")]
    assert [each.name for each in opened.get_inputs()] == [
        "input_ids",
        "attention_mask",
        "position_ids",
        *past,
    ]
    present = [name.replace("past_key_values", "present") for name in past]
    assert [each.name for each in opened.get_outputs()] == ["logits", *present]
    shapes = {each.name: each.shape for each in (*opened.get_inputs(), *opened.get_outputs())}
    both = "past_sequence_length + sequence_length"
    assert shapes["attention_mask"] == ["batch_size", both]
    assert shapes["past_key_values.1.key"] == ["batch_size", 2, "past_sequence_length", 16]
    assert shapes["present.1.value"] == ["batch_size", 2, both, 16]


@pytest.mark.parametrize(
    ("target", "operators"),
    [
        ("w8", ["GatherBlockQuantized", "MatMulNBits"]),
        ("int4", ["GatherBlockQuantized", "MatMulNBits"]),
        ("w8a8", ["Gather", "Transpose"]),
        ("w8a8,sensitive=head", ["GatherBlockQuantized", "MatMulNBits"]),
    ],
)
def test_a_tied_table_is_stored_once_and_serves_both(llama, backend, tmp_path, target, operators):
    target, _, option = target.partition(",sensitive=")
    options = {"sensitive": option} if option else {}
    artifact, _ = write(backend, llama, tmp_path, target, **options)
    graph = onnx.load(artifact / "model.onnx", load_external_data=False).graph
    table = "model.embed_tokens.weight_quantized"
    users = [node.op_type for node in graph.node if table in node.input]
    assert sorted(users) == operators


# MatMulNBits that rounds inputs does so otherwise for one token than for several
@pytest.mark.parametrize(
    ("target", "options", "tolerance"),
    [
        ("fp32", {}, 1e-5),
        ("w8", {"accuracy_level": "1"}, 1e-5),
        ("int4", {"accuracy_level": "1"}, 1e-5),
        ("w8", {}, 2e-2),
        ("int4", {}, 2e-2),
        ("w8a8", {}, 2e-2),
    ],
    ids=_name,
)
def test_generation_with_the_cache_is_generation_without(
    llama, backend, another, tmp_path, target, options, tolerance
):
    cached, _ = write(backend, llama, tmp_path / "cached", target, **options)
    plain, _ = write(another, llama, tmp_path / "plain", target, kv_cache="false", **options)
    with_cache, without = session(cached), session(plain)
    assert [each.name for each in without.get_outputs()] == ["logits"]
    ids, past, new = IDS, None, IDS
    for _ in range(5):
        outputs = run(with_cache, new, past)
        logits = outputs.pop("logits")[:, -1]
        assert np.abs(logits - run(without, ids)["logits"][:, -1]).max() <= tolerance
        past, new = outputs, logits.argmax(-1)[:, None]
        ids = np.concatenate([ids, new], axis=1)


@pytest.mark.parametrize(
    ("target", "options", "tolerance"),
    [
        ("fp32", {}, 1e-5),
        ("w8", {"accuracy_level": "1"}, 1e-5),
        ("int4", {"accuracy_level": "1"}, 1e-5),
        ("int4", {}, 6e-2),
        ("w8a8", {}, 0.2),
    ],
    ids=_name,
)
def test_a_batch_padded_on_the_left_is_what_torch_makes_of_it(
    llama, backend, tmp_path, target, options, tolerance
):
    artifact, _ = write(backend, llama, tmp_path, target, **options)
    both = IDS.copy()
    both[0, :4] = 0
    mask = np.ones_like(both)
    mask[0, :4] = 0
    positions = torch.tensor(np.clip(mask.cumsum(1) - 1, 0, None))
    expected = _logits(
        decoded(llama, artifact), both, attention_mask=torch.tensor(mask), position_ids=positions
    )
    opened = session(artifact)
    found = run(opened, both, mask=mask)["logits"]
    seen = mask.astype(bool)
    assert np.abs(found - expected)[seen].max() <= tolerance
    alone = run(opened, IDS[:1, 4:])["logits"]
    # MatMulNBits rounds a token's input otherwise where there are few rows.
    assert np.abs(found[0, 4:] - alone[0]).max() <= max(1e-5, tolerance / 10)


def test_a_padded_batch_goes_on_from_its_cache_in_pieces(llama, backend, tmp_path):
    artifact, _ = write(backend, llama, tmp_path, "w8", accuracy_level="1")
    ids = np.random.default_rng(1).integers(3, 160, (3, 12))
    mask = np.ones_like(ids)
    mask[1, :4] = mask[2, :7] = 0
    positions = torch.tensor(np.clip(mask.cumsum(1) - 1, 0, None))
    more = {"attention_mask": torch.tensor(mask), "position_ids": positions}
    expected = _logits(decoded(llama, artifact), ids, **more)
    opened, past, found = session(artifact), None, []
    for start, end in ((0, 5), (5, 6), (6, 11), (11, 12)):
        past = run(opened, ids[:, start:end], past, mask=mask[:, :end])
        found.append(past.pop("logits"))
    seen = mask.astype(bool)
    assert np.abs(np.concatenate(found, axis=1) - expected)[seen].max() <= 1e-5


@pytest.mark.parametrize(
    ("target", "domains", "turned"),
    [("fp32", {""}, 0), ("int4_qdq", {""}, 0), ("w8", {"", "com.microsoft"}, 4)],
)
def test_attention_is_in_few_operators_and_of_the_standard_where_the_rest_is(
    llama, backend, tmp_path, target, domains, turned
):
    artifact, _ = write(backend, llama, tmp_path, target)
    nodes = onnx.load(artifact / "model.onnx", load_external_data=False).graph.node
    kinds = [node.op_type for node in nodes]
    assert {node.domain for node in nodes} == domains
    assert kinds.count("RotaryEmbedding") == turned  # queries and keys of two layers
    assert kinds.count("Softmax") == 2
    assert "IsNaN" not in kinds


def test_tensors_that_transformers_only_renames_are_found(tmp_path):
    from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    config = GPTNeoXConfig(**sizes, num_hidden_layers=1, vocab_size=160, max_position_embeddings=64)
    torch.manual_seed(0)
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "neox")
    artifact, _ = write(OnnxBackend(), tmp_path / "neox", tmp_path, "w8", accuracy_level="1")
    reader = OnnxReader(artifact)
    assert reader.tensors["embed_out.weight"].dtype == "uint8_g32"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    names = {name: name.replace("embed_out", "lm_head") for name in reader.tensors}
    model.load_state_dict({new: reader.read(name) for name, new in names.items()})
    assert np.abs(run(session(artifact), IDS)["logits"] - _logits(model, IDS)).max() <= 1e-5


@pytest.mark.parametrize("target", ["fp32", "int4", "int8"])
def test_an_encoder_has_its_own_outputs(bert, another, tmp_path, target):
    artifact, _ = write(another, bert, tmp_path, target)
    opened = session(artifact)
    assert [each.name for each in opened.get_inputs()] == [
        "input_ids",
        "attention_mask",
        "token_type_ids",
    ]
    found = run(opened, IDS)
    assert list(found) == ["last_hidden_state", "pooler_output"]
    model = decoded(bert, artifact)
    with torch.no_grad():
        expected = model(torch.tensor(IDS))
    tolerance = 1e-5 if target == "fp32" else 0.1
    for name, value in found.items():
        assert np.abs(value - expected[name].numpy()).max() <= tolerance, name
    mask = np.ones_like(IDS)
    mask[0, 6:] = 0
    found = run(opened, IDS, mask=mask)["last_hidden_state"]
    alone = run(opened, IDS[:1, :6])["last_hidden_state"]
    assert np.abs(found[0, :6] - alone[0]).max() <= 1e-5


def test_an_encoder_computes_its_heads_with_one_operator(bert, another, tmp_path):
    artifact, _ = write(another, bert, tmp_path, "w8", accuracy_level="1")
    nodes = onnx.load(artifact / "model.onnx", load_external_data=False).graph.node
    kinds = [node.op_type for node in nodes]
    assert kinds.count("MultiHeadAttention") == 2
    assert "GatherND" not in kinds  # its mask is the padding as it is given
    mask = np.ones_like(IDS)
    mask[0, 5:] = mask[1, 2:] = 0
    with torch.no_grad():
        states = decoded(bert, artifact)(torch.tensor(IDS), attention_mask=torch.tensor(mask))
    found = run(session(artifact), IDS, mask=mask)["last_hidden_state"]
    off = np.abs(found - states.last_hidden_state.numpy())
    assert off[mask.astype(bool)].max() <= 1e-5
