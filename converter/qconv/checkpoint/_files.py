"""A checkpoint made of mapped files: hands out rows on demand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from qconv.checkpoint._mapped import MappedFile
    from qconv.checkpoint._stored import StoredTensor
    from qconv.plugin import ModelInfo


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """A weight file and the bytes of its header."""

    file: MappedFile
    header: bytes = field(repr=False)


class FileCheckpoint:
    """The :class:`qconv.checkpoint.Checkpoint` of files on disk. Safe to read from several threads.

    Peak memory: the headers, the companions, the rows in hand, and 4 MB per reading thread.
    """

    def __init__(
        self,
        *,
        model: ModelInfo,
        tensors: Mapping[str, StoredTensor],
        files: Sequence[OpenedFile],
        warnings: tuple[str, ...],
    ) -> None:
        self._model = model
        self._tensors = tensors
        self._files = tuple(files)
        self._warnings = warnings

    @property
    def model(self) -> ModelInfo:
        """The source without its weights."""
        return self._model

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user must know, e.g. that the source is quantized already."""
        return self._warnings

    @property
    def nbytes(self) -> int:
        """Bytes of all weight files, headers included."""
        return sum(opened.file.size for opened in self._files)

    def fingerprint(self) -> str:
        """SHA-256, as hex, over names, sizes, modification times and headers of the files.

        Companion files count with all their bytes.
        """
        parts = [
            (opened.file.path.name, opened.file.size, opened.file.mtime_ns, opened.header)
            for opened in self._files
        ]
        parts += [(name, len(data), 0, data) for name, data in self._model.files.items()]
        digest = hashlib.sha256()
        for name, size, mtime_ns, header in sorted(parts):
            # repr keeps the fields apart, whatever a name holds
            digest.update(
                repr((name, size, mtime_ns, len(header))).encode("utf-8", "backslashreplace")
            )
            digest.update(header)
        return digest.hexdigest()

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop``, (stop - start, last dimension), in the stored dtype.

        Block-quantized rows come decoded to float32. The tensor owns its memory.

        Raises:
            UnreadableInput: the file changed its size, or the type cannot be decoded.
        """
        tensor = self._tensor(name, start, stop)
        per_row = tensor.columns // tensor.block
        values = tensor.decode(tensor.copy(start * per_row, stop * per_row))
        return values.reshape(stop - start, tensor.columns)

    def read_raw(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop`` as stored: (stop - start, bytes per row) uint8."""
        tensor = self._tensor(name, start, stop)
        per_row = tensor.columns // tensor.block
        raw = tensor.copy(start * per_row, stop * per_row)
        return raw.reshape(stop - start, tensor.row_nbytes)

    def read_part(self, name: str, row: int, start: int, stop: int) -> torch.Tensor:
        """Columns ``start:stop`` of one row, one dimension, for rows too long to hold whole.

        Both bounds must lie between blocks, see :meth:`block`.
        """
        tensor = self._tensor(name, row, row + 1)
        if start % tensor.block or stop % tensor.block or not 0 <= start <= stop <= tensor.columns:
            raise ValueError(
                f"tensor {name!r}: columns {start}:{stop} must be within {tensor.columns} and "
                f"multiples of {tensor.block}"
            )
        first = row * (tensor.columns // tensor.block)
        return tensor.decode(
            tensor.copy(first + start // tensor.block, first + stop // tensor.block)
        )

    def place(self, name: str) -> tuple[Path, int, int]:
        """The file that a tensor is in, the offset of its first byte there, and its bytes."""
        tensor = self._tensor(name, 0, 0)
        return tensor.file.path, tensor.offset, tensor.info.nbytes

    def block(self, name: str) -> int:
        """How many consecutive values of a row are stored together: 1 unless quantized."""
        return self._tensor(name, 0, 0).block

    def close(self) -> None:
        """Unmap the files; closing twice is fine."""
        for opened in self._files:
            opened.file.close()

    def __enter__(self) -> FileCheckpoint:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _tensor(self, name: str, start: int, stop: int) -> StoredTensor:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise KeyError(f"the checkpoint has no tensor {name!r}; see model.tensors")
        if not 0 <= start <= stop <= tensor.rows:
            raise ValueError(
                f"tensor {name!r}: rows {start}:{stop} are not within its {tensor.rows} rows"
            )
        return tensor
