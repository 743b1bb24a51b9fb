"""What calibration will take: an estimate from shapes alone, before any model is built."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from qconv.planning._json import CalibrationPlanJson
    from qconv.plugin import ModelInfo, TensorInfo

#: Everything up to the first number in a tensor's name: ``model.layers.3``.
_BLOCK = re.compile(r"(?:[^.]+\.)*?\d+(?=\.)")

#: Copies of a block's weights in float32 at one time: as read, in the module, as a transform left
#: them, and decoded again or in a candidate's grid.
_BLOCK_COPIES = 4

#: Bytes that transformers, tokenizers and their imports add: measured at 330 MB.
_LIBRARIES_NBYTES = 350_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationPlan:
    """The calibration pass of a conversion.

    source: where the text comes from, for people
    windows, window_length: how many runs of how many tokens
    statistics: ``shared``: of the float model, for all targets; ``sequential``: of the blocks as
        each target has quantized them
    device, dtype: what the forward pass runs on and in
    nbytes: upper estimate of the memory it adds
    """

    source: str
    windows: int
    window_length: int
    statistics: Literal["shared", "sequential"]
    device: str
    dtype: str
    nbytes: int

    def to_json(self) -> CalibrationPlanJson:
        """As JSON-able data."""
        return {
            "source": self.source,
            "windows": self.windows,
            "window_length": self.window_length,
            "statistics": self.statistics,
            "device": self.device,
            "dtype": self.dtype,
            "nbytes": self.nbytes,
        }


def plan_calibration(
    model: ModelInfo,
    *,
    source: str,
    windows: int,
    window_length: int,
    statistics: Literal["shared", "sequential"],
    device: str,
    dtype: str,
    streams: int,
) -> CalibrationPlan:
    """Estimate a calibration pass: one block, its statistics, the hidden states, the embeddings.

    streams: sets of hidden states, one for each target when statistics are sequential
    """
    blocks = group_blocks(model.tensors)
    inside = {info.name for block in blocks.values() for info in block}
    block = max((sum(info.numel for info in each) for each in blocks.values()), default=0)
    grams = max((_gram_values(each) for each in blocks.values()), default=0)
    outside = sum(info.numel for info in model.tensors.values() if info.name not in inside)
    hidden = windows * window_length * _hidden_size(model.config)
    values = _BLOCK_COPIES * block + 2 * grams + outside + (1 + streams) * hidden
    return CalibrationPlan(
        source=source,
        windows=windows,
        window_length=window_length,
        statistics=statistics,
        device=device,
        dtype=dtype,
        nbytes=4 * values + _LIBRARIES_NBYTES,
    )


def group_blocks(tensors: Mapping[str, TensorInfo]) -> Mapping[str, list[TensorInfo]]:
    """Tensors by the block that their names put them in; those in no block are left out."""
    blocks: dict[str, list[TensorInfo]] = {}
    for name, info in tensors.items():
        if match := _BLOCK.match(name):
            blocks.setdefault(match.group(), []).append(info)
    return blocks


def _gram_values(block: Iterable[TensorInfo]) -> int:
    """Values of all Gram matrices, as if no two weights but those of equal shape shared one."""
    inputs = {(info.shape[-1], info.shape[0]) for info in block if len(info.shape) == 2}
    stacked = [info for info in block if len(info.shape) > 2]
    return sum(size * size for size, _ in inputs) + sum(
        prod(info.shape[:-2]) * info.shape[-1] ** 2 for info in stacked
    )


def _hidden_size(config: Mapping[str, object]) -> int:
    for key in ("hidden_size", "n_embd", "d_model", "dim"):
        size = config.get(key)
        if isinstance(size, int):
            return size
    return 0
