"""What tells that a calibration file was made for a model: tokenizer and shapes of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qconv.plugin import ModelInfo

#: The files that decide which id a token has.
_VOCABULARY = ("added_tokens.json", "merges.txt", "tokenizer.json", "tokenizer.model", "vocab.json")


def tokenizer_digest(model: ModelInfo) -> str:
    """SHA-256, as hex, of the files that map text to ids."""
    present = [(name, model.files[name]) for name in _VOCABULARY if name in model.files]
    return _digest(part for name, data in present for part in (name.encode(), data))


def tensors_digest(model: ModelInfo) -> str:
    """SHA-256, as hex, of the names and shapes of all tensors; their values do not count."""
    infos = sorted(model.tensors.items())
    return _digest(repr((name, tuple(info.shape))).encode() for name, info in infos)


def _digest(parts: Iterable[bytes]) -> str:
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(len(part).to_bytes(8, "little"))
        sha256.update(part)
    return sha256.hexdigest()
