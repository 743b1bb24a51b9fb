"""Works ahead of the writer: slabs are encoded on all threads, and come out in order."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from math import lcm
from typing import TYPE_CHECKING

from qconv.conversion._journal import Slab
from qconv.planning import rows_apart

if TYPE_CHECKING:
    from qconv.conversion._slabs import Job
    from qconv.conversion._work import Encoded, Worker
    from qconv.planning import Plan


@contextlib.contextmanager
def workers(threads: int) -> Iterator[Executor]:
    """A pool of threads; what waits is dropped when the context is left."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="qconv")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def encode_ahead(
    executor: Executor, worker: Worker, pending: Iterable[tuple[Job, int, int]], threads: int
) -> Iterator[tuple[Job, Encoded]]:
    """Encode slabs on all threads, one or two ahead of each, and yield them in order."""
    waiting: deque[tuple[Job, Future[Encoded]]] = deque()
    for job, start, stop in pending:
        waiting.append((job, executor.submit(worker.encode, job, start, stop)))
        if len(waiting) > 2 * threads:
            first, future = waiting.popleft()
            yield first, future.result()
    while waiting:
        first, future = waiting.popleft()
        yield first, future.result()


def pending_slabs(
    plan: Plan, jobs: Iterable[Job], done: Sequence[frozenset[Slab]]
) -> Iterator[tuple[Job, int, int]]:
    """Slabs that some target still lacks."""
    for job in jobs:
        for start, stop in job.slabs(plan.needs.slab_weights, rows_together(plan, job)):
            lacking = (
                Slab(tensor=use.name, start=start, stop=stop) not in done[number]
                for number, use in job.uses
            )
            if any(lacking):
                yield job, start, stop


def rows_together(plan: Plan, job: Job) -> int:
    """Slabs of the job hold a multiple of so many rows, for the method and all targets; or all."""
    if not plan.streams:
        return job.rows
    apart = lcm(*(rows_apart(plan.targets[number].layout, use) for number, use in job.uses))
    return min(job.rows, apart)


@contextlib.contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Give each torch operation that many threads.

    One, where slabs run side by side: torch must not split each operation over the same cores.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
