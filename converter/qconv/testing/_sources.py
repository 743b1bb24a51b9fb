"""Checks a source on a checkpoint: what it recognizes, announces, and makes of the parts."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from qconv.errors import BrokenPlugin

from ._failed import ConformanceError, require

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from qconv.checkpoint import DecodedCheckpoint, FileCheckpoint
    from qconv.plugin import EncodedTensor, Source, SourceSpec


def check_source(spec: SourceSpec, path: str | Path) -> None:
    """Check a source on a quantized checkpoint of its family.

    path: as :func:`qconv.checkpoint.open_checkpoint` takes it

    Raises:
        ConformanceError: the checkpoint is not recognized, or what it stands for is, too; nothing
            is decoded; parts are modified, two calls differ, or a value is not finite.
    """
    from qconv.checkpoint import open_checkpoint

    what = f"source '{spec.name}'"
    with open_checkpoint(path) as stored:
        require(spec.recognizes(stored.model), f"{what}: does not recognize {path}")
        source = spec.load()()
        decoded = _decoded(stored, source, spec.name)
        require(decoded.encoded, f"{what}: names no quantized tensor of {path}")
        require(
            not spec.recognizes(decoded.model),
            f"{what}: recognizes the model without its quantization_config, too",
        )
        for tensor in decoded.encoded.values():
            _check_tensor(f"{what}: tensor {tensor.name!r}", source, tensor, stored)


def _decoded(stored: FileCheckpoint, source: Source, family: str) -> DecodedCheckpoint:
    from qconv.checkpoint import DecodedCheckpoint

    try:
        return DecodedCheckpoint(stored, source, family)
    except BrokenPlugin as error:
        raise ConformanceError(str(error)) from error


def _check_tensor(what: str, source: Source, tensor: EncodedTensor, stored: FileCheckpoint) -> None:
    import torch

    parts = {name: _read(stored, name) for name in tensor.parts}
    kept = {name: value.clone() for name, value in parts.items()}
    value = source.decode(tensor, parts)
    require(
        parts.keys() == kept.keys()
        and all(torch.equal(_bytes(part), _bytes(kept[name])) for name, part in parts.items()),
        f"{what}: decode modified the parts",
    )
    require(
        value.grid == tensor.grid and value.shape == tensor.shape,
        f"{what}: decode gives shape {value.shape} on {value.grid.name}, but tensors() said "
        f"{tensor.shape} on {tensor.grid.name}",
    )
    require(value.same(source.decode(tensor, kept)), f"{what}: a second call gives other codes")
    require(torch.isfinite(value.dequantize()).all(), f"{what}: decoded values that are not finite")


def _read(stored: FileCheckpoint, name: str) -> torch.Tensor:
    shape = stored.model.tensors[name].shape
    return stored.read_rows(name, 0, prod(shape[:-1])).reshape(shape)


def _bytes(value: torch.Tensor) -> torch.Tensor:
    import torch

    return value.contiguous().reshape(-1).view(torch.uint8)
