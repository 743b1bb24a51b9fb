"""Depth ``runtime``: the real engine loads the artifact, and its logits are compared.

Where its backend has no engine, or the engine is not installed, the depth is unmeasured, with the
reason.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qconv.engines import engine_label
from qconv.errors import QconvError
from qconv.validation._engine_tokens import TokensFound, compare_tokens
from qconv.validation._logits import LogitsSum
from qconv.validation._results import RuntimeResult

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from qconv._host import Host
    from qconv.plugin import ModelInfo, Runtime
    from qconv.validation._planned import Companions


@dataclass(slots=True)
class Engine:
    """An engine while it takes windows; a context manager. What fails is kept as the reason.

    context: most tokens of a window
    device: what it is to compute on; ``auto``: whatever it does best
    """

    host: Host
    path: Path
    context: int
    device: str = "auto"
    name: str = ""
    version: str | None = None
    reason: str | None = None
    seconds: float = 0.0
    _against_source: LogitsSum = field(default_factory=LogitsSum)
    _against_decoded: LogitsSum = field(default_factory=LogitsSum)
    _runtime: Runtime | None = None
    _open: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Engine:  # noqa: PYI034 - Self needs Python 3.11
        began = time.monotonic()
        try:
            self.name = self.host.backend_of(self.path).name
            runtime = self.host.runtime(self.path, self.context, self.device)
            self._runtime = self._open.enter_context(runtime)
            self.name, self.version = runtime.engine, runtime.version
            self.device = runtime.device
        except QconvError as error:
            self.reason = str(error)
        self.seconds += time.monotonic() - began
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def tokens(self, source: ModelInfo, planned: Companions | None) -> TokensFound:
        """Whether text becomes the source's tokens; nothing is found where no engine runs."""
        if self._runtime is None:
            return TokensFound()
        return compare_tokens(self._runtime, source, planned)

    def take(self, window: torch.Tensor, expected: torch.Tensor, decoded: torch.Tensor) -> None:
        """Run the engine on a window; logits of the source, and of the decoded weights."""
        if self.reason is not None or self._runtime is None:
            return
        began = time.monotonic()
        try:
            found = self._runtime.logits(window.tolist()).to(expected.device)
        except Exception as error:  # noqa: BLE001 - engines raise what they like
            told = error if isinstance(error, QconvError) else f"{type(error).__name__}: {error}"
            self.reason = f"{self.name} fails on a window of {len(window)} tokens: {told}"
            return
        if found.ndim != 2 or len(found) != len(window) or found.shape[1] < expected.shape[1]:
            self.reason = (
                f"{self.name} gives logits of shape {tuple(found.shape)} for a window of "
                f"{len(window)} tokens, but the source's are {tuple(expected.shape)}"
            )
            return
        self.seconds += time.monotonic() - began
        self._against_source.add(window, expected, found)
        self._against_decoded.add(window, decoded, found)

    def result(self) -> RuntimeResult:
        """What it came to."""
        if self.reason is not None or not self._against_source.kl:
            reason = self.reason or "the model could not be run, so there is nothing to compare"
            return RuntimeResult(engine=self.name, version=self.version, reason=reason)
        named = engine_label(self.name, self.version, self.device)
        return RuntimeResult(
            engine=self.name,
            version=self.version,
            device=self.device,
            logits=self._against_source.total(named),
            against_decoded=self._against_decoded.total(named),
            seconds=self.seconds,
        )
