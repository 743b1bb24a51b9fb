"""The artifact writer: fixed offsets in a hidden sibling, renamed only when whole.

While it grows, an artifact lives in ``.<name>.qconv-partial/`` beside its final place. What a
second run needs to go on (the files, the journal, the fingerprint) stays there; nothing else does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from qconv.conversion._digest import RunningDigest, read_back
from qconv.conversion._journal import Journal, Slab, checksum_of, read_journal
from qconv.errors import BrokenPlugin, NotEnoughResources, OutputExists, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from qconv.conversion._json import ArtifactJson
    from qconv.planning import TargetPlan
    from qconv.plugin import FilePlan, Place

_FINGERPRINT = "fingerprint"
_JOURNAL = "journal.jsonl"
_LOCK = "lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A finished artifact.

    files: final paths
    sha256: hex digest of each file, in the order of ``files``
    bits_per_weight: tensor data per value
    fallback_share: share of values stored in a fallback type, 0 to 1
    type_shares: share of values in each storage type, largest first
    """

    target: str
    files: tuple[Path, ...]
    sha256: tuple[str, ...]
    nbytes: int
    weights: int
    bits_per_weight: float
    fallback_share: float
    type_shares: Mapping[str, float]

    def to_json(self) -> ArtifactJson:
        """The artifact as JSON-able data (``schemas/conversion.schema.json``)."""
        return {
            "target": self.target,
            "files": [
                {"path": str(path), "sha256": digest}
                for path, digest in zip(self.files, self.sha256, strict=True)
            ],
            "nbytes": self.nbytes,
            "weights": self.weights,
            "bits_per_weight": self.bits_per_weight,
            "fallback_share": self.fallback_share,
            "type_shares": dict(self.type_shares),
        }


def final_path(out: Path, target: TargetPlan) -> Path:
    """What the artifact is called when whole: its only file, or the directory of all its files."""
    top = {PurePosixPath(file.path).parts[0] for file in target.layout.files}
    if len(top) != 1:
        raise BrokenPlugin(
            f"plugin author: {target.label} writes {sorted(top)}; put several files into one folder"
        )
    return out / top.pop()


def check_outputs(out: Path, targets: Sequence[TargetPlan], source: Path, *, force: bool) -> None:
    """Refuse outputs that would overwrite the source, one another, or, unforced, anything.

    Raises:
        OutputExists: names the path and the way out.
        UsageError: two targets write the same path, or ``out`` is not a directory.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"output directory {str(out)!r} is a file; choose a directory with --out")
    seen: dict[Path, str] = {}
    for target in targets:
        path = final_path(out, target)
        if path in seen:
            raise UsageError(
                f"targets {seen[path]} and {target.label} both write {str(path)!r}; "
                "convert them into different directories"
            )
        seen[path] = target.label
        if _same_place(path, source):
            raise OutputExists(
                f"output {str(path)!r} is the input itself; choose another directory with --out"
            )
        if not force and path.exists():
            raise OutputExists(
                f"output {str(path)!r} exists; pass --force to replace it once the new one is whole"
            )


def _same_place(path: Path, source: Path) -> bool:
    resolved, origin = path.resolve(), source.resolve()
    return resolved == origin or resolved in origin.parents


def partial_nbytes(out: Path, target: TargetPlan) -> int:
    """Bytes of disk that an unfinished run of this target holds already."""
    partial = _partial_path(final_path(out, target))
    if not partial.is_dir():
        return 0
    # st_blocks: a file is given its full length at once, but holds only what was written
    return sum(
        getattr(path.stat(), "st_blocks", 0) * 512 for path in partial.rglob("*") if path.is_file()
    )


def _partial_path(final: Path) -> Path:
    return final.with_name(f".{final.name}.qconv-partial")


class ArtifactWriter:
    """Writes one target's artifact; a context manager that seals nothing by itself.

    Peak memory: the headers.
    """

    def __init__(self, out: Path, target: TargetPlan, fingerprint: str, *, resume: bool) -> None:
        self._target = target
        self._final = final_path(out, target)
        self._partial = _partial_path(self._final)
        self._stack = contextlib.ExitStack()
        self._places = target.layout.places
        with _told_apart(out):
            out.mkdir(parents=True, exist_ok=True)
            self._partial.mkdir(exist_ok=True)
            self._stack.enter_context(_lock(self._partial, self._final))
            self._keep_or_discard(fingerprint, resume=resume)
            known = read_journal(self._partial / _JOURNAL)
            self._files = {file.path: self._open(file) for file in target.layout.files}
            self._digests = {path: RunningDigest(fd) for path, fd in self._files.items()}
            self._done = {slab for slab, checksum in known.items() if self._holds(slab, checksum)}
            self._journal = Journal(self._partial / _JOURNAL)
            self._stack.callback(self._journal.close)
            self._write_fixed()

    @property
    def done(self) -> frozenset[Slab]:
        """Slabs that an earlier run finished and that are still right."""
        return frozenset(self._done)

    def done_nbytes(self) -> int:
        """Bytes of tensor data that an earlier run left."""
        return sum(nbytes for slab in self._done for _, nbytes in self._ranges(slab))

    def write(self, slab: Slab, buffers: Sequence[bytes | memoryview]) -> int:
        """Write a slab's encoded parts at their offsets; returns the bytes written.

        Raises:
            BrokenPlugin: the buffers' sizes are not those of the layout.
            NotEnoughResources: the disk is full.
        """
        flat = [memoryview(buffer).cast("B") for buffer in buffers]
        ranges = self._ranges(slab)
        sizes = [nbytes for _, nbytes in ranges]
        if [len(buffer) for buffer in flat] != sizes:
            raise BrokenPlugin(
                f"plugin author: {self._target.label} encodes {slab.tensor!r} to "
                f"{[len(buffer) for buffer in flat]} bytes, its layout says {sizes}"
            )
        with _told_apart(self._final.parent):
            for place, (offset, _), buffer in zip(
                self._places[slab.tensor], ranges, flat, strict=True
            ):
                _write_at(self._files[place.file], offset, buffer)
                self._digests[place.file].written(offset, buffer)
            self._journal.append(slab, checksum_of(flat))
        return sum(sizes)

    def seal(self) -> Artifact:
        """Make everything durable, then give the artifact its final name."""
        digests = []
        with _told_apart(self._final.parent):
            for file in self._target.layout.files:
                os.fsync(self._files[file.path])
                digests.append(self._digests[file.path].hexdigest(file.nbytes))
            self._stack.close()
            staged = self._partial / "files" / self._final.name
            if self._final.is_dir() and not self._final.is_symlink():
                shutil.rmtree(self._final)  # only with --force: rename cannot replace a full folder
            staged.replace(self._final)
            _sync_directory(self._final.parent)
            shutil.rmtree(self._partial)
        target = self._target
        return Artifact(
            target=target.label,
            files=tuple(self._final.parent / file.path for file in target.layout.files),
            sha256=tuple(digests),
            nbytes=target.nbytes,
            weights=target.weights,
            bits_per_weight=target.bits_per_weight,
            fallback_share=target.fallback_share,
            type_shares=target.type_shares,
        )

    def discard(self) -> None:
        """Remove the partial artifact: the same input would fail the same way."""
        self._stack.close()
        shutil.rmtree(self._partial, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _keep_or_discard(self, fingerprint: str, *, resume: bool) -> None:
        mark = self._partial / _FINGERPRINT
        if resume and mark.is_file() and mark.read_text(encoding="utf-8") == fingerprint:
            return
        shutil.rmtree(self._partial / "files", ignore_errors=True)
        (self._partial / _JOURNAL).unlink(missing_ok=True)
        mark.write_text(fingerprint, encoding="utf-8")

    def _open(self, file: FilePlan) -> int:
        path = self._partial / "files" / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(path, flags, 0o666)
        self._stack.callback(os.close, descriptor)
        os.ftruncate(descriptor, file.nbytes)
        return descriptor

    def _holds(self, slab: Slab, checksum: int) -> bool:
        """Whether the bytes of a journalled slab are on disk as recorded."""
        if slab.tensor not in self._places:
            return False
        places, ranges = self._places[slab.tensor], self._ranges(slab)
        chunks: list[bytes] = []
        for place, (offset, nbytes) in zip(places, ranges, strict=True):
            chunks += read_back(self._files[place.file], offset, nbytes)
        if checksum_of(chunks) != checksum:
            return False
        for place, (offset, nbytes) in zip(places, ranges, strict=True):
            self._digests[place.file].on_disk(offset, nbytes)
        return True

    def _write_fixed(self) -> None:
        """Write headers and account for the zeros between places."""
        for file in self._target.layout.files:
            _write_at(self._files[file.path], 0, memoryview(file.header))
            self._digests[file.path].written(0, file.header)
            for offset, nbytes in self._gaps(file):
                self._digests[file.path].on_disk(offset, nbytes)

    def _gaps(self, file: FilePlan) -> Iterator[tuple[int, int]]:
        """Ranges of the file that stay zero: paddings between tensors and at the end."""
        end = len(file.header)
        places = (place for parts in self._places.values() for place in parts)
        for place in sorted(
            (place for place in places if place.file == file.path), key=lambda place: place.offset
        ):
            if place.offset > end:
                yield end, place.offset - end
            end = place.offset + place.nbytes
        if file.nbytes > end:
            yield end, file.nbytes - end

    def _ranges(self, slab: Slab) -> list[tuple[int, int]]:
        """Offset and size of the slab in each of its places."""
        return [_range_of(place, slab) for place in self._places[slab.tensor]]


def _range_of(place: Place, slab: Slab) -> tuple[int, int]:
    if place.row_nbytes is None:
        return place.offset, place.nbytes
    return (
        place.offset + slab.start * place.row_nbytes,
        (slab.stop - slab.start) * place.row_nbytes,
    )


def _write_at(descriptor: int, offset: int, data: memoryview) -> None:
    os.lseek(descriptor, offset, os.SEEK_SET)
    while len(data):
        data = data[os.write(descriptor, data) :]


def _sync_directory(path: Path) -> None:
    """Make a rename durable; only POSIX systems can open a directory."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _lock(partial: Path, final: Path) -> Iterator[None]:
    """Hold the partial artifact; the system lets go of it even after ``kill -9``."""
    try:
        import fcntl
    except ImportError:  # Windows: no advisory locks in the standard library's portable part
        yield
        return
    with (partial / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"another qconv is writing {str(final)!r} right now; wait for it or choose another "
                "directory with --out"
            ) from None
        yield


@contextlib.contextmanager
def _told_apart(out: Path) -> Iterator[None]:
    """Turn the operating system's refusals into errors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NotEnoughResources(
                f"output directory {str(out)!r}: the disk is full; nothing was written under its "
                "final name; free space and run the same command again: it goes on where it stopped"
            ) from error
        if isinstance(error, (PermissionError, NotADirectoryError, FileExistsError)) or (
            error.errno == errno.EROFS
        ):
            raise UsageError(
                f"cannot write to output directory {str(out)!r}: {error.strerror}; "
                "choose another with --out"
            ) from error
        raise
