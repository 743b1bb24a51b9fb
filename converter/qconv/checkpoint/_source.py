"""What the rest of the host knows of an opened checkpoint."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from qconv.plugin import ModelInfo


class Checkpoint(Protocol):
    """An opened source: its description, and its rows on demand. A context manager.

    "Rows" flatten all but the last dimension; a 1-D tensor is one row. Reading keeps no copy:
    pages that were read go back to the system, so resident memory stays at the rows in hand.
    """

    @property
    def model(self) -> ModelInfo:
        """The source without its weights."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user must know, e.g. that the source is quantized already."""
        ...

    def fingerprint(self) -> str:
        """Hex digest that changes when the source's files change (name, size, mtime, header)."""
        ...

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop``, (stop - start, last dimension), in the stored float dtype.

        Block-quantized rows come decoded to float32. The tensor owns its memory.

        Raises:
            UnreadableInput: the file shrank or cannot be read.
        """
        ...

    def read_raw(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop`` as stored: (stop - start, bytes per row) uint8."""
        ...

    def close(self) -> None:
        """Unmap the files."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
