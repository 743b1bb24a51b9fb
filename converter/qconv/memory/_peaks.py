"""Peaks of memory while something runs: of this process, or of a device."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

#: Seconds between two looks: short beside what reading or multiplying a weight takes.
_INTERVAL = 0.002

_STATUS = Path("/proc/self/status")

_MIB = 1 << 20


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


class ResidentPeak:
    """The highest :func:`resident` within a ``with``, less that at its start; a thread looks.

    mapped: pages of files count as well, as for engines that map their weights
    """

    def __init__(self, *, mapped: bool) -> None:
        self._mapped, self._over = mapped, threading.Event()
        self._start = self._highest = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def nbytes(self) -> int:
        """Bytes above the start."""
        return self._highest - self._start

    def __enter__(self) -> Self:
        self._start = self._highest = resident(mapped=self._mapped)
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
        while not self._over.wait(_INTERVAL):
            self._look()

    def _look(self) -> None:
        self._highest = max(self._highest, resident(mapped=self._mapped))


def nvml_used(index: int) -> int | None:
    """Bytes in use on an NVIDIA device, by whomever, as its driver says; None where it does not.

    Also what CUDA contexts and other processes take, which no allocator knows.
    """
    command = ["nvidia-smi", f"--id={index}", "--query-gpu=memory.used"]
    try:
        said = subprocess.run(  # noqa: S603 - a fixed command
            [*command, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        return int(said.stdout.split()[0]) * _MIB
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None
