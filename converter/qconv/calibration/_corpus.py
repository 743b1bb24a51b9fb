"""From sources to distinct clean documents in a seeded order, and counts of what was left out."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qconv.calibration._document import CleaningCounts, Document, clean_document
from qconv.calibration._duplicates import NearDuplicates

if TYPE_CHECKING:
    from qconv.calibration._read import Raw


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusCounts:
    """What became of the records of a source. Characters are those of kept documents.

    without_text: nothing left after cleaning, or no text field
    duplicates: equal to an earlier one but for case, punctuation and spacing
    near_duplicates: seven tenths of their 16-character runs are in another one
    unused: beyond what the windows need
    """

    records: int = 0
    without_text: int = 0
    duplicates: int = 0
    near_duplicates: int = 0
    unused: int = 0
    documents: int = 0
    conversations: int = 0
    characters: int = 0
    urls_shortened: int = 0
    control_characters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Distinct clean documents, in an order that their texts and the seed alone decide."""

    documents: tuple[Document, ...]
    counts: CorpusCounts


def collect(records: Iterable[Raw], *, seed: int, most_characters: int | None) -> Corpus:
    """Clean ``records``, drop duplicates, and keep a random sample of what is left.

    Every document has a random number that follows from its text and ``seed``; those with the
    lowest are kept, so that neither file names nor their order decide on the sample.
    Peak memory: the documents kept, and 40 bytes for every other one.

    most_characters: how much to keep; None keeps all
    """
    cleaning = CleaningCounts()
    seen: set[bytes] = set()
    sample = _Sample(most_characters)
    total = without_text = duplicates = 0
    for text, messages in records:
        total += 1
        document = clean_document(text, messages, cleaning)
        if document is None:
            without_text += 1
            continue
        key = bytes.fromhex(document.digest)[:16]
        if key in seen:
            duplicates += 1
            continue
        seen.add(key)
        sample.add(_priority(document, seed), document)
    documents, near = _without_near_duplicates(sample.documents())
    counts = CorpusCounts(
        records=total,
        without_text=without_text,
        duplicates=duplicates,
        near_duplicates=near,
        unused=len(seen) - near - len(documents),
        documents=len(documents),
        conversations=sum(bool(each.messages) for each in documents),
        characters=sum(len(each.text) for each in documents),
        urls_shortened=cleaning.urls_shortened,
        control_characters=cleaning.control_characters,
    )
    return Corpus(documents=documents, counts=counts)


def _priority(document: Document, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{document.digest}".encode()).hexdigest()


def _without_near_duplicates(documents: Iterable[Document]) -> tuple[tuple[Document, ...], int]:
    known = NearDuplicates()
    given = tuple(documents)
    kept = tuple(document for document in given if known.keep(document.text))
    return kept, len(given) - len(kept)


class _Sample:
    """The documents of lowest priority that fit into a number of characters, and one more."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._heap: list[tuple[_Descending, int, Document]] = []
        self._characters = 0
        self._added = 0

    def add(self, priority: str, document: Document) -> None:
        self._added += 1
        heapq.heappush(self._heap, (_Descending(priority), self._added, document))
        self._characters += len(document.text)
        while self._most is not None and self._heap:
            last = self._heap[0][2]
            if self._characters - len(last.text) < self._most:
                return
            heapq.heappop(self._heap)
            self._characters -= len(last.text)

    def documents(self) -> list[Document]:
        """Lowest priority first."""
        return [entry[2] for entry in sorted(self._heap, reverse=True)]


@dataclass(frozen=True, slots=True)
class _Descending:
    """Orders strings the other way round: heapq keeps the smallest at hand."""

    text: str

    def __lt__(self, other: _Descending) -> bool:
        return self.text > other.text
