"""What a partial artifact holds: a line per finished slab, checked before it is believed."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Slab:
    """Rows ``start:stop`` of an artifact tensor."""

    tensor: str
    start: int
    stop: int


class Journal:
    """An append-only file of finished slabs with the CRC-32 of their bytes.

    A line is written after its bytes. Nothing is flushed to disk line by line: after a power loss
    the checksums tell which slabs survived. They guard against torn writes, not against malice.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def append(self, slab: Slab, checksum: int) -> None:
        """Record a finished slab."""
        self._file.write(json.dumps([slab.tensor, slab.start, slab.stop, checksum]) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_journal(path: Path) -> dict[Slab, int]:
    """Finished slabs and their checksums; a torn last line is passed over."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return dict(entry for entry in map(_entry, lines) if entry is not None)


def _entry(line: str) -> tuple[Slab, int] | None:
    try:
        tensor, start, stop, checksum = json.loads(line)
        slab = Slab(tensor=tensor, start=start, stop=stop)
        hash(slab)
    except (TypeError, ValueError):
        return None
    return slab, checksum


def checksum_of(buffers: Iterable[bytes | memoryview]) -> int:
    """CRC-32 over a slab's buffers, one after the other."""
    checksum = 0
    for buffer in buffers:
        checksum = zlib.crc32(buffer, checksum)
    return checksum
