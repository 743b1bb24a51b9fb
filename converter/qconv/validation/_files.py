"""The files of an artifact: how large they are, and their checksums."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qconv._sources import OpenedSource

_CHUNK = 1 << 22  # bytes hashed at a time


def files_of(path: Path) -> dict[str, Path]:
    """The files of an artifact by their names relative to it, sorted; a file is its only one."""
    if not path.is_dir():
        return {path.name: path}
    found = [each for each in path.rglob("*") if each.is_file()]
    return {each.relative_to(path).as_posix(): each for each in sorted(found)}


def digests_of(path: Path, progress: Callable[[str, int, int], None]) -> dict[str, str]:
    """SHA-256 of every file, as hex. progress: called with a name, bytes done, bytes to do."""
    files = files_of(path)
    total, done = sum(each.stat().st_size for each in files.values()), 0
    digests = {}
    for name, file in files.items():
        sha256 = hashlib.sha256()
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                sha256.update(chunk)
                done += len(chunk)
                progress(f"checksum of {name}", done, total)
        digests[name] = sha256.hexdigest()
    return digests


def source_digest(source: OpenedSource) -> str:
    """What tells one source from another: names, shapes, dtypes, config and companions, as hex.

    Weights are not hashed: that would read the source once more.
    """
    sha256 = hashlib.sha256()
    model = source.model
    for name in sorted(model.tensors):
        info = model.tensors[name]
        sha256.update(f"{name} {info.shape} {info.dtype} {info.nbytes}\n".encode())
    for name in sorted(model.files):
        sha256.update(f"{name} {hashlib.sha256(model.files[name]).hexdigest()}\n".encode())
    return sha256.hexdigest()
