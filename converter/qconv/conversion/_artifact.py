"""The artifact writer: fixed offsets in a hidden sibling, renamed only when whole.

While it grows, an artifact lives in ``.<name>.qconv-partial/`` beside its final place. What a
second run needs to go on (the files, the journal, the fingerprint) stays there; nothing else does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qconv.conversion._digest import RunningDigest, read_back
from qconv.conversion._journal import Journal, Slab, checksum_of, read_journal
from qconv.conversion._outputs import final_path, refuse_existing
from qconv.conversion._partial import (
    FILES,
    FINGERPRINT,
    JOURNAL,
    REPLACED,
    claimed,
    partial_path,
    remove_claimed,
)
from qconv.conversion._refusals import told_apart
from qconv.errors import BrokenPlugin, OutputExists

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

    from qconv.conversion._json import ArtifactJson
    from qconv.planning import TargetPlan
    from qconv.plugin import FilePlan, Place


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


class ArtifactWriter:
    """Writes one target's artifact; a context manager that seals nothing by itself.

    Holds the partial folder from the beginning until it is left, sealed or not. Peak memory: the
    headers.
    """

    def __init__(
        self, out: Path, target: TargetPlan, fingerprint: str, *, resume: bool, force: bool
    ) -> None:
        self._target = target
        self._force = force
        self._final = final_path(out, target)
        self._partial = partial_path(self._final)
        self._claim = contextlib.ExitStack()
        self._stack = contextlib.ExitStack()
        self._places = target.layout.places
        self._sha256: tuple[str, ...] = ()
        with self._released_on_failure(), told_apart(out):
            out.mkdir(parents=True, exist_ok=True)
            self._claim.enter_context(claimed(self._partial, self._final))
            self._refuse_finished()
            self._keep_or_discard(fingerprint, resume=resume)
            known = read_journal(self._partial / JOURNAL)
            self._files = {file.path: self._open(file) for file in target.layout.files}
            self._digests = {path: RunningDigest(fd) for path, fd in self._files.items()}
            self._done = {slab for slab, checksum in known.items() if self._holds(slab, checksum)}
            self._journal = Journal(self._partial / JOURNAL)
            self._stack.callback(self._journal.close)
            self._write_fixed()

    @property
    def done(self) -> frozenset[Slab]:
        """Slabs that an earlier run finished and that are still right."""
        return frozenset(self._done)

    @property
    def staged(self) -> Path:
        """Where the artifact lies, named as it will be, until it is sealed."""
        return self._partial / FILES / self._final.name

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
        with told_apart(self._final.parent):
            for place, (offset, _), buffer in zip(
                self._places[slab.tensor], ranges, flat, strict=True
            ):
                _write_at(self._files[place.file], offset, buffer)
                self._digests[place.file].written(offset, buffer)
            self._journal.append(slab, checksum_of(flat))
        return sum(sizes)

    def complete(self) -> None:
        """Make everything durable and take the digests: all that may take long before sealing."""
        with told_apart(self._final.parent):
            for file in self._target.layout.files:
                os.fsync(self._files[file.path])
            self._sha256 = tuple(
                self._digests[file.path].hexdigest(file.nbytes)
                for file in self._target.layout.files
            )

    def seal(self) -> Artifact:
        """Give the completed artifact its final name.

        Raises:
            OutputExists: something took the name in the meantime.
        """
        with told_apart(self._final.parent):
            self._stack.close()
            refuse_existing(self._final, force=self._force)
            self._rename()
            _sync_directory(self._final.parent)
        remove_claimed(self._partial)
        self._claim.close()
        target = self._target
        return Artifact(
            target=target.label,
            files=tuple(self._final.parent / file.path for file in target.layout.files),
            sha256=self._sha256,
            nbytes=target.nbytes,
            weights=target.weights,
            bits_per_weight=target.bits_per_weight,
            fallback_share=target.fallback_share,
            type_shares=target.type_shares,
        )

    def _rename(self) -> None:
        staged = self.staged
        if not self._final.is_dir() or self._final.is_symlink():
            staged.replace(self._final)
            return
        # only with --force: a rename cannot replace a full folder, so the old one steps aside
        aside = self._partial / REPLACED
        shutil.rmtree(aside, ignore_errors=True)
        self._final.rename(aside)
        try:
            staged.rename(self._final)
        except OSError:
            aside.rename(self._final)
            raise

    def discard(self) -> None:
        """Remove the partial artifact: the same input would fail the same way."""
        self._stack.close()
        remove_claimed(self._partial)
        self._claim.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        self._claim.close()

    @contextlib.contextmanager
    def _released_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _refuse_finished(self) -> None:
        """Whoever held the folder just now may have finished since the outputs were checked."""
        try:
            refuse_existing(self._final, force=self._force)
        except OutputExists:
            remove_claimed(self._partial)
            raise

    def _keep_or_discard(self, fingerprint: str, *, resume: bool) -> None:
        mark = self._partial / FINGERPRINT
        if resume and mark.is_file() and mark.read_text(encoding="utf-8") == fingerprint:
            return
        shutil.rmtree(self._partial / FILES, ignore_errors=True)
        (self._partial / JOURNAL).unlink(missing_ok=True)
        mark.write_text(fingerprint, encoding="utf-8")

    def _open(self, file: FilePlan) -> int:
        path = self._partial / FILES / file.path
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
