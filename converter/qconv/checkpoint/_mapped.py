"""A memory-mapped file whose reads are bounds-checked copies that leave no pages behind."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconv.errors import NotEnoughResources, UnreadableInput

if TYPE_CHECKING:
    import numpy as np
    import torch

#: Bytes copied before their pages go back to the system; 4 MB stay in the processor's cache.
_PIECE = 4 * 1024 * 1024


class MappedFile:
    """A regular file, mapped read-only; safe to read from several threads.

    Peak memory: the bytes returned plus one piece of 4 MB per reading thread.

    size: bytes when opened
    mtime_ns: modification time when opened, nanoseconds since the epoch
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        fd = _open_regular(path)
        try:
            self.mtime_ns = os.fstat(fd).st_mtime_ns
            self._map: mmap.mmap | None = _map(fd, path)
        finally:
            os.close(fd)  # the mapping keeps a descriptor of its own
        self.size = len(self._map)

    @property
    def buffer(self) -> mmap.mmap:
        """The mapping, for parsing headers in place."""
        if self._map is None:
            raise ValueError(f"{self.path}: the checkpoint is closed")
        return self._map

    def copy(self, offset: int, nbytes: int) -> torch.Tensor:
        """Bytes ``offset:offset + nbytes`` in memory of their own, (nbytes,) uint8.

        Raises:
            UnreadableInput: the range is not in the file, or the file changed its size.
            NotEnoughResources: the copy does not fit in memory.
        """
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise UnreadableInput(
                f"{self.path}: bytes {offset} to {offset + nbytes} are not within its "
                f"{self.size} bytes; the file is damaged, get it anew"
            )
        out = _empty(nbytes, self.path)
        target = out.numpy()
        for start in range(0, nbytes, _PIECE):
            stop = min(start + _PIECE, nbytes)
            self.check_size()
            self._copy_piece(offset + start, target[start:stop])
        return out

    def check_size(self) -> None:
        """Refuse a file that changed its size: touching pages past the end would kill the process.

        Raises:
            UnreadableInput: the size is not the one the file had when opened.
        """
        size = self.buffer.size()
        if size != self.size:
            raise UnreadableInput(
                f"{self.path}: changed from {self.size} to {size} bytes while being read; "
                "let whatever writes to it finish, then start again"
            )

    def release(self, offset: int, nbytes: int) -> None:
        """Give the pages of a range back; they are read from the file again when next touched."""
        advice = getattr(mmap, "MADV_DONTNEED", None)
        mapped = self._map
        if advice is None or mapped is None or not nbytes:
            return
        start = offset - offset % mmap.PAGESIZE
        mapped.madvise(advice, start, offset + nbytes - start)

    def close(self) -> None:
        """Unmap the file; closing twice is fine. End reads in other threads first."""
        mapped, self._map = self._map, None
        if mapped is None:
            return
        # A view that is still in use frees the mapping when it goes.
        with contextlib.suppress(BufferError):
            mapped.close()

    def _copy_piece(self, offset: int, target: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        import numpy as np

        count = len(target)
        source = np.frombuffer(self.buffer, dtype=np.uint8, count=count, offset=offset)
        np.copyto(target, source)  # lets other threads run meanwhile
        del source
        self.release(offset, count)


def _open_regular(path: Path) -> int:
    # Without O_NONBLOCK, opening a FIFO that took the file's place would wait for ever.
    flags = (
        os.O_RDONLY
        | getattr(os, "O_CLOEXEC", 0)
        | getattr(os, "O_NONBLOCK", 0)
        | getattr(os, "O_BINARY", 0)
    )
    try:
        refuse_irregular(path, path.stat())
        fd = os.open(path, flags)
    except (OSError, ValueError) as error:
        raise UnreadableInput(
            f"{path}: cannot be opened: {error}; check the path and its permissions"
        ) from error
    try:
        refuse_irregular(path, os.fstat(fd))
    except UnreadableInput:
        os.close(fd)
        raise
    return fd


def refuse_irregular(path: Path, status: os.stat_result) -> None:
    """Refuse devices, pipes, sockets and directories.

    Raises:
        UnreadableInput: not a regular file.
    """
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableInput(
            f"{path}: not a regular file (mode {stat.filemode(status.st_mode)}); "
            "devices, pipes and directories are not read as files, name a file on disk"
        )


def _map(fd: int, path: Path) -> mmap.mmap:
    if not os.fstat(fd).st_size:
        raise UnreadableInput(f"{path}: the file is empty (0 bytes); get it anew")
    try:
        return mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError, OverflowError) as error:
        raise UnreadableInput(
            f"{path}: cannot be mapped into memory: {error}; copy it to a local disk"
        ) from error


def _empty(nbytes: int, path: Path) -> torch.Tensor:
    import torch

    try:
        return torch.empty(nbytes, dtype=torch.uint8)
    except (MemoryError, RuntimeError) as error:
        raise NotEnoughResources(
            f"{path}: {nbytes} bytes of one tensor do not fit in memory; "
            "free memory or use a larger machine"
        ) from error
