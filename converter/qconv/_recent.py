"""The last few of what is costly to make, shared by threads and made once for all that wait."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Makes values by key and keeps those asked for last. Peak memory: ``keep`` values.

    A thread that asks for what another is just making waits for it. What fails is not kept.
    """

    def __init__(self, make: Callable[[Key], Value], *, keep: int) -> None:
        self._make = make
        self._keep = keep
        self._lock = threading.Lock()
        self._made: OrderedDict[Key, Future[Value]] = OrderedDict()

    def __getitem__(self, key: Key) -> Value:
        with self._lock:
            found = self._made.get(key)
            future: Future[Value] = found or self._begin(key)
            self._made.move_to_end(key)
        if found is None:
            self._fill(key, future)
        return future.result()

    def _begin(self, key: Key) -> Future[Value]:
        future = self._made[key] = Future()
        while len(self._made) > self._keep:
            self._made.popitem(last=False)
        return future

    def _fill(self, key: Key, future: Future[Value]) -> None:
        try:
            future.set_result(self._make(key))
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it, from result()
            with self._lock:
                if self._made.get(key) is future:
                    del self._made[key]
            future.set_exception(error)
