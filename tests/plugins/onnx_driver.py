"""Tiny models as checkpoints, converted to ONNX by the host, and run in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gguf_driver import fill, read_model

from qconv.plugin import PlanRequest

if TYPE_CHECKING:
    from qconv.tensors import QuantTensor
    from qconv_onnx._backend import OnnxBackend

LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 160,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
BERT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 160,
    "max_position_embeddings": 64,
}


def save_llama(folder: Path, **changes: Any) -> Path:
    """A Llama with values of some spread, saved in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return _save(LlamaForCausalLM, LlamaConfig(**{**LLAMA, **changes}), folder)


def save_bert(folder: Path, kind: str = "BertModel", **changes: Any) -> Path:
    """A BERT, with the head that ``kind`` names."""
    import transformers

    return _save(
        getattr(transformers, kind), transformers.BertConfig(**{**BERT, **changes}), folder
    )


#: A mixture of experts, by what its classes are called after.
MIXTURES: dict[str, dict[str, Any]] = {
    "GptOss": {"num_local_experts": 3, "head_dim": 16},
    "Mixtral": {"num_local_experts": 3},
    "Qwen3Moe": {"num_experts": 3, "moe_intermediate_size": 32, "head_dim": 16},
}


def save_mixture(folder: Path, kind: str, **changes: Any) -> Path:
    """A mixture of three experts, two to a token, in one block."""
    import transformers

    given = {**LLAMA, **MIXTURES[kind], "tie_word_embeddings": False, "num_hidden_layers": 1}
    given |= {"num_experts_per_tok": 2}
    config = getattr(transformers, f"{kind}Config")(**{**given, **changes})
    return _save(getattr(transformers, f"{kind}ForCausalLM"), config, folder)


def _save(kind: Any, config: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    model.save_pretrained(folder)
    return folder


def write(
    backend: OnnxBackend, source: Path, out: Path, target: str, **options: str
) -> tuple[Path, dict[str, QuantTensor | torch.Tensor]]:
    """Convert without the pipeline: the artifact's folder, and every value that was encoded."""
    model, weights = read_model(source)
    request = PlanRequest(model=model, format=target, options=options)
    plans = backend.plan_tensors(request)
    layout = backend.layout(request, plans)
    files = {file.path: bytearray(file.nbytes) for file in layout.files}
    for file in layout.files:
        files[file.path][: len(file.header)] = file.header
    values = {}
    for plan in plans.tensors:
        values[plan.name] = value = fill(plan, weights)
        parts = backend.encode(plan, value)
        for place, part in zip(layout.places[plan.name], parts, strict=True):
            data = bytes(part)
            assert len(data) == place.nbytes, plan.name
            files[place.file][place.offset : place.offset + place.nbytes] = data
    for path, data in files.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(data)
    return out / next(iter(files)).partition("/")[0], values


def decoded(source: Path, artifact: Path) -> Any:
    """The transformers model of ``source`` with the weights that the reader decodes."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from qconv_onnx._reader import OnnxReader

    config = AutoConfig.from_pretrained(source)
    causal = "CausalLM" in config.architectures[0]
    model = (AutoModelForCausalLM if causal else AutoModel).from_config(config, dtype=torch.float32)
    reader = OnnxReader(artifact)
    state = {name: reader.read(name) for name in reader.tensors}
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model.eval()


def session(artifact: Path, *, fuse: bool = True) -> Any:
    """Onnxruntime on the CPU. fuse: let it compute with codes where the graph decodes them."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if not fuse:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        artifact / "model.onnx", options, providers=["CPUExecutionProvider"]
    )


def run(
    opened: Any,
    ids: np.ndarray[Any, Any],
    past: Mapping[str, np.ndarray[Any, Any]] | None = None,
    mask: np.ndarray[Any, Any] | None = None,
) -> dict[str, np.ndarray[Any, Any]]:
    """All outputs by name; ``past``: what an earlier run gave as ``present``."""
    wanted = {each.name: each for each in opened.get_inputs()}
    kept = {
        name.replace("present", "past_key_values"): value for name, value in (past or {}).items()
    }
    feeds: dict[str, np.ndarray[Any, Any]] = {"input_ids": ids}
    before = next(iter(kept.values())).shape[2] if kept else 0
    everything = (
        np.ones((len(ids), before + ids.shape[1]), dtype=np.int64) if mask is None else mask
    )
    feeds["attention_mask"] = everything
    if "position_ids" in wanted:
        positions = np.clip(everything.cumsum(1) - 1, 0, None)
        feeds["position_ids"] = positions[:, before:]
    if "token_type_ids" in wanted:
        feeds["token_type_ids"] = np.zeros_like(ids)
    for name, each in wanted.items():
        if name.startswith("past_key_values."):
            kind = np.float16 if "16" in each.type else np.float32
            _, heads, _, size = each.shape
            empty = np.zeros((len(ids), heads, 0, size), dtype=kind)
            feeds[name] = kept.get(name, empty)
    names = [each.name for each in opened.get_outputs()]
    return dict(zip(names, opened.run(None, feeds), strict=True))
