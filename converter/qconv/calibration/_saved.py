"""The statistics of a calibration file, as a conversion asks for them: by linear weight."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from qconv.statistics import Statistics

if TYPE_CHECKING:
    from qconv.calibration._file import CalibrationFile

#: Distinct inputs kept after they were read: those of the linear weights of one block follow one
#: another, and several of them share one.
_KEPT = 4


class SavedStatistics(Mapping[str, Statistics]):
    """Read when asked for; linear weights that share an input get one object, while it is kept.

    Safe to use from several threads. Memory: the last four inputs.
    """

    def __init__(self, file: CalibrationFile) -> None:
        self._file = file
        self._place = {name: index for index, seen in enumerate(file.seen) for name in seen.linears}
        self._kept: dict[int, Statistics] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Statistics:
        index = self._place[name]
        with self._lock:
            found = self._kept.pop(index, None)
            if found is None:
                found = self._file.statistics(name)
            self._kept[index] = found  # now the youngest
            while len(self._kept) > _KEPT:
                del self._kept[next(iter(self._kept))]
            return found

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._place))

    def __len__(self) -> int:
        return len(self._place)
