"""GGUF files for the view of them as Hugging Face checkpoints, and the checkpoints it gives."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from gguf_models import llama_config
from safetensors.torch import save_file

from qconv._sources import whole_tensor
from qconv.checkpoint import open_checkpoint
from qconv_gguf._container import Value
from qconv_safetensors._gguf import as_hugging_face

if TYPE_CHECKING:
    from qconv.plugin import ModelInfo


#: The smallest model that holds a vocabulary.
SMALL = llama_config(
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
)


def described(path: Path) -> ModelInfo:
    """The file as the host describes it."""
    with open_checkpoint(path) as checkpoint:
        return checkpoint.model


def with_keys(model: ModelInfo, **changes: Any) -> ModelInfo:
    """Metadata changed; ``__`` stands for a dot, None takes a key away."""
    metadata = dict(model.metadata)
    for name, value in changes.items():
        key = name.replace("__", ".")
        metadata.pop(key, None)
        if value is not None:
            metadata[key] = Value(0, value)
    return replace(model, metadata=metadata)


def hugging_face(path: Path, folder: Path) -> Path:
    """The checkpoint that the view of a GGUF file stands for, in float32."""
    folder.mkdir(parents=True)
    with open_checkpoint(path) as checkpoint:
        view = as_hugging_face(checkpoint.model, partial(whole_tensor, checkpoint))
        weights = {}
        for tensor in view.tensors:
            shape = checkpoint.model.tensors[tensor.source].shape
            rows = shape[0] if len(shape) == 2 else 1
            values = checkpoint.read_rows(tensor.source, 0, rows).float().reshape(shape)
            if tensor.row_order is not None:
                values = values[torch.tensor(list(tensor.row_order.index))]
            assert tuple(values.shape) == tensor.shape
            weights[tensor.name] = values.contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(dict(view.config)))
    for name, data in view.files.items():
        (folder / name).write_bytes(data)
    return folder


def qwen_config(architecture: str, **changes: Any) -> dict[str, Any]:
    """config.json of a tiny Qwen2 or Qwen3."""
    config = {
        "architectures": [{"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[architecture]],
        "model_type": architecture,
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64 if architecture == "qwen3" else 32,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    }
    return {**config, **changes}


_BLOCK = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor of Qwen."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    _, _, layer, rest = name.split(".", 3)
    module, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{_BLOCK[module]}.{kind}"


def write_qwen(path: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> Path:
    """A GGUF file of a tiny Qwen, as llama.cpp's converter writes it, by the gguf library."""
    import gguf

    kind = config["model_type"]
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    tokens = [f"t{number}" for number in range(config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(["a", "b", "ab", *tokens[3:]])
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(2)
    for name, value in weights.items():
        writer.add_tensor(gguf_name(name), value.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def qwen_weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Random weights, biases and norms included, as transformers names them."""
    import transformers

    torch.manual_seed(0)
    settings = transformers.AutoConfig.for_model(**config)
    model = transformers.AutoModelForCausalLM.from_config(settings)
    for name, value in model.named_parameters():
        with torch.no_grad():
            middle = 1.0 if "norm" in name else 0.0
            value.copy_(middle + torch.randn(value.shape) * value.shape[-1] ** -0.5)
    found = {name: value.detach().clone() for name, value in model.state_dict().items()}
    if config["tie_word_embeddings"]:
        found.pop("lm_head.weight")
    return found
