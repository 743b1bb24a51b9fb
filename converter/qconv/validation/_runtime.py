"""Depth ``runtime``: the real engine loads the artifact, and its logits are compared.

A backend offers it as ``runtime(path)``: a :class:`qconv.plugin.Runtime`. Where it does not, or the
engine is not installed, the depth is unmeasured, with the reason.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qconv.errors import QconvError
from qconv.validation._logits import LogitsSum
from qconv.validation._results import RuntimeResult

if TYPE_CHECKING:
    import torch

    from qconv.validation._matching import Match


@dataclass(slots=True)
class Engine:
    """An engine while it takes windows; a context manager. What fails is kept as the reason."""

    match: Match
    name: str = ""
    version: str | None = None
    reason: str | None = None
    seconds: float = 0.0
    _against_source: LogitsSum = field(default_factory=LogitsSum)
    _against_decoded: LogitsSum = field(default_factory=LogitsSum)
    _runtime: Any = None
    _open: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Engine:  # noqa: PYI034 - Self needs Python 3.11
        backend: Any = self.match.target.backend
        self.name = self.match.label.partition(":")[0]
        began = time.monotonic()
        try:
            if not hasattr(backend, "runtime"):
                self.reason = f"backend {self.name!r} offers no runtime"
                return self
            self._runtime = self._open.enter_context(backend.runtime(self.match.path))
            self.name = str(getattr(self._runtime, "engine", self.name))
            version = getattr(self._runtime, "version", None)
            self.version = None if version is None else str(version)
        except (QconvError, ImportError) as error:
            self.reason = str(error)
        self.seconds += time.monotonic() - began
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def take(self, window: torch.Tensor, expected: torch.Tensor, decoded: torch.Tensor) -> None:
        """Run the engine on a window; logits of the source, and of the decoded weights."""
        if self.reason is not None:
            return
        began = time.monotonic()
        try:
            found = self._runtime.logits(window.tolist()).to(expected.device)
        except (QconvError, RuntimeError) as error:
            self.reason = f"{self.name} fails on a window of {len(window)} tokens: {error}"
            return
        self.seconds += time.monotonic() - began
        self._against_source.add(window, expected, found)
        self._against_decoded.add(window, decoded, found)

    def result(self) -> RuntimeResult:
        """What it came to."""
        if self.reason is not None or not self._against_source.kl:
            reason = self.reason or "the model could not be run, so there is nothing to compare"
            return RuntimeResult(engine=self.name, version=self.version, reason=reason)
        label = f"{self.name} {self.version or ''}".rstrip()
        return RuntimeResult(
            engine=self.name,
            version=self.version,
            logits=self._against_source.total(label),
            against_decoded=self._against_decoded.total(label),
            seconds=self.seconds,
        )
