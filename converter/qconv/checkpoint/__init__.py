"""Lazy, bounds-checked reading of source checkpoints: safetensors, quantized or not, and GGUF."""

from __future__ import annotations

from qconv.checkpoint._decoded import DecodedCheckpoint
from qconv.checkpoint._files import FileCheckpoint
from qconv.checkpoint._gguf_header import gguf_metadata
from qconv.checkpoint._gguf_value import GgufValue
from qconv.checkpoint._open import open_checkpoint
from qconv.checkpoint._source import Checkpoint
from qconv.checkpoint._stored import torch_dtype
from qconv.checkpoint._strict_json import parse_object

__all__ = [
    "Checkpoint",
    "DecodedCheckpoint",
    "FileCheckpoint",
    "GgufValue",
    "gguf_metadata",
    "open_checkpoint",
    "parse_object",
    "torch_dtype",
]
