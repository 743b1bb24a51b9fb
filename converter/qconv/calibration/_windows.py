"""Windows of tokens: what the model is run on, where it came from, and what it covers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qconv.calibration._corpus import CorpusCounts  # noqa: TC001 - pydantic reads the annotation

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a window came from.

    source: label of the source, without directories
    documents: digests of the documents whose tokens it holds, in their order
    """

    source: str
    documents: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceReport:
    """What one source gave.

    share: of the windows, 0 to 1, as asked
    counts: what became of its records; None for text that was not read
    templates_failed: conversations the chat template refused, taken as plain text
    overlapping: documents dropped because they share a run of tokens with calibration windows
    candidates: windows there were to choose from
    windows: those taken
    """

    source: str
    share: float
    counts: CorpusCounts | None = None
    templates_failed: int = 0
    overlapping: int = 0
    candidates: int
    windows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowsReport:
    """What the windows are made of.

    shortest, median, longest: tokens of a window
    distinct_tokens: different token ids
    vocabulary: tokens the model knows; None when it does not say
    warnings: what the user should know
    """

    windows: int
    tokens: int
    shortest: int
    median: int
    longest: int
    distinct_tokens: int
    vocabulary: int | None
    sources: tuple[SourceReport, ...]
    warnings: tuple[str, ...] = ()

    @property
    def vocabulary_share(self) -> float | None:
        """Distinct tokens of the vocabulary, 0 to 1."""
        return self.distinct_tokens / self.vocabulary if self.vocabulary else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Windows:
    """Token windows, in the order the model is run on them.

    tokens: (tokens of the window,) int64 each, on the CPU; never modified
    origins: one for each window
    first_token: tokens before the first window, where this is a part of a larger set
    """

    tokens: tuple[torch.Tensor, ...]
    origins: tuple[Origin, ...]
    report: WindowsReport
    first_token: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def digest(self) -> str:
        """SHA-256, as hex, of the token ids of all windows: what makes results reproducible."""
        sha256 = hashlib.sha256()
        for window in self.tokens:
            sha256.update(len(window).to_bytes(8, "little"))
            sha256.update(window.numpy().astype("<i8").tobytes())
        return sha256.hexdigest()

    @property
    def documents(self) -> frozenset[str]:
        """Digests of all documents whose tokens are in a window."""
        return frozenset(digest for origin in self.origins for digest in origin.documents)

    def part(self, start: int, stop: int) -> Windows:
        """Windows ``start:stop``, which know their place in the whole.

        The statistics of all parts therefore add to those of the whole.
        """
        before = sum(len(window) for window in self.tokens[:start])
        tokens = self.tokens[start:stop]
        report = measured(tokens, self.report.sources, self.report.vocabulary, self.report.warnings)
        return replace(
            self,
            tokens=tokens,
            origins=self.origins[start:stop],
            report=report,
            first_token=self.first_token + before,
        )


def measured(
    tokens: Sequence[torch.Tensor],
    sources: Sequence[SourceReport],
    vocabulary: int | None,
    warnings: Sequence[str] = (),
) -> WindowsReport:
    """The report on windows ``tokens``."""
    import torch

    lengths = sorted(len(window) for window in tokens) or [0]
    distinct = len(set(torch.cat(list(tokens)).tolist())) if tokens else 0
    return WindowsReport(
        windows=len(tokens),
        tokens=sum(lengths),
        shortest=lengths[0],
        median=lengths[len(lengths) // 2],
        longest=lengths[-1],
        distinct_tokens=distinct,
        vocabulary=vocabulary,
        sources=tuple(sources),
        warnings=tuple(warnings),
    )
