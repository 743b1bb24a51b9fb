"""What a plan needs of the machine: disk to the byte, memory as a bound."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qconv.errors import NotEnoughResources, UsageError
from qconv.planning._borders import matrix_shape

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from qconv.plugin import TensorPlan

#: Weights in one slab of rows: large enough to hide the cost of a task, small enough for what is
#: worked on (4 MiB as float32) to stay in the processor's caches. Measured on 1.17 billion weights:
#: 2**20 and 2**22 take the same time, 2**18 a quarter more.
SLAB_WEIGHTS = 1 << 20

#: Bytes a weight takes while it is worked on: as read (4 at most), float32, codes, the encoded form
#: and one temporary of the same size as the float32 slab.
BYTES_IN_WORK = 16

#: Resident size of Python with torch, numba and the kernels before any weight is read: measured at
#: 390 MB on Linux x86-64, and 550 MB where numba has to compile the kernels first.
BASE_NBYTES = 560_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What the conversion needs.

    disk_nbytes: bytes of all artifacts
    ram_nbytes: upper estimate of the process's resident memory
    slab_weights: weights worked on at a time by each thread
    """

    disk_nbytes: int
    ram_nbytes: int
    slab_weights: int


def default_threads() -> int:
    """As many workers as this process may use cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def chosen_threads(threads: int | None) -> int:
    """As many workers as were asked for; None asks for the default.

    Raises:
        UsageError: fewer than one.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads {threads}: at least one is needed; leave --threads out for all")
    return threads or default_threads()


def estimate_needs(
    tensors: Iterable[tuple[TensorPlan, int]],
    disk_nbytes: int,
    header_nbytes: int,
    threads: int,
    max_ram: int | None,
    *,
    extra_nbytes: int = 0,
) -> Needs:
    """Bound memory: every thread holds one slab, plus what all targets encode of it.

    tensors: each tensor's plan and the fewest of its rows that may be worked on apart
    max_ram: bytes the process may take; the slab shrinks to fit
    extra_nbytes: what reading the source and calibration take besides

    Raises:
        NotEnoughResources: the smallest slab does not fit ``max_ram``.
    """
    fixed = BASE_NBYTES + 2 * header_nbytes + extra_nbytes
    largest = smallest = 1
    for plan, least in tensors:
        rows, columns = matrix_shape(plan.shape)
        largest = max(largest, rows * columns)
        smallest = max(smallest, least * columns)
    slab = SLAB_WEIGHTS
    if max_ram is not None:
        room = (max_ram - fixed) // (threads * BYTES_IN_WORK)
        if room < smallest:
            least = fixed + threads * BYTES_IN_WORK * smallest
            raise NotEnoughResources(
                f"max_ram {max_ram} bytes: this conversion needs at least {least} bytes with "
                f"{threads} threads; raise --max-ram or lower --threads"
            )
        slab = min(slab, room)
    at_work = max(smallest, min(slab, largest))
    ram = fixed + threads * BYTES_IN_WORK * at_work
    return Needs(disk_nbytes=disk_nbytes, ram_nbytes=ram, slab_weights=slab)


def check_disk(out: Path, nbytes: int) -> None:
    """Refuse to start when the file system of ``out`` lacks ``nbytes`` of free space.

    Raises:
        NotEnoughResources: says how many bytes are missing.
    """
    place = out
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < nbytes:
        raise NotEnoughResources(
            f"output directory {str(out)!r}: the artifacts need {nbytes} more bytes, but only "
            f"{free} are free; free {nbytes - free} bytes or choose another disk with --out"
        )
