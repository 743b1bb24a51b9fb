"""What an inspection finds, and its JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from qconv.inspection._tokenizer import TokenizerSummary
    from qconv.inspection._values import ValueSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRow:
    """One tensor.

    shape: outermost first
    dtype: as stored: ``F32 BF16 ...``, a GGUF block type such as ``Q4_K``, or the name of the grid
        that a packed weight lies on, such as ``int4_g128``
    nbytes: bytes on disk, all parts of a packed weight together
    bits_per_weight: as stored, block scales included; None for an empty tensor
    values: None when values were not asked for
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    bits_per_weight: float | None
    values: ValueSummary | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeShare:
    """How much of the checkpoint is stored in one type. nbytes: bytes on disk."""

    tensors: int
    parameters: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What a checkpoint or artifact holds.

    architecture: as config.json or the GGUF metadata name it; None when they do not
    parameters: values in all tensors
    nbytes: bytes of the weight files, headers included
    bits_per_weight: of the tensor data; None when all tensors are empty
    types: by stored type
    warnings: what the reader of the checkpoint had to say
    problems: damage found: NaN, infinity, tensors of zeros, companions that cannot be parsed
    """

    path: Path
    kind: Literal["safetensors", "gguf", "onnx"]
    architecture: str | None
    name: str
    parameters: int
    nbytes: int
    bits_per_weight: float | None
    tokenizer: TokenizerSummary | None
    types: Mapping[str, TypeShare]
    tensors: tuple[TensorRow, ...]
    warnings: tuple[str, ...]
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values; finite numbers only."""
        return {**asdict(self), "path": str(self.path)}
