"""SHA-256 of a file that is written out of order, taken as it is written."""

from __future__ import annotations

import hashlib
import os

_CHUNK = 1 << 22  # bytes read back at a time


class RunningDigest:
    """Hashes a file front to back while its parts arrive in any order.

    A part that arrives where the digest stands is hashed from memory; one that arrives early is
    read back from the file (the page cache, as a rule) once the gap before it is closed.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._sha256 = hashlib.sha256()
        self._position = 0
        self._early: dict[int, int] = {}

    def written(self, offset: int, data: bytes | memoryview) -> None:
        """Note that ``data`` now stands at ``offset``."""
        if offset == self._position:
            self._sha256.update(data)
            self._position += len(data)
            self._catch_up()
        elif len(data):
            self._early[offset] = len(data)

    def on_disk(self, offset: int, nbytes: int) -> None:
        """Note that the file already holds ``nbytes`` right bytes at ``offset``."""
        if nbytes:
            self._early[offset] = nbytes
            self._catch_up()

    def hexdigest(self, nbytes: int) -> str:
        """The digest of the whole file.

        Raises:
            RuntimeError: some of the file's ``nbytes`` bytes were never written.
        """
        if self._position != nbytes:
            raise RuntimeError(f"bytes from {self._position} of {nbytes} were never written")
        return self._sha256.hexdigest()

    def _catch_up(self) -> None:
        while self._position in self._early:
            nbytes = self._early.pop(self._position)
            for chunk in read_back(self._descriptor, self._position, nbytes):
                self._sha256.update(chunk)
            self._position += nbytes


def read_back(descriptor: int, offset: int, nbytes: int) -> list[bytes]:
    """Bytes of an open file in chunks; shorter when the file ends early."""
    chunks = []
    while nbytes > 0:
        os.lseek(descriptor, offset, os.SEEK_SET)
        chunk = os.read(descriptor, min(nbytes, _CHUNK))
        if not chunk:
            break
        chunks.append(chunk)
        offset += len(chunk)
        nbytes -= len(chunk)
    return chunks
