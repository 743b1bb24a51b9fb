"""What observers are told while qconv works. Public by way of :mod:`qconv.plugin`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Union


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrating:
    """The model is being set up to run on calibration text. windows: how many, 0: all there are."""

    source: str
    windows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockStarted:
    """A block's statistics are about to be taken. number: from 0, of ``blocks``."""

    block: str
    number: int
    blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionStarted:
    """Work begins. weights and nbytes_out count all targets; resumed_nbytes is already on disk.

    warnings: what the user should know of the source and the plan
    """

    source: str
    targets: tuple[str, ...]
    tensors: int
    weights: int
    nbytes_out: int
    resumed_nbytes: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFinished:
    """A tensor, or a slab of its rows, is on disk for one target. ``last``: the tensor is whole."""

    target: str
    tensor: str
    weights: int
    nbytes: int
    last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparing:
    """A transcoded artifact is being compared with its source. done: tensors, of ``tensors``."""

    target: str
    done: int
    tensors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactFinished:
    """A target's files are whole, checked and under their final names."""

    target: str
    files: tuple[Path, ...]
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionFinished:
    """All targets are done. seconds: wall time."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionFailed:
    """The conversion stopped; nothing appeared under a final name."""

    error: BaseException


Event = Union[
    Calibrating,
    ConversionStarted,
    BlockStarted,
    TensorFinished,
    Comparing,
    ArtifactFinished,
    ConversionFinished,
    ConversionFailed,
]
