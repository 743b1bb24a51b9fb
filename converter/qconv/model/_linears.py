"""Which tensors of a block are linear weights, and where they are in its module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qconv.model._pieces import LinearRef, Piece

if TYPE_CHECKING:
    from torch import nn


def find_linears(
    module: nn.Module, pieces: Mapping[str, tuple[Piece, ...]]
) -> tuple[LinearRef, ...]:
    """The 2-D source tensors that are multiplied with activations.

    Those in ``weight`` of any module that is no table (Linear, Conv1D, a router), and those that
    are stacked to a 3-D parameter of fused experts.
    """
    found = []
    for path, each in pieces.items():
        parent, _, own = path.rpartition(".")
        owner = module.get_submodule(parent)
        parameter = getattr(owner, own)
        for piece in each:
            stacked = parameter.dim() == 3 and len(piece.axes) == 2
            plain = parameter.dim() == 2 and own == "weight" and _multiplies(owner)
            if len(piece.axes) == 2 and (stacked or plain):
                found.append(_linear(path, piece, flipped=_flipped(owner)))
    return tuple(found)


def _multiplies(owner: nn.Module) -> bool:
    from torch import nn

    return not isinstance(owner, (nn.Embedding, nn.EmbeddingBag))


def _flipped(owner: nn.Module) -> bool:
    """The module keeps its weights as ``(in, out)``."""
    return type(owner).__name__ == "Conv1D" or bool(getattr(owner, "is_transposed", False))


def _linear(path: str, piece: Piece, *, flipped: bool) -> LinearRef:
    outputs = len(piece.box) - (1 if flipped else 2)  # dimension of the parameter
    along = piece.axes.index(outputs)
    rows, inputs = piece.source_box[along], piece.source_box[1 - along]
    return LinearRef(
        source=piece.source,
        source_rows=rows,
        parameter=path,
        expert=piece.box[0][0] if len(piece.box) == 3 else None,
        rows=piece.box[outputs],
        transposed=along == 1,
        shape=(rows[1] - rows[0], inputs[1] - inputs[0]),
    )
