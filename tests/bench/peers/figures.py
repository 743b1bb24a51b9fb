"""What a peer's run took, measured by the kernel and printed as one line of JSON.

Standard library only: these scripts run in each peer's own environment.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from dataclasses import dataclass

#: ru_maxrss counts bytes on macOS, units of 1024 bytes on Linux.
RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def cpu_seconds() -> float:
    """User and system seconds of this process so far, with its finished children."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def peak_mb() -> float:
    """Largest resident set of this process or of one child, in units of 10^6 bytes."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(one).ru_maxrss for one in who) * RSS_UNIT / 1e6


@dataclass
class Stopwatch:
    """Wall and CPU seconds since it was made."""

    wall: float
    cpu: float

    @classmethod
    def start(cls) -> Stopwatch:
        return cls(wall=time.monotonic(), cpu=cpu_seconds())

    def seconds(self) -> dict[str, float]:
        return {
            "cpu_s": round(cpu_seconds() - self.cpu, 2),
            "wall_s": round(time.monotonic() - self.wall, 2),
        }


def limit_threads(threads: int) -> None:
    """Set what OpenMP, MKL and OpenBLAS read when they are loaded: call before importing torch."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)


def report(peer: str, scheme: str, *, quantizing: dict[str, float], **details: object) -> None:
    """Print the one line. quantizing: a stopwatch's seconds; the process's own are added.

    cpu_s, wall_s: calibrating and quantizing; total_cpu_s: with imports, loading and saving.
    """
    line = {
        "peer": peer,
        "scheme": scheme,
        **quantizing,
        "total_cpu_s": round(cpu_seconds(), 2),
        "peak_mb": round(peak_mb(), 1),
        **details,
    }
    print(json.dumps(line), flush=True)
