"""Artifacts as the host itself reads them: rows on demand, so that a sample costs a sample.

A GGUF comes with a fast header, where the ``gguf`` library takes seconds for a vocabulary, and its
values decoded by that library; quantized safetensors are decoded by the source plugin that reads
anybody's checkpoints. Neither shares code with the backend that wrote the file.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qconv._sources import open_source
from qconv.checkpoint import DecodedCheckpoint
from qconv.errors import QconvError
from qconv.planning import matrix_shape

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from qconv._host import Host
    from qconv._sources import OpenedSource
    from qconv.plugin import ArtifactReader, EncodedTensor, TensorInfo

#: What unpacking a tensor's codes costs beside reading its values.
_UNPACKING = 1 / 4


class StoredReader:
    """The :class:`qconv.plugin.ArtifactReader` of an opened checkpoint. A context manager."""

    def __init__(self, opened: OpenedSource) -> None:
        self._opened = opened
        self._tensors = {name: self._info(name) for name in opened.model.tensors}

    def _info(self, name: str) -> TensorInfo:
        """A tensor as it is stored, not as the float model has it."""
        info, opened = self._opened.model.tensors[name], self._opened
        if not isinstance(opened, DecodedCheckpoint) or name not in opened.encoded:
            return info
        grid = opened.encoded[name].grid
        return replace(info, dtype=grid.name, nbytes=opened.stored_nbytes(name))

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors by name; the dtype of a quantized one is its grid's name."""
        return self._tensors

    @property
    def encoded(self) -> Mapping[str, EncodedTensor]:
        """The tensors that a source plugin decodes, by name."""
        return self._opened.encoded if isinstance(self._opened, DecodedCheckpoint) else {}

    def read(self, name: str) -> torch.Tensor:
        """Decode one tensor to float32."""
        shape = self.tensors[name].shape
        rows, _ = matrix_shape(shape)
        return self.read_rows(name, 0, rows).reshape(shape)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Decode rows ``start:stop`` to float32."""
        return self._opened.read_rows(name, start, stop).float()

    def close(self) -> None:
        """Unmap the files."""
        self._opened.close()


def open_stored(path: Path, host: Host) -> StoredReader | None:
    """Open an artifact that is a checkpoint the host reads; None for what is none.

    Of a graph the host knows where initializers lie, and not what operators make of them.
    """
    try:
        opened = open_source(path, host)
    except QconvError:
        return None  # its backend's own reader says what is wrong, if anything is
    if opened.model.kind == "onnx":
        opened.close()
        return None
    return StoredReader(opened)


def cost(reader: ArtifactReader, name: str) -> int:
    """What decoding single rows of a tensor takes, in values decoded: little, or the whole."""
    numel = reader.tensors[name].numel
    if not hasattr(reader, "read_rows"):
        return numel
    return int(numel * _UNPACKING) if name in getattr(reader, "encoded", {}) else 0
