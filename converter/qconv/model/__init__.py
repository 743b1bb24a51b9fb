"""The forward pass of a checkpoint, block by block: never the whole model in memory."""

from __future__ import annotations

from qconv.engines import resolve_device
from qconv.model._block_model import BlockInfo, BlockModel, open_model
from qconv.model._exact import exact_arithmetic
from qconv.model._hidden import Hidden
from qconv.model._live import LiveBlock
from qconv.model._pieces import LinearRef, Piece
from qconv.model._probe import folding_error, probe_block
from qconv.model._probe_check import FOLD_TOLERANCE
from qconv.model._tail import Tail
from qconv.model._topology import (
    BlockFold,
    LinearPart,
    Topology,
    Verdict,
    apply_fold,
    apply_folds,
)

__all__ = [
    "FOLD_TOLERANCE",
    "BlockFold",
    "BlockInfo",
    "BlockModel",
    "Hidden",
    "LinearPart",
    "LinearRef",
    "LiveBlock",
    "Piece",
    "Tail",
    "Topology",
    "Verdict",
    "apply_fold",
    "apply_folds",
    "exact_arithmetic",
    "folding_error",
    "open_model",
    "probe_block",
    "resolve_device",
]
