"""What config.json says of a Llama model, checked; what it leaves out is as transformers has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qconv.errors import UnreadableInput, Unsupported

from ._rope import Rope, read_rope

_ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral"}
#: Defaults of transformers' configurations where the two families differ.
_KV_HEADS = {"llama": None, "mistral": 8}
_CONTEXT = {"llama": 2048, "mistral": 131072}
_SLIDING_WINDOW = {"llama": None, "mistral": 4096}


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """A Llama or Mistral model. hidden, intermediate: features; context: tokens.

    context: longest sequence for which llama.cpp computes what the model computes
    """

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    rms_norm_eps: float
    rope: Rope
    tied: bool
    attention_bias: bool
    mlp_bias: bool


def read_config(config: Mapping[str, Any]) -> LlamaConfig:
    """Read ``config.json``.

    Raises:
        Unsupported: another architecture, or a feature that llama.cpp's ``llama`` does not have.
        UnreadableInput: a value is missing or impossible.
    """
    family = _family(config)
    _refuse_features(config)
    heads = _count(config, "num_attention_heads")
    hidden = _count(config, "hidden_size")
    head_dim = _count(config, "head_dim", hidden // heads)
    kv_heads = _count(config, "num_key_value_heads", _KV_HEADS[family] or heads)
    if heads % kv_heads or head_dim % 2:
        raise UnreadableInput(
            f"config.json: {heads} heads over {kv_heads} key-value heads of {head_dim} features; "
            "heads must be a multiple of key-value heads, and a head's features even: correct it"
        )
    context = _count(config, "max_position_embeddings", _CONTEXT[family])
    window = config.get("sliding_window", _SLIDING_WINDOW[family])
    biased = family == "llama"  # transformers' Mistral has no biases whatever the file says
    return LlamaConfig(
        vocab=_count(config, "vocab_size"),
        hidden=hidden,
        intermediate=_count(config, "intermediate_size"),
        layers=_count(config, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        # llama.cpp's llama attends to everything: right only as far as the window reaches
        context=min(context, window) if isinstance(window, int) and window > 0 else context,
        rms_norm_eps=_number(config, "rms_norm_eps", 1e-6),
        rope=read_rope(config, head_dim=head_dim, context=context),
        tied=bool(config.get("tie_word_embeddings", False)),
        attention_bias=biased and bool(config.get("attention_bias", False)),
        mlp_bias=biased and bool(config.get("mlp_bias", False)),
    )


def _family(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    if isinstance(names, list) and names:
        found = names[0] if isinstance(names[0], str) else repr(names[0])
        if found in _ARCHITECTURES:
            return _ARCHITECTURES[found]
    else:
        found = f"model_type {config.get('model_type')!r}"
        if config.get("model_type") in set(_ARCHITECTURES.values()):
            return str(config["model_type"])
    raise Unsupported(
        f"config.json: architecture {found} cannot be written as GGUF; this version converts "
        f"{' and '.join(_ARCHITECTURES)}, and any model that already is a GGUF file"
    )


def _refuse_features(config: Mapping[str, Any]) -> None:
    experts = config.get("num_local_experts") or config.get("num_experts")
    if experts:
        raise Unsupported(
            f"config.json: a mixture of {experts} experts is not supported from safetensors; "
            "convert it to a float GGUF with llama.cpp and give that to qconv"
        )
    if config.get("quantization_config"):
        raise Unsupported(
            "config.json: the checkpoint is quantized already (quantization_config); "
            "start from the float checkpoint"
        )
    activation = config.get("hidden_act", "silu")
    if activation not in {"silu", "swish"}:
        raise Unsupported(
            f"config.json: hidden_act {activation!r} is not what llama.cpp's llama computes; "
            "only silu is"
        )


def _count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise UnreadableInput(
            f"config.json: {key} is {value!r}, but must be a whole number above 0; correct it"
        )
    return value


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise UnreadableInput(
            f"config.json: {key} is {value!r}, but must be a number from 0 up; correct it"
        )
    return float(value)
