"""Peaks of memory of this process while something runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

#: Seconds between two looks: short beside what reading or multiplying a weight takes.
_INTERVAL = 0.002

_STATUS = Path("/proc/self/status")


def resident(*, mapped: bool) -> int:
    """Bytes of this process in memory. mapped: pages of files count as well.

    Linux tells the two apart; elsewhere the highest resident size so far stands for both.
    """
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return _highest_resident()
    sizes = dict(line.split(":", 1) for line in lines if line.startswith(("Rss", "VmRSS")))
    fields = ("VmRSS",) if mapped else ("RssAnon", "RssShmem")
    return sum(1024 * int(sizes[field].split()[0]) for field in fields)


def _highest_resident() -> int:
    import resource
    import sys

    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else 1024 * highest


class Peak:
    """The highest figure within a ``with``, less that at its start; a thread looks.

    figure: gives bytes
    interval: seconds between two looks
    """

    def __init__(self, figure: Callable[[], int], interval: float) -> None:
        self._figure, self._interval, self._over = figure, interval, threading.Event()
        self._start = self._highest = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def nbytes(self) -> int:
        """Bytes above the start."""
        return self._highest - self._start

    def __enter__(self) -> Self:
        self._start = self._highest = self._figure()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._over.wait(self._interval):
            self._look()

    def _look(self) -> None:
        self._highest = max(self._highest, self._figure())


def resident_peak(*, mapped: bool) -> Peak:
    """Of this process' memory. mapped: pages of files count, as for engines that map weights."""
    return Peak(lambda: resident(mapped=mapped), _INTERVAL)
