"""A GGUF as the host itself reads it: a fast header, and values decoded by the ``gguf`` library.

The library's own reader takes seconds for a vocabulary. This one shares no code with the backend
that wrote the file either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qconv.checkpoint import open_checkpoint
from qconv.planning import matrix_shape

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from qconv.checkpoint import FileCheckpoint
    from qconv.plugin import TensorInfo


class StoredReader:
    """The :class:`qconv.plugin.ArtifactReader` of an opened checkpoint."""

    def __init__(self, opened: FileCheckpoint) -> None:
        self._opened = opened

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors by name."""
        return self._opened.model.tensors

    def read(self, name: str) -> torch.Tensor:
        """Decode one tensor to float32."""
        shape = self.tensors[name].shape
        rows, _ = matrix_shape(shape)
        return self._opened.read_rows(name, 0, rows).float().reshape(shape)


def open_stored(path: Path) -> StoredReader | None:
    """Open a GGUF; None for what is none.

    Raises:
        UnreadableInput: it is a damaged one.
    """
    if path.suffix.lower() != ".gguf":
        return None
    return StoredReader(open_checkpoint(path, require_config=False))
