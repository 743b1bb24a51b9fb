"""How the source of a plan is stored, and what reading it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qconv.checkpoint import DecodedCheckpoint

if TYPE_CHECKING:
    from qconv._host import Host
    from qconv._sources import OpenedSource


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """What a plan says of its source beyond the model in it.

    family: what kind of quantized checkpoint it is; None for a plain one
    nbytes: of all tensors on disk; None where the model says it
    reading_nbytes: memory that reading takes besides the rows in hand
    families: the kinds that could be decoded, for messages
    """

    family: str | None = None
    nbytes: int | None = None
    reading_nbytes: int = 0
    families: tuple[str, ...] = ()


def source_facts(opened: OpenedSource, host: Host, threads: int) -> SourceFacts:
    """The facts of an opened source, to be read on ``threads``."""
    families = tuple(spec.name for spec in host.sources)
    if not isinstance(opened, DecodedCheckpoint):
        return SourceFacts(families=families)
    return SourceFacts(
        family=opened.family,
        nbytes=sum(opened.stored_nbytes(name) for name in opened.model.tensors),
        reading_nbytes=opened.working_nbytes(threads),
        families=families,
    )
