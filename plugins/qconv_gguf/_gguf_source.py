"""A GGUF file as source: its metadata, kept as it is, and what the type mixture asks of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qconv.errors import UnreadableInput

from ._container import Metadata, Typed, Value, uint32
from ._mixture import Traits, seventy_b

if TYPE_CHECKING:
    from qconv.plugin import ModelInfo

    from ._types import FileType

#: Version of ggml's block formats (``GGML_QNT_VERSION``).
_QUANTIZATION_VERSION = 2
#: One file comes out, however many went in.
_SPLIT = frozenset({"split.no", "split.count", "split.tensors.count"})


def gguf_metadata(model: ModelInfo, target: FileType) -> Metadata:
    """All keys of the source in their order and types, but for the file type and split keys."""
    stamp = file_type_metadata(target)
    kept: dict[str, Typed] = {
        key: value
        for key, value in model.metadata.items()
        if key not in _SPLIT and key not in stamp
    }
    return {**kept, **stamp}


def file_type_metadata(target: FileType) -> dict[str, Value]:
    """What says how the file is quantized; llama.cpp's quantizer puts it last, in this order."""
    return {
        "general.quantization_version": uint32(_QUANTIZATION_VERSION),
        "general.file_type": uint32(target.number),
    }


def gguf_traits(model: ModelInfo) -> Traits:
    """What the mixture asks about the model.

    Raises:
        UnreadableInput: the file does not say its architecture or number of blocks.
    """
    metadata = model.metadata
    architecture = _value(metadata, "general.architecture")
    if not isinstance(architecture, str):
        raise UnreadableInput(
            "the GGUF file has no general.architecture; only models can be requantized"
        )
    layers = _number(metadata, f"{architecture}.block_count", None)
    heads = _number(metadata, f"{architecture}.attention.head_count", 0)
    kv_heads = _number(metadata, f"{architecture}.attention.head_count_kv", heads)
    return Traits(
        architecture=architecture,
        layers=layers,
        heads_per_kv=heads // kv_heads if kv_heads else 0,
        experts=_number(metadata, f"{architecture}.expert_count", 0),
        seventy_b=seventy_b(architecture, layers, grouped=heads != kv_heads),
    )


def _value(metadata: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401 -- whatever the file holds
    entry = metadata.get(key)
    return None if entry is None else entry.value


def _number(metadata: Mapping[str, Any], key: str, default: int | None) -> int:
    """A count; of a list with one per block, the first, as llama.cpp takes it."""
    value = _value(metadata, key)
    if value is None:
        value = default
    if isinstance(value, (list, tuple)):
        value = value[0] if value else None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UnreadableInput(
            f"the GGUF file's {key} is {value!r}, but must be a whole number; convert it again"
        )
    return value
