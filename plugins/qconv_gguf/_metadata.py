"""The metadata of a file made from a Llama checkpoint, as llama.cpp's converter writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qconv.errors import Unsupported

from ._byte_level import byte_level_vocabulary, is_byte_level
from ._container import Metadata, Value, ValueType, float32, string, uint32
from ._gguf_source import file_type_metadata
from ._sentencepiece import is_sentencepiece_json, json_vocabulary, model_vocabulary
from ._special_tokens import special_tokens
from ._tokenizer_files import TokenizerFiles, mapping, read_tokenizer_files

if TYPE_CHECKING:
    from qconv.plugin import ModelInfo

    from ._config import LlamaConfig
    from ._types import FileType
    from ._vocabulary import Vocabulary

_SIZE = re.compile(r"\d+(\.\d+)?[kmbt]", re.IGNORECASE)
#: generation_config.json -> llama.cpp's default for sampling, and its type.
_SAMPLING = {
    "top_k": ("general.sampling.top_k", ValueType.INT32),
    "top_p": ("general.sampling.top_p", ValueType.FLOAT32),
    "min_p": ("general.sampling.min_p", ValueType.FLOAT32),
    "temperature": ("general.sampling.temp", ValueType.FLOAT32),
    "repetition_penalty": ("general.sampling.penalty_repeat", ValueType.FLOAT32),
}


def llama_metadata(
    model: ModelInfo, config: LlamaConfig, target: FileType, options: Mapping[str, str]
) -> Metadata:
    """All keys, in llama.cpp's order: general, architecture, tokenizer, file type.

    Raises:
        UnreadableInput: no tokenizer, or a damaged one.
        Unsupported: a tokenizer that llama.cpp would not follow.
    """
    files = read_tokenizer_files(model.files)
    vocabulary = read_vocabulary(files, config.vocab, options.get("pre") or None)
    return {
        "general.architecture": string("llama"),
        "general.type": string("model"),
        **_sampling(files.generation),
        **_names(model),
        **_architecture(config),
        **vocabulary.metadata(),
        **special_tokens(files, vocabulary, model.config),
        **file_type_metadata(target),
    }


def read_vocabulary(files: TokenizerFiles, rows: int, pre: str | None) -> Vocabulary:
    """The vocabulary in whichever files it comes, padded to ``rows``.

    pre: the user's word that llama.cpp treats text so, and its name for it

    Raises:
        Unsupported: a kind of tokenizer that llama.cpp's Llama models do not have.
    """
    if files.tokenizer and is_byte_level(files.tokenizer):
        return byte_level_vocabulary(files, rows, pre)
    if files.sentencepiece is not None:
        return model_vocabulary(files, rows, trusted=pre is not None)
    if is_sentencepiece_json(files.tokenizer):
        return json_vocabulary(files, rows, trusted=pre is not None)
    kind = mapping(files.tokenizer.get("model"), "tokenizer.json: model").get("type")
    raise Unsupported(
        f"tokenizer.json: a {kind} model that is neither byte-level nor falls back on bytes; "
        "llama.cpp's Llama models need byte-level BPE or SentencePiece BPE (tokenizer.model)"
    )


def _sampling(generation: Mapping[str, Any]) -> dict[str, Value]:
    values = {}
    for name, (key, value_type) in _SAMPLING.items():
        value = generation.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            whole = value_type is ValueType.INT32
            values[key] = Value(value_type, int(value) if whole else float(value))
    return values


def _names(model: ModelInfo) -> dict[str, Value]:
    """Name, and what can be read off it: ``smollm2-135m-instruct`` is SmolLM2, 135M, instruct."""
    weights = sum(info.numel for info in model.tensors.values())
    parts = [part for part in model.name.split("-") if part]
    at = next((i for i, part in enumerate(parts) if i and _SIZE.fullmatch(part)), None)
    values = {"general.name": string(_title(parts) or model.name or "model")}
    if at is None:
        return {**values, "general.size_label": string(_size_label(weights))}
    if parts[at + 1 :]:
        values["general.finetune"] = string("-".join(parts[at + 1 :]))
    values["general.basename"] = string("-".join(parts[:at]))
    values["general.size_label"] = string(parts[at].upper())
    return values


def _title(parts: list[str]) -> str:
    return " ".join(
        part.title() if part.islower() and part[0].isalpha() else part for part in parts
    )


def _size_label(weights: int) -> str:
    """Two significant digits at least: ``135M``, ``1.2B``."""
    scales = {"T": 1e12, "B": 1e9, "M": 1e6, "K": 1e3}
    suffix = next((name for name, scale in scales.items() if weights > scale), "K")
    scaled = weights / scales[suffix]
    return f"{scaled:.{1 if scaled < 9.5 else 0}f}{suffix}"


def _architecture(config: LlamaConfig) -> dict[str, Value]:
    return {
        "llama.block_count": uint32(config.layers),
        "llama.context_length": uint32(config.context),
        "llama.embedding_length": uint32(config.hidden),
        "llama.feed_forward_length": uint32(config.intermediate),
        "llama.attention.head_count": uint32(config.heads),
        "llama.attention.head_count_kv": uint32(config.kv_heads),
        **config.rope.metadata(),
        "llama.attention.layer_norm_rms_epsilon": float32(config.rms_norm_eps),
        "llama.attention.key_length": uint32(config.head_dim),
        "llama.attention.value_length": uint32(config.head_dim),
        "llama.vocab_size": uint32(config.vocab),
        "llama.rope.dimension_count": uint32(config.head_dim),
    }
