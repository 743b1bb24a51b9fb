"""A file whose header is read in place by mapping it, and its weights by bounds-checked copies.

Weights are copied by positioned reads, not through the mapping: a file that shrinks or a disk that
fails is then an error to tell, where touching a mapped page would kill the process (SIGBUS).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from qconv.errors import NotEnoughResources, UnreadableInput

if TYPE_CHECKING:
    import torch


class MappedFile:
    """A regular file, mapped read-only; safe to read from several threads.

    Peak memory: the bytes returned.

    size: bytes when opened
    mtime_ns: modification time when opened, nanoseconds since the epoch
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = _open_regular(path)
        try:
            _, self.mtime_ns = self._state()
            self._map: mmap.mmap | None = _map(self._fd, path)
        except BaseException:
            os.close(self._fd)
            raise
        self.size = len(self._map)

    @property
    def buffer(self) -> mmap.mmap:
        """The mapping, for parsing headers in place."""
        if self._map is None:
            raise self._closed()
        return self._map

    def copy(self, offset: int, nbytes: int) -> torch.Tensor:
        """Bytes ``offset:offset + nbytes`` in memory of their own, (nbytes,) uint8.

        Raises:
            UnreadableInput: the range is not in the file, or the file changed since it was opened.
            NotEnoughResources: the copy does not fit in memory.
        """
        if self._map is None:  # the descriptor's number may be another file's by now
            raise self._closed()
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise UnreadableInput(
                f"{self.path}: bytes {offset} to {offset + nbytes} are not within its "
                f"{self.size} bytes; the file is damaged, get it anew"
            )
        out = _empty(nbytes, self.path)
        target = out.numpy().data
        while target:
            count = self._read_into(target, offset)
            if not count:
                raise self._changed()
            target, offset = target[count:], offset + count
        if self._state() != (self.size, self.mtime_ns):
            raise self._changed()
        return out

    def _closed(self) -> ValueError:
        return ValueError(f"{self.path}: the checkpoint is closed")

    def _state(self) -> tuple[int, int]:
        """Size and modification time as they are now."""
        status = os.fstat(self._fd)
        return status.st_size, status.st_mtime_ns

    def _changed(self) -> UnreadableInput:
        """The error for a file that is being written to: half old and half new is neither."""
        size, _ = self._state()
        how = f"from {self.size} to {size} bytes" if size != self.size else "in place"
        return UnreadableInput(
            f"{self.path}: changed {how} while being read; "
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
        os.close(self._fd)
        # A view that is still in use frees the mapping when it goes.
        with contextlib.suppress(BufferError):
            mapped.close()

    def _read_into(self, target: memoryview, offset: int) -> int:
        """Fill some of ``target`` from ``offset`` on; how much."""
        if not hasattr(os, "preadv"):  # Windows, where a mapped file cannot shrink
            target[:] = self.buffer[offset : offset + len(target)]
            return len(target)
        try:
            return os.preadv(self._fd, [target], offset)
        except OSError as error:
            raise UnreadableInput(
                f"{self.path}: bytes from {offset} on cannot be read: {error.strerror}; "
                "check the disk, or get the file anew"
            ) from error


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
