"""The hidden states between blocks, of all windows: in memory, or in a file that vanishes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Protocol

from qconv.errors import NotEnoughResources, UsageError

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

#: Positional and keyword arguments of one block, without the hidden states.
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Room:
    """What may still be kept in memory under ``--max-ram``."""

    def __init__(self, max_ram: int | None, reserved: int, spill: Path | None) -> None:
        self._free = None if max_ram is None else max(0, max_ram - reserved)
        self.spill = spill

    def take(self, nbytes: int) -> bool:
        """Reserve ``nbytes`` of memory; False: there is no room, keep it in a file."""
        if self._free is None:
            return True
        if nbytes > self._free:
            return False
        self._free -= nbytes
        return True

    def give(self, nbytes: int) -> None:
        """Return what was reserved."""
        if self._free is not None:
            self._free += nbytes


class _Store(Protocol):
    def read(self, window: int) -> torch.Tensor: ...
    def write(self, window: int, state: torch.Tensor) -> None: ...
    def close(self) -> None: ...


class _Memory:
    """States in host memory."""

    def __init__(self, shapes: Sequence[tuple[int, int]], room: Room, nbytes: int) -> None:
        self._states: list[torch.Tensor | None] = [None] * len(shapes)
        self._room, self._nbytes = room, nbytes

    def read(self, window: int) -> torch.Tensor:
        state = self._states[window]
        if state is None:
            raise UsageError(f"window {window} has no hidden states yet")
        return state

    def write(self, window: int, state: torch.Tensor) -> None:
        self._states[window] = state.cpu()

    def close(self) -> None:
        self._states = []
        self._room.give(self._nbytes)
        self._nbytes = 0


class _File:
    """States in a temporary file without a name, which the system removes even after a crash."""

    def __init__(
        self, shapes: Sequence[tuple[int, int]], dtype: torch.dtype, spill: Path | None
    ) -> None:
        self._shapes, self._dtype = shapes, dtype
        sizes = [rows * columns * dtype.itemsize for rows, columns in shapes]
        self._offsets = [sum(sizes[:n]) for n in range(len(sizes))]
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=spill)  # noqa: SIM115
            self._file.truncate(sum(sizes))
        except OSError as error:
            raise _disk(spill, sum(sizes), error) from error
        self._spill, self._total = spill, sum(sizes)

    def read(self, window: int) -> torch.Tensor:
        import torch

        shape = self._shapes[window]
        state = torch.empty(shape, dtype=self._dtype)
        self._file.seek(self._offsets[window])
        self._file.readinto(state.view(torch.uint8).numpy())  # type: ignore[attr-defined]
        return state

    def write(self, window: int, state: torch.Tensor) -> None:
        import torch

        raw: Any = state.detach().cpu().contiguous().view(torch.uint8).numpy()
        try:
            self._file.seek(self._offsets[window])
            self._file.write(memoryview(raw))
        except OSError as error:
            raise _disk(self._spill, self._total, error) from error

    def close(self) -> None:
        self._file.close()


def _disk(spill: Path | None, nbytes: int, error: OSError) -> NotEnoughResources:
    return NotEnoughResources(
        f"{spill or tempfile.gettempdir()}: {nbytes} bytes of hidden states cannot be kept there: "
        f"{error}; free space, raise --max-ram, or calibrate on less text"
    )


class Hidden:
    """The hidden states of all windows before (or after) a block. A context manager.

    lengths: tokens of every window
    starts: number of every window's first token, counted over all windows
    width: columns of a state
    in_memory: False when the states lie in a temporary file
    """

    def __init__(
        self,
        lengths: Sequence[int],
        arguments: Sequence[Sequence[Arguments]],
        *,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        room: Room,
    ) -> None:
        self.lengths = tuple(lengths)
        self.starts = tuple(sum(lengths[:n]) for n in range(len(lengths)))
        self.width = width
        self._dtype, self._device, self._room = dtype, device, room
        self._arguments = arguments
        shapes = [(length, width) for length in lengths]
        nbytes = sum(lengths) * width * dtype.itemsize
        self.in_memory = room.take(nbytes)
        self._store: _Store = (
            _Memory(shapes, room, nbytes) if self.in_memory else _File(shapes, dtype, room.spill)
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, window: int) -> torch.Tensor:
        """The state of a window: (tokens, width), on the model's device; do not modify it."""
        return self._store.read(window).to(self._device)

    def __setitem__(self, window: int, state: torch.Tensor) -> None:
        """Replace the state of a window.

        Raises:
            UsageError: the state is of another shape.
        """
        expected = (self.lengths[window], self.width)
        if tuple(state.shape) != expected:
            raise UsageError(
                f"window {window}: hidden states of shape {tuple(state.shape)} cannot replace "
                f"those of shape {expected}"
            )
        self._store.write(window, state.detach().to(self._dtype))

    def arguments(self, window: int, block: int) -> Arguments:
        """What the model passes to a block besides the hidden states."""
        return self._arguments[window][block]

    def empty_like(self) -> Hidden:
        """Room for states of the same windows, to be filled."""
        return Hidden(
            self.lengths,
            self._arguments,
            width=self.width,
            dtype=self._dtype,
            device=self._device,
            room=self._room,
        )

    def fork(self) -> Hidden:
        """A copy, for a second stream through the blocks."""
        copy = self.empty_like()
        for window in range(len(self)):
            copy[window] = self[window].clone()
        return copy

    def close(self) -> None:
        """Free the memory or remove the file."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
