"""A GGUF file seen as the Hugging Face checkpoint of the same model.

llama.cpp's converter renames tensors, reorders the query and key rows of ``llama`` for its own way
of rotating, and keeps config and tokenizer as metadata; all of that is undone. Facts:
https://github.com/ggml-org/llama.cpp, ``gguf-py/gguf/constants.py`` and ``src/llama-vocab.cpp``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qconv.plugin import Dropped

from ._gguf_architecture import read_architecture
from ._gguf_keys import Keys
from ._gguf_rope import FACTORS
from ._gguf_special import generation, read_specials, tokenizer_config
from ._gguf_tensors import view_tensors
from ._gguf_tokenizer import tokenizer_json
from ._gguf_vocabulary import read_vocabulary
from ._view import HuggingFaceView

if TYPE_CHECKING:
    import torch

    from qconv.plugin import ModelInfo


def as_hugging_face(
    model: ModelInfo, read: Callable[[str], torch.Tensor] | None = None
) -> HuggingFaceView:
    """Config, tokenizer and tensors as transformers has them.

    read: a tensor of the model, whole; Llama 3's rotation is told by one

    Raises:
        Unsupported: an architecture, rotation or tokenizer that is not translated.
        UnreadableInput: metadata is missing or impossible, or tensors contradict it.
    """
    keys = Keys(model.metadata)
    architecture = read_architecture(keys, model, read)
    vocabulary = read_vocabulary(keys, architecture.vocab)
    specials = read_specials(keys, vocabulary)
    files = {
        "tokenizer.json": tokenizer_json(keys, vocabulary, specials),
        "tokenizer_config.json": tokenizer_config(vocabulary, specials, architecture.context),
        "generation_config.json": generation(keys, specials),
    }
    texts = {name: _json(values) for name, values in files.items()}
    if set(specials.templates) == {"default"}:
        texts["chat_template.jinja"] = specials.templates["default"].encode()
    return HuggingFaceView(
        config={**architecture.config(), **specials.ids()},
        files=texts,
        tensors=view_tensors(model, architecture),
        dropped=tuple(
            Dropped(name=name, reason="config.json states the formula of these factors")
            for name in model.tensors
            if name == FACTORS
        ),
    )


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, indent=2).encode("utf-8")
