"""Adds up calibration files of disjoint windows: many machines calibrate one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from qconv.calibration._running import InputStatistics
from qconv.calibration._windows import SourceReport, Windows, measured
from qconv.errors import UsageError

if TYPE_CHECKING:
    from qconv.calibration._file import CalibrationFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """Several calibration files as one.

    Peak memory of ``inputs``: the statistics of one input, twice.
    """

    files: tuple[CalibrationFile, ...]
    windows: Windows

    def inputs(self) -> Iterator[InputStatistics]:
        """The sum of every distinct input's statistics, one at a time."""
        for linears in _groups(self.files):
            statistics = [file.statistics(linears[0]) for file in self.files]
            yield InputStatistics(linears=linears, statistics=reduce(add, statistics))


def added(files: Sequence[CalibrationFile]) -> Added:
    """Check that ``files`` belong together, and join their windows in the order given.

    Raises:
        UsageError: they are of different models, arithmetic or kinds, or share a window.
    """
    first = files[0]
    for file in files[1:]:
        _check_alike(first, file)
    _check_disjoint(files)
    tokens = [window for file in files for window in file.windows.tokens]
    sources = _joined([each for file in files for each in file.windows.report.sources])
    windows = Windows(
        tokens=tuple(tokens),
        origins=tuple(origin for file in files for origin in file.windows.origins),
        report=measured(tokens, sources, first.metadata.model.vocabulary),
        first_token=min(file.windows.first_token for file in files),
    )
    return Added(files=tuple(files), windows=windows)


def _check_alike(first: CalibrationFile, file: CalibrationFile) -> None:
    mine, other = first.metadata, file.metadata
    for what, one, two in (
        ("tokenizer", mine.model.tokenizer, other.model.tokenizer),
        ("tensors", mine.model.tensors, other.model.tensors),
        ("statistics", mine.statistics, other.statistics),
        ("dtype", mine.dtype, other.dtype),
        ("linear weights", first.linears, file.linears),
    ):
        if one != two:
            told = f" ({one} and {two})" if what in {"statistics", "dtype"} else ""
            raise UsageError(
                f"{first.path} and {file.path} differ in their {what}{told}; only files of one "
                "model, made with the same options, add up"
            )


def _check_disjoint(files: Sequence[CalibrationFile]) -> None:
    seen: dict[bytes, CalibrationFile] = {}
    for file in files:
        own = {window.numpy().tobytes() for window in file.windows.tokens}
        for window in sorted(own):
            if window in seen:
                raise UsageError(
                    f"{seen[window].path} and {file.path} share a window of {len(window) // 8} "
                    "tokens, which would count twice; make them with --shard, or from other text"
                )
            seen[window] = file


def _groups(files: Sequence[CalibrationFile]) -> list[tuple[str, ...]]:
    """Linear weights that share their input in all files.

    An input that no token came to in one file may be shared in another, and says nothing there.
    """
    inputs: dict[str, list[object]] = {name: [] for seen in files[0].seen for name in seen.linears}
    for file in files:
        for number, seen in enumerate(file.seen):
            for name in seen.linears:
                inputs[name].append(number if seen.tokens else None)
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, numbers in inputs.items():
        unseen = all(number is None for number in numbers)
        groups.setdefault((name,) if unseen else tuple(numbers), []).append(name)
    return [tuple(sorted(names)) for names in groups.values()]


def _joined(reports: Sequence[SourceReport]) -> list[SourceReport]:
    """The reports, equal ones once: shards of one set all tell of the whole."""
    return list(dict.fromkeys(reports))
