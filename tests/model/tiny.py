"""Tiny random models of many architectures, saved as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VOCAB = 96
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA: dict[str, Any] = {
    **COMMON,
    "head_dim": 8,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "query_pre_attn_scalar": 8,
}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**COMMON, "tie_word_embeddings": False},
    "mistral": {**COMMON, "sliding_window": 4},
    "qwen2": {**COMMON, "tie_word_embeddings": True},
    "qwen3": {**COMMON, "head_dim": 8},
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "phi3": COMMON,
    "gpt2": {
        "vocab_size": VOCAB,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "opt": {
        **COMMON,
        "ffn_dim": 48,
        "word_embed_proj_dim": 24,
        "do_layer_norm_before": True,
    },
    "bert": COMMON,
    "mixtral": {**COMMON, **EXPERTS, "num_local_experts": 4, "sliding_window": None},
    "qwen3_moe": {
        **COMMON,
        **EXPERTS,
        "num_experts": 4,
        "moe_intermediate_size": 24,
        "head_dim": 8,
        "mlp_only_layers": [1],
        "decoder_sparse_step": 1,
    },
}
DECODERS = sorted(set(CONFIGS) - {"bert"})
EXPERT_MODELS = ("mixtral", "qwen3_moe")


def build(kind: str, **changes: Any) -> Any:
    """A transformers model with random weights, norms included, in eval mode."""
    from transformers import AutoModel, AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[kind](**{**CONFIGS[kind], **changes})
    torch.manual_seed(0)
    auto: Any = AutoModel if kind == "bert" else AutoModelForCausalLM
    attention = "eager" if kind == "gemma2" else "sdpa"  # its soft-capping is not in sdpa
    model = auto.from_config(config, attn_implementation=attention).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def save(kind: str, folder: Path, **changes: Any) -> Any:
    """Save a tiny model below ``folder`` and return it."""
    model = build(kind, **changes)
    model.save_pretrained(folder)
    return model


def windows(*lengths: int) -> list[torch.Tensor]:
    """Token windows of these lengths."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, VOCAB, (length,), generator=generator) for length in lengths]
