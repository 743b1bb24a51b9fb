"""Reading parameters from the checkpoint: whole source tensors, placed piece by piece."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from qconv.checkpoint import Checkpoint
    from qconv.model._pieces import Piece

#: Rows of an embedding that are read at once when only some of them are needed.
_SLAB = 4096


class Weights:
    """Parameters by name, read when asked for.

    Peak memory of a read: the parameter, and one source tensor as stored.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        pieces: Mapping[str, tuple[Piece, ...]],
        device: torch.device,
    ) -> None:
        self._checkpoint = checkpoint
        self.pieces = pieces
        self.device = device

    def source(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """A source tensor in its own shape."""
        info = self._checkpoint.model.tensors[name]
        rows = 1
        for size in info.shape[:-1]:
            rows *= size
        raw = self._checkpoint.read_rows(name, 0, rows)
        return raw.reshape(info.shape).to(self.device).to(dtype)

    def parameter(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """A parameter or persistent buffer, in the shape and dtype of ``like``."""
        import torch

        pieces = self.pieces[name]
        if len(pieces) == 1 and pieces[0].is_whole(like, self.shape(pieces[0].source)):
            return self.source(pieces[0].source, like.dtype)
        filled = torch.empty(like.shape, dtype=like.dtype, device=self.device)
        for piece in pieces:
            value = self.source(piece.source, like.dtype)
            piece.of_parameter(filled).copy_(piece.of_source(value))
        return filled

    def rows(self, name: str, rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Some rows of a parameter that is one source tensor.

        rows: (n,) int64, sorted
        """
        import torch

        source = self.pieces[name][0].source
        found = []
        for start in range(0, like.shape[0], _SLAB):
            stop = min(start + _SLAB, like.shape[0])
            inside = rows[(rows >= start) & (rows < stop)]
            if len(inside):
                slab = self._checkpoint.read_rows(source, start, stop)
                found.append(slab[inside - start].to(self.device).to(like.dtype))
        return torch.cat(found)

    def shape(self, source: str) -> tuple[int, ...]:
        """Shape of a source tensor."""
        return self._checkpoint.model.tensors[source].shape
