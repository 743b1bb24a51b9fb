"""The bytes around the tensors: safetensors headers, shards and their index.

Format: https://huggingface.co/docs/safetensors (an 8-byte length, JSON, then the data without
gaps). Data lies widest dtype first, as the safetensors library writes it, so that every tensor is
aligned; the header is padded with spaces to 8 bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from qconv.errors import UnreadableInput
from qconv.plugin import FilePlan, Layout, Place

from ._part import DTYPE_NBYTES, Part

_ALIGNMENT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A tensor of the model and the parts it is stored as.

    name: the model's
    rows: of the weight, for parts by rows
    parts: in the order they are encoded in, each with its full name
    """

    name: str
    rows: int
    parts: tuple[tuple[str, Part], ...]

    @property
    def nbytes(self) -> int:
        """Bytes on disk, headers apart."""
        return sum(part.nbytes for _, part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A stored tensor and where its data starts, from the end of the header."""

    name: str
    part: Part
    offset: int


def lay_out(folder: str, tensors: Sequence[Stored], shard_nbytes: int) -> Layout:
    """The weights files of an artifact, an index if there are several, and every place.

    shard_nbytes: the most a file may hold, headers apart; a larger tensor has one of its own

    Raises:
        UnreadableInput: two tensors would be stored under one name.
    """
    _refuse_shared_names(tensors)
    shards = _split(tensors, shard_nbytes)
    files: list[FilePlan] = []
    places: dict[str, tuple[Place, ...]] = {}
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = _file_name(number, len(shards))
        file, placed = _lay_out_shard(f"{folder}/{name}", shard)
        files.append(file)
        places |= placed
        weight_map |= {full: name for each in shard for full, _ in each.parts}
    if len(shards) > 1:
        total = sum(each.nbytes for each in tensors)
        files.append(
            small_file(f"{folder}/model.safetensors.index.json", _index(weight_map, total))
        )
    return Layout(files=tuple(files), places=places)


def _refuse_shared_names(tensors: Sequence[Stored]) -> None:
    owners: dict[str, str] = {}
    for tensor in tensors:
        for name, _ in tensor.parts:
            other = owners.setdefault(name, tensor.name)
            if other != tensor.name:
                raise UnreadableInput(
                    f"tensor {name!r}: tensors {other!r} and {tensor.name!r} of the source would "
                    "both be stored under this name; what it holds beside the weight is left of "
                    "another quantization: take it out, or start from the float checkpoint"
                )


def small_file(path: str, data: bytes) -> FilePlan:
    """A file whose bytes are all known beforehand."""
    return FilePlan(path=path, header=data, nbytes=len(data))


def json_bytes(value: Any) -> bytes:  # noqa: ANN401 -- any JSON
    """JSON as Hugging Face libraries write it, keys sorted."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _split(tensors: Sequence[Stored], limit: int) -> list[list[Stored]]:
    shards: list[list[Stored]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.nbytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    return shards


def _file_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"


def _index(weight_map: dict[str, str], total: int) -> bytes:
    return json_bytes({"metadata": {"total_size": total}, "weight_map": weight_map})


def _lay_out_shard(
    path: str, tensors: Sequence[Stored]
) -> tuple[FilePlan, dict[str, tuple[Place, ...]]]:
    entries = _entries(tensors)
    header = _header(entries)
    size = len(header) + sum(entry.part.nbytes for entry in entries)
    starts = {entry.name: len(header) + entry.offset for entry in entries}
    fixed = b"".join(
        entry.part.constant
        for entry in entries
        if entry.part.in_header and entry.part.constant is not None
    )
    places = {
        tensor.name: tuple(
            Place(
                file=path,
                offset=starts[name],
                nbytes=part.nbytes,
                row_nbytes=part.nbytes // tensor.rows if part.by_rows else None,
                rows_together=part.rows_together,
            )
            for name, part in tensor.parts
            if not part.in_header
        )
        for tensor in tensors
    }
    return FilePlan(path=path, header=header + fixed, nbytes=size), places


def _entries(tensors: Iterable[Stored]) -> list[_Entry]:
    """All parts in the order of the data: known bytes first, then widest dtype first, by name."""
    parts = [(name, part) for tensor in tensors for name, part in tensor.parts]
    parts.sort(key=lambda item: (not item[1].in_header, -DTYPE_NBYTES[item[1].dtype], item[0]))
    entries, end = [], 0
    for name, part in parts:
        entries.append(_Entry(name=name, part=part, offset=end))
        end += part.nbytes
    return entries


def _header(entries: Sequence[_Entry]) -> bytes:
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    for entry in entries:
        end = entry.offset + prod(entry.part.shape) * DTYPE_NBYTES[entry.part.dtype]
        table[entry.name] = {
            "dtype": entry.part.dtype,
            "shape": list(entry.part.shape),
            "data_offsets": [entry.offset, end],
        }
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
