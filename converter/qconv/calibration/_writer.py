"""Writes a safetensors file whose tensors become known one by one, and which may not fit in memory.

The format wants the header first and no holes, and its readers want numbers of 8 bytes at
multiples of 8. So 8-byte tensors, which are few, wait in memory, 4-byte ones in a nameless file,
and the final file is put together at the end.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

from qconv.errors import NotEnoughResources, UsageError

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

_NAMES = {"float32": "F32", "float64": "F64", "int32": "I32", "int64": "I64"}
_COPIED_AT_ONCE = 8 * 1024 * 1024


class TensorWriter:
    """A context manager; the file has its name once :meth:`finish` returns, and not before.

    Peak memory: the 8-byte tensors, and one piece of the others.

    Raises:
        UsageError: the folder cannot be written to.
        NotEnoughResources: the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._wide: list[bytes] = []
        self._entries: list[tuple[str, str, tuple[int, ...], int, bool]] = []
        try:
            self._narrow: IO[bytes] = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115
        except OSError as error:
            raise UsageError(
                f"{path}: cannot be written there: {error}; choose another place with -o"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._narrow.close()

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Store a tensor of float32, float64, int32 or int64, from any device."""
        self._add(name, [tensor], tuple(tensor.shape))

    def add_pieces(self, name: str, pieces: Iterable[torch.Tensor]) -> None:
        """Store pieces of one dimension, all of one type, one after the other as one tensor."""
        self._add(name, pieces, None)

    def _add(
        self, name: str, pieces: Iterable[torch.Tensor], shape: tuple[int, ...] | None
    ) -> None:
        nbytes = count = 0
        dtype = ""
        for piece in pieces:
            values = piece.detach().cpu().contiguous().numpy()
            dtype, count = str(values.dtype), count + values.size
            nbytes += values.nbytes
            if values.itemsize == 8:
                self._wide.append(values.tobytes())
                continue
            try:
                self._narrow.write(values.data if values.size else b"")
            except OSError as error:
                raise _no_room(self._path, error) from error
        wide = _NAMES[dtype].endswith("64")
        self._entries.append((name, _NAMES[dtype], shape or (count,), nbytes, wide))

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Put the file together, and give it its name."""
        temporary = self._path.with_name(f".{self._path.name}.partial")
        try:
            with temporary.open("wb") as file:
                file.write(self._header(metadata))
                file.writelines(self._wide)
                self._narrow.seek(0)
                shutil.copyfileobj(self._narrow, file, _COPIED_AT_ONCE)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
        except OSError as error:
            raise _no_room(self._path, error) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _header(self, metadata: Mapping[str, str]) -> bytes:
        """https://github.com/huggingface/safetensors#format; padded to a multiple of 8 bytes."""
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        start = 0
        for name, dtype, shape, nbytes, _ in sorted(self._entries, key=lambda entry: not entry[4]):
            header[name] = {
                "dtype": dtype,
                "shape": list(shape),
                "data_offsets": [start, start + nbytes],
            }
            start += nbytes
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def _no_room(path: Path, error: OSError) -> Exception:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return NotEnoughResources(
            f"{path}: the disk is full ({error.strerror}); free space there, choose another "
            "place with -o, or keep only diagonals with --statistics diagonal"
        )
    return UsageError(f"{path}: cannot be written: {error}; choose another place with -o")
