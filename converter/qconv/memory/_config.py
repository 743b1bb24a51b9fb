"""The shape of a model from its config.json.

Names and meanings of keys: https://github.com/huggingface/transformers, ``configuration_*.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qconv.errors import UnreadableInput, Unsupported
from qconv.memory._kinds import ATTENDING, KEEPING, layer_kinds
from qconv.memory._numbers import Numbers
from qconv.memory._shape import Attention, Cache, Latent, ModelShape
from qconv.memory._states import state_of
from qconv.memory._text import TextConfig
from qconv.memory._windows import windows_of

#: Where configs of models for more than text keep the part for text.
_TEXT = ("text_config", "llm_config", "language_config")

#: Left out of published configs, as they are the class's defaults in transformers. Gemma 3's of
#: 4 billion parameters, for one, has neither heads nor head_dim.
_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
    },
    "gemma3n_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "vocab_size": 262_400,
        "max_position_embeddings": 32_768,
    },
}

#: Model types that read a text as a whole, and keep nothing: where no architecture is named.
_ENCODERS = frozenset(
    {"albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert"}
    | {"mpnet", "nomic_bert", "roberta", "xlm-roberta"}
)

_HEADS = ("num_attention_heads", "n_head", "n_heads")

#: Where DBRX and MPT keep numbers, and which of them matter.
_NESTED = ("attn_config", "ffn_config")
_OF_NESTED = ("kv_n_heads", "ffn_hidden_size", "moe_top_k")

#: Model types that make text, whatever their architectures are called.
_SPEAKING = frozenset({"chatglm"})

#: Ends of the architectures in a config that give logits token by token.
_DECODERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def shape_of_config(config: Mapping[str, Any], name: str = "config.json") -> ModelShape:
    """The shape of the model that ``config`` describes; its part for text, where it has several.

    name: of the model, for messages

    Raises:
        UnreadableInput: a number is missing or is none.
        Unsupported: an encoder with a decoder, or layers whose memory is not known.
    """
    part = _text_part(config)
    family = str(part.get("model_type") or config.get("model_type") or "")
    if config.get("is_encoder_decoder"):
        raise Unsupported(
            f"{name}: model_type {family!r} has an encoder and a decoder, whose memory is not "
            "predicted; run it and look, e.g. with nvidia-smi"
        )
    values = {**_DEFAULTS.get(family, {}), **_given(part)}
    text = TextConfig(values=values, numbers=Numbers(values, name), family=family)
    notes: list[str] = []
    decodes = _decodes(config)
    return ModelShape(
        family=family,
        layers=_layers(text, notes) if decodes else ((),) * _count(text.numbers),
        hidden=_hidden(text.numbers),
        vocab=(text.numbers.find("vocab_size", "padded_vocab_size") or 0) if decodes else 0,
        inner=_inner(text.numbers),
        heads=_query_values(text.numbers),
        context_length=text.numbers.find(
            "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"
        ),
        query_heads=text.numbers.find(*_HEADS) or 0,
        notes=tuple(notes),
    )


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in _TEXT:
        part = config.get(key)
        if isinstance(part, Mapping):
            return part
    return config


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
    nested = [each for each in map(config.get, _NESTED) if isinstance(each, Mapping)]
    inner = {key: each[key] for each in nested for key in _OF_NESTED if key in each}
    return {key: each for key, each in {**inner, **config}.items() if each is not None}


def _decodes(config: Mapping[str, Any]) -> bool:
    """Whether the model makes text token by token, and so keeps what it has seen."""
    if config.get("model_type") in _SPEAKING:
        return True
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        return config.get("model_type") not in _ENCODERS
    return str(names[0]).endswith(_DECODERS)


def _count(numbers: Numbers) -> int:
    count = numbers.need("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    if not 0 < count <= 4096:
        raise UnreadableInput(
            f"num_hidden_layers {count}: models have between 1 and 4096 layers; "
            "get config.json anew from the model's publisher"
        )
    return count


def _layers(text: TextConfig, notes: list[str]) -> tuple[tuple[Cache, ...], ...]:
    listed = "num_hidden_layers" not in text.values and "layers_block_type" in text.values
    kinds = layer_kinds(text, None if listed else _count(text.numbers))
    windows = windows_of(text, kinds, notes)
    heads = _kv_heads(text, len(kinds))
    own = len(kinds) - (text.numbers.find("num_kv_shared_layers") or 0)
    made: list[tuple[Cache, ...]] = []
    for index, kind in enumerate(kinds):
        caches: list[Cache] = []
        if kind in ATTENDING and index < own and text.numbers.find("kv_lora_rank"):
            caches += _latent(text.numbers, kind)
        elif kind in ATTENDING and index < own:
            caches.append(_attention(text, index, heads[index], windows[index]))
        if kind in KEEPING:
            caches.append(state_of(text))
        made.append(tuple(caches))
    return tuple(made)


def _kv_heads(text: TextConfig, layers: int) -> list[int]:
    """Key-value heads of every layer; as many as queries where nothing says otherwise."""
    if _one_for_all(text):
        return [1] * layers
    names: tuple[str, ...] = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads")
    if text.values.get("multi_query_attention"):  # ChatGLM: groups of queries share a head
        names = ("multi_query_group_num", *names)
    written = text.numbers.per_layer(layers, *names)
    return written or [text.numbers.find(*_HEADS) or 0] * layers


def _one_for_all(text: TextConfig) -> bool:
    """One key-value head for all queries: Falcon 7B and StarCoder say it by a flag."""
    newer = text.family == "falcon" and bool(text.values.get("new_decoder_architecture"))
    return bool(text.values.get("multi_query")) and not newer


def _attention(text: TextConfig, index: int, kv_heads: int, window: int | None) -> Attention:
    """What an attending layer keeps per token."""
    own = Numbers(_of_layer(text.values, index), f"per_layer_config of layer {index}")
    wide = text.numbers if window is None else Numbers({}, "")  # Gemma 4's global layers
    width = (
        own.find("head_dim")
        or wide.find("global_head_dim")
        or _head_dim(text.numbers, text.numbers.need(*_HEADS))
    )
    heads = own.find("num_key_value_heads") or wide.find("num_global_key_value_heads") or kv_heads
    values = text.numbers.find("v_head_dim") or width
    return Attention(keys=heads * width, values=heads * values, window=window)


def _latent(numbers: Numbers, kind: str) -> list[Cache]:
    rotary = numbers.need("qk_rope_head_dim")
    keys = (numbers.find("qk_nope_head_dim") or 0) + rotary
    expanded = numbers.need("num_attention_heads") * (keys + (numbers.find("v_head_dim") or keys))
    latent = Latent(width=numbers.need("kv_lora_rank") + rotary, expanded=expanded)
    indexer = numbers.find("index_head_dim") if kind == "indexed_attention" else None
    # DeepSeek's sparse attention keeps one more key per token, by which it chooses tokens
    return [latent, *([Attention(keys=indexer, values=0)] if indexer else [])]


def _of_layer(config: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    """What config says of one layer alone, as Gemma 4's do."""
    every = config.get("per_layer_config")
    if not isinstance(every, Mapping):
        return {}
    for key in (str(index), f"{index:02d}", f"{index:03d}"):
        own = every.get(key)
        if isinstance(own, Mapping):
            return own
    return {}


def _hidden(numbers: Numbers) -> int:
    return numbers.need("hidden_size", "n_embd", "d_model", "dim")


def _head_dim(numbers: Numbers, heads: int) -> int:
    return numbers.find("head_dim", "attention_head_dim", "kv_channels") or (
        _hidden(numbers) // max(1, heads)
    )


def _query_values(numbers: Numbers) -> int:
    """Values of a token's queries; in latent attention, as they meet the latent vectors."""
    heads = numbers.find(*_HEADS)
    if not heads:
        return _hidden(numbers)
    rank = numbers.find("kv_lora_rank")
    if rank:
        return heads * (rank + numbers.need("qk_rope_head_dim"))
    return heads * _head_dim(numbers, heads)


def _inner(numbers: Numbers) -> int:
    """The widest intermediate; of experts, those that one token goes through together."""
    dense = numbers.largest("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff")
    dense = dense or 4 * _hidden(numbers)
    expert = numbers.find("moe_intermediate_size", "expert_ffn_hidden_size")
    used = numbers.find("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k")
    return max(dense, (expert or dense) * used) if used else dense
