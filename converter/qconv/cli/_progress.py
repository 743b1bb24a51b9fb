"""Shows how far a conversion is: a bar on a terminal, lines elsewhere, nothing when quiet."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TextIO

from qconv.plugin import (
    BlockStarted,
    Calibrating,
    Comparing,
    ConversionFinished,
    ConversionStarted,
    TensorFinished,
)

from ._output import console, printable, warn
from ._sizes import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from typing_extensions import Self

    from qconv.plugin import Event

#: Seconds between two lines where there is no terminal to draw a bar on.
_LINE_EVERY = 10.0


@dataclass(slots=True)
class Tally:
    """What is done of how much, since when.

    began, now: seconds on the same clock
    """

    tensors: int
    nbytes: int
    resumed_nbytes: int
    began: float
    now: float
    tensors_done: int = 0
    nbytes_done: int = 0
    weights_done: int = 0
    stage: str = ""

    @property
    def share(self) -> float:
        """Done bytes of all, 0 to 1."""
        return min(1.0, (self.resumed_nbytes + self.nbytes_done) / max(1, self.nbytes))

    @property
    def weights_per_second(self) -> float:
        """Speed of this run; what was resumed does not count."""
        return self.weights_done / max(1e-9, self.now - self.began)

    @property
    def seconds_left(self) -> float | None:
        """Time left at the speed so far; None before a hundredth is done: start-up misleads."""
        to_do = self.nbytes - self.resumed_nbytes
        if not self.nbytes_done or self.nbytes_done < to_do / 100:
            return None
        left = max(0, to_do - self.nbytes_done)
        return left * (self.now - self.began) / self.nbytes_done

    def add(self, event: TensorFinished, now: float) -> None:
        """Count a finished slab of rows."""
        self.now = now
        self.tensors_done += event.last
        self.nbytes_done += event.nbytes
        self.weights_done += event.weights

    def describe(self) -> str:
        """Everything but the share, in words."""
        done = min(self.nbytes, self.resumed_nbytes + self.nbytes_done)
        left = self.seconds_left
        stage = [self.stage] if self.stage else []
        return ", ".join(
            [
                *stage,
                f"{self.tensors_done}/{self.tensors} tensors",
                f"{format_bytes(done)} of {format_bytes(self.nbytes)}",
                f"{format_count(self.weights_per_second)} weights/s",
                "" if left is None else f"{format_seconds(left)} left",
            ]
        ).rstrip(", ")


class _Display(Protocol):
    def prepare(self, event: Calibrating) -> None: ...

    def start(self, event: ConversionStarted) -> None: ...

    def show(self, tally: Tally) -> None: ...

    def stop(self) -> None: ...


class Progress:
    """An observer of conversions, and a context manager: on leaving it the display is gone.

    clock: seconds, monotonic
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._display = _choose(quiet=quiet, stream=stream or sys.stderr)
        self._clock = clock
        self._tally: Tally | None = None

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, ConversionStarted):
            now = self._clock()
            self._tally = Tally(
                tensors=event.tensors,
                nbytes=event.nbytes_out,
                resumed_nbytes=event.resumed_nbytes,
                began=now,
                now=now,
            )
            self._display.start(event)
        elif isinstance(event, Calibrating):
            self._display.prepare(event)
        elif isinstance(event, BlockStarted) and self._tally is not None:
            self._tally.stage = f"block {event.number + 1}/{event.blocks}"
            self._tally.now = self._clock()
            self._display.show(self._tally)
        elif isinstance(event, Comparing) and self._tally is not None:
            self._tally.stage = f"{event.done}/{event.tensors} proven equal"
            self._tally.now = self._clock()
            self._display.show(self._tally)
        elif isinstance(event, TensorFinished) and self._tally is not None:
            self._tally.add(event, self._clock())
            self._display.show(self._tally)
        elif isinstance(event, ConversionFinished):
            self._display.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._display.stop()


def warned_of(observer: Callable[[Event], None]) -> Callable[[Event], None]:
    """``observer``, behind the warnings that a conversion starts with."""

    def watch(event: Event) -> None:
        if isinstance(event, ConversionStarted):
            warn(event.warnings)
        observer(event)

    return watch


def _choose(*, quiet: bool, stream: TextIO) -> _Display:
    if quiet:
        return _Nothing()
    return _OnTerminal(stream) if stream.isatty() else _Lines(stream)


def _opening(event: ConversionStarted) -> str:
    resumed = (
        f", {format_bytes(event.resumed_nbytes)} there already" if event.resumed_nbytes else ""
    )
    return printable(f"{event.source} to {', '.join(event.targets)}{resumed}")


def _preparing(event: Calibrating) -> str:
    windows = f"{event.windows} windows" if event.windows else "windows"
    return printable(f"preparing the model and {windows} of {event.source}")


@contextlib.contextmanager
def looking(*, quiet: bool) -> Iterator[Callable[[str], None] | None]:
    """Show what is looked at, on a terminal; None where nothing is shown."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    with console(sys.stderr).status("") as status:
        yield lambda what: status.update(f"looking at {printable(what)}")


@contextlib.contextmanager
def reading(*, quiet: bool = False) -> Iterator[Callable[[str, int, int], None] | None]:
    """Show how far the reading of a file is, on a terminal; None where there is none."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(bar_width=16),
        TextColumn("{task.percentage:3.0f}%", markup=False),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[words]}", markup=False),
    )
    terminal = console(sys.stderr)
    with Bar(*columns, console=terminal, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("", total=None, words="")

        def show(name: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, words=printable(name))

        yield show


class _Nothing:
    def prepare(self, event: Calibrating) -> None: ...

    def start(self, event: ConversionStarted) -> None: ...

    def show(self, tally: Tally) -> None: ...

    def stop(self) -> None: ...


class _Lines:
    """A line now and then, for logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = 0.0

    def prepare(self, event: Calibrating) -> None:
        self._print(_preparing(event))

    def start(self, event: ConversionStarted) -> None:
        self._print(f"converting {_opening(event)}")

    def show(self, tally: Tally) -> None:
        first = self._shown < tally.began
        if tally.now - (tally.began if first else self._shown) < _LINE_EVERY:
            return
        self._shown = tally.now
        self._print(f"{tally.share:4.0%}  {tally.describe()}")

    def stop(self) -> None: ...

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class _OnTerminal:
    """One bar that is redrawn in place."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: Bar | None = None

    def prepare(self, event: Calibrating) -> None:
        console(self._stream).print(_preparing(event))

    def start(self, event: ConversionStarted) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        terminal = console(self._stream)
        terminal.print(_opening(event))
        self._bar = Bar(
            BarColumn(bar_width=16),
            TextColumn("{task.percentage:3.0f}%", markup=False),
            TextColumn("{task.fields[words]}", markup=False),
            console=terminal,
            transient=True,
            redirect_stdout=False,  # results go to the real stdout, after the bar
        )
        self._bar.add_task("", total=1.0, words="starting; the first run compiles its loops, once")
        self._bar.start()

    def show(self, tally: Tally) -> None:
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=tally.share, words=tally.describe())

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
