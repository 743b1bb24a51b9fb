"""What a backend says it writes beside the weights: small files, and the metadata of a GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from qconv.checkpoint import GgufValue, gguf_metadata
from qconv.errors import UnreadableInput

if TYPE_CHECKING:
    from qconv.plugin import FilePlan, Layout

_GGUF = b"GGUF"


@dataclass(frozen=True, slots=True, kw_only=True)
class Companions:
    """What is known of an artifact before a weight is written.

    files: bytes of the files without weights, by their path within the artifact
    metadata: of a GGUF; None of anything else
    """

    files: Mapping[str, bytes]
    metadata: Mapping[str, GgufValue] | None = None


def companions_of(layout: Layout) -> Companions:
    """What ``layout`` puts beside the weights."""
    with_weights = {place.file for places in layout.places.values() for place in places}
    whole = [file for file in layout.files if file.path not in with_weights]
    return Companions(
        files={_within(file): file.header for file in whole if len(file.header) == file.nbytes},
        metadata=_metadata(layout),
    )


def _metadata(layout: Layout) -> Mapping[str, GgufValue] | None:
    for file in layout.files:
        if file.header.startswith(_GGUF):
            with suppress(UnreadableInput):  # of a stranger's, told where it is read back
                return gguf_metadata(file.header, file.path)
    return None


def _within(file: FilePlan) -> str:
    """The path within the artifact's folder, which comes first."""
    path = PurePosixPath(file.path)
    return PurePosixPath(*path.parts[1:]).as_posix() if len(path.parts) > 1 else path.name
