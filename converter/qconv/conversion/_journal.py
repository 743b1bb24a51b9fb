"""What a partial artifact holds: a line per finished slab, checked before it is believed."""

from __future__ import annotations

import hashlib
import json
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
    """An append-only file of finished slabs with the SHA-256 of their bytes.

    A line is written after its bytes. Nothing is flushed to disk line by line: after a power loss
    the digests tell which slabs survived.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def append(self, slab: Slab, digest: str) -> None:
        """Record a finished slab."""
        self._file.write(json.dumps([slab.tensor, slab.start, slab.stop, digest]) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_journal(path: Path) -> dict[Slab, str]:
    """Finished slabs and their digests; a torn last line is passed over."""
    if not path.is_file():
        return {}
    done = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            tensor, start, stop, digest = json.loads(line)
        except ValueError:
            continue
        done[Slab(tensor=tensor, start=start, stop=stop)] = digest
    return done


def digest_of(buffers: Iterable[bytes | memoryview]) -> str:
    """SHA-256 over a slab's buffers, one after the other."""
    sha256 = hashlib.sha256()
    for buffer in buffers:
        sha256.update(buffer)
    return sha256.hexdigest()
