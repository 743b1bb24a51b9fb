"""The forward pass of a checkpoint, block by block: never the whole model in memory."""

from __future__ import annotations

from qconv.model._block_model import BlockInfo, BlockModel, open_model
from qconv.model._hidden import Hidden
from qconv.model._live import LiveBlock
from qconv.model._pieces import LinearRef, Piece
from qconv.model._tail import Tail

__all__ = [
    "BlockInfo",
    "BlockModel",
    "Hidden",
    "LinearRef",
    "LiveBlock",
    "Piece",
    "Tail",
    "open_model",
]
