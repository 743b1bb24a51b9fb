"""Inspects a checkpoint or artifact: types, sizes, tokenizer, and the soundness of all values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from qconv._host import load_plugins
from qconv._sources import open_source
from qconv.checkpoint import DecodedCheckpoint, open_checkpoint
from qconv.errors import Unsupported
from qconv.inspection._report import Inspection, TensorRow, TypeShare
from qconv.inspection._tokenizer import summarise_tokenizer
from qconv.inspection._values import summarise

if TYPE_CHECKING:
    from qconv._sources import OpenedSource
    from qconv.inspection._values import ValueSummary
    from qconv.plugin import ModelInfo, TensorInfo

#: Called with a tensor's name, bytes read so far, and bytes to read in all.
Progress = Callable[[str, int, int], None]


def inspect(
    path: str | Path, *, values: bool = True, progress: Progress | None = None
) -> Inspection:
    """Look into a Hugging Face directory, a safetensors file or index, or a GGUF file.

    A quantized checkpoint is shown as the model it stands for, with its grids as types.

    Peak memory: the headers and 16 MB of float32 values, several times over while they are counted;
    for a quantized checkpoint besides, what :class:`qconv.checkpoint.DecodedCheckpoint` states.

    values: False reads headers only
    progress: called with a tensor's name, bytes read so far, and bytes to read in all

    Raises:
        UnreadableInput: the source is missing, malformed or hostile, or not a checkpoint.
    """
    opened, warnings = _open(path)
    with opened as checkpoint:
        model = checkpoint.model
        rows = tuple(_rows(checkpoint, values=values, progress=progress))
        tokenizer, tokenizer_problems = summarise_tokenizer(model)
        parameters = sum(info.numel for info in model.tensors.values())
        stored = sum(row.nbytes for row in rows)
        return Inspection(
            path=Path(path),
            kind=model.kind,
            architecture=architecture(model),
            name=model.name,
            parameters=parameters,
            nbytes=checkpoint.nbytes,
            bits_per_weight=_bits(stored, parameters),
            tokenizer=tokenizer,
            types=_types(rows),
            tensors=rows,
            warnings=(*checkpoint.warnings, *warnings),
            problems=(*tokenizer_problems, *_problems(rows)),
        )


def _open(path: str | Path) -> tuple[OpenedSource, tuple[str, ...]]:
    """The checkpoint, as stored where it cannot be decoded, and a warning that says so."""
    try:
        return open_source(path, load_plugins(), require_config=False), ()
    except Unsupported as error:
        opened = open_checkpoint(path, require_config=False)
        return opened, (f"shown as stored, not decoded: {error}",)


def _rows(
    checkpoint: OpenedSource, *, values: bool, progress: Progress | None
) -> Iterable[TensorRow]:
    tensors = checkpoint.model.tensors
    total, done = sum(info.nbytes for info in tensors.values()), 0
    for name, info in tensors.items():
        dtype, nbytes = _stored(checkpoint, info)
        summary: ValueSummary | None = None
        if values:
            summary = summarise(checkpoint, info, _share_of(info, done, total, progress))
        done += info.nbytes
        yield TensorRow(
            name=name,
            shape=info.shape,
            dtype=dtype,
            nbytes=nbytes,
            bits_per_weight=_bits(nbytes, info.numel),
            values=summary,
        )


def _stored(checkpoint: OpenedSource, info: TensorInfo) -> tuple[str, int]:
    """The type of a tensor on disk, its grid's name where it is packed, and its bytes there."""
    if isinstance(checkpoint, DecodedCheckpoint) and info.name in checkpoint.encoded:
        return checkpoint.encoded[info.name].grid.name, checkpoint.stored_nbytes(info.name)
    return info.dtype, info.nbytes


def _share_of(
    info: TensorInfo, done: int, total: int, progress: Progress | None
) -> Callable[[float], None]:
    def report(share: float) -> None:
        if progress is not None:
            progress(info.name, done + int(share * info.nbytes), total)

    return report


def _bits(nbytes: int, parameters: int) -> float | None:
    return nbytes * 8 / parameters if parameters else None


def architecture(model: ModelInfo) -> str | None:
    """As config.json or the GGUF metadata name it; None when they do not."""
    if model.kind == "gguf":
        stored = model.metadata.get("general.architecture")
        return None if stored is None else str(stored.value)
    named = model.config.get("architectures")
    if isinstance(named, list) and named and isinstance(named[0], str):
        return named[0]
    family = model.config.get("model_type")
    return family if isinstance(family, str) else None


def _types(rows: Iterable[TensorRow]) -> Mapping[str, TypeShare]:
    by_type: dict[str, list[TensorRow]] = {}
    for row in rows:
        by_type.setdefault(row.dtype, []).append(row)
    return {
        dtype: TypeShare(
            tensors=len(members),
            parameters=sum(prod(row.shape) for row in members),
            nbytes=sum(row.nbytes for row in members),
        )
        for dtype, members in sorted(by_type.items())
    }


def _problems(rows: Iterable[TensorRow]) -> Iterable[str]:
    for row in rows:
        values = row.values
        if values is None:
            continue
        if values.nans or values.infs:
            yield (
                f"tensor {row.name!r}: {values.nans} NaN and {values.infs} infinite values; "
                "the weights are damaged, get them anew"
            )
        if values.abs_max == 0 and not values.nans and not values.infs:
            yield f"tensor {row.name!r}: all values are zero; check that it was trained and saved"
