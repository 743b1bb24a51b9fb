"""The metadata of a file made from a Llama checkpoint, as llama.cpp's converter writes it."""

from __future__ import annotations

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
    """What llama.cpp's converter reads off a name, ``Mistral-7B-Instruct-v0.3`` for example."""
    import gguf

    metadata: Any = gguf.Metadata
    weights = sum(info.numel for info in model.tensors.values())
    _, _, basename, finetune, version, size = metadata.get_model_id_components(model.name, weights)
    values = {
        "general.name": metadata.id_to_title(model.name) or model.name or "model",
        "general.version": version,
        "general.finetune": finetune,
        "general.basename": basename,
        "general.size_label": size or gguf.size_label(weights, weights, 0, 0),
    }
    return {key: string(text) for key, text in values.items() if text}


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
