"""Running the model around its blocks: what they are called with, and what follows them.

Recorders stand in for the blocks' forward functions. A first run through embeddings and recorders
gives every block's arguments (masks, rotary embeddings) without running one; a run whose last
recorder returns a given state gives what the model makes of it (final norm, head).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qconv.errors import Unsupported

if TYPE_CHECKING:
    import torch
    from torch import nn

    from qconv.model._hidden import Arguments


#: What every refusal here ends with.
_PLAIN = "only a plain chain of blocks can be calibrated, use --method rtn, which runs no model"


class _ReturnsTuples(Exception):
    """The model took the batch dimension off a state: its blocks return tuples."""


class Recorder:
    """Stands in for all blocks of a model.

    returns_tuple: blocks return ``(state, ...)``, as seen from what the model does with the result
    """

    def __init__(self, blocks: nn.ModuleList, path: str) -> None:
        self._blocks, self._path = blocks, path
        self.returns_tuple = False

    def record(self, run: Callable[[], object]) -> tuple[torch.Tensor, tuple[Arguments, ...]]:
        """The state that enters the first block, and every block's arguments.

        run: runs the model, blocks and what follows them

        Raises:
            Unsupported: the blocks are not called once each, one after the other, each on what
                the previous one returned.
        """
        try:
            return self._record(run)
        except _ReturnsTuples:
            self.returns_tuple = True
            return self._record(run)

    def _record(self, run: Callable[[], object]) -> tuple[torch.Tensor, tuple[Arguments, ...]]:
        states: list[torch.Tensor] = []
        arguments: list[Arguments] = []

        def stand_in(index: int) -> Callable[..., object]:
            def forward(*args: Any, **kwargs: Any) -> object:
                state, rest = _without_state(args, kwargs)
                self._check_chain(index, len(arguments), state, states)
                states.append(state)
                arguments.append(rest)
                return (state,) if self.returns_tuple else state

            return forward

        with self._standing_in(stand_in):
            run()
        if len(arguments) != len(self._blocks):
            raise Unsupported(
                f"{self._path}: the model ran through {len(arguments)} of {len(self._blocks)} "
                f"blocks; {_PLAIN}"
            )
        return states[0], tuple(arguments)

    def after(self, state: torch.Tensor, run: Callable[[], Any]) -> Any:
        """What ``run`` returns when the last block returns ``state``.

        state: (1, tokens, hidden)
        """

        def stand_in(index: int) -> Callable[..., object]:
            del index
            return lambda *_, **__: (state,) if self.returns_tuple else state

        with self._standing_in(stand_in):
            return run()

    @contextmanager
    def _standing_in(self, stand_in: Callable[[int], Callable[..., object]]) -> Iterator[None]:
        try:
            for index, block in enumerate(self._blocks):
                block.forward = stand_in(index)
            yield
        finally:
            for block in self._blocks:
                block.__dict__.pop("forward", None)

    def _check_chain(
        self, index: int, called: int, state: torch.Tensor, states: list[torch.Tensor]
    ) -> None:
        import torch

        if index != called:
            raise Unsupported(
                f"{self._path}.{index}: called again or out of order (call {called}); {_PLAIN}"
            )
        if state.dim() != 3 and not states:
            raise Unsupported(
                f"{self._path}.{index}: hidden states have shape {tuple(state.shape)}, not "
                f"(1, tokens, hidden); {_PLAIN}"
            )
        if not states or state is states[-1]:
            return
        if state.dim() == 2 and states[-1].dim() == 3:  # indexed as if it were a tuple
            raise _ReturnsTuples
        if state.shape != states[-1].shape or not torch.equal(state, states[-1]):
            raise Unsupported(
                f"{self._path}.{index}: the model changes the hidden states between this block "
                f"and the one before; {_PLAIN}"
            )


def _without_state(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, Arguments]:
    """The hidden states, first or named so in every transformers block, and the rest."""
    if args:
        return args[0], (args[1:], dict(kwargs))
    rest = dict(kwargs)
    return rest.pop("hidden_states"), ((), rest)


class Pool:
    """Keeps one of several equal tensors, so that windows of equal length share their masks."""

    def __init__(self) -> None:
        self._known: dict[object, list[torch.Tensor]] = {}
        self._met: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def forget(self) -> None:
        """Let go of the tensors that were given, but of those that stand for them."""
        self._met.clear()

    def shared(self, value: Any) -> Any:
        """``value`` with every tensor in it replaced by an equal one seen before."""
        import torch

        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, dict):
            return {key: self.shared(each) for key, each in value.items()}
        if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
            return type(value)(self.shared(each) for each in value)
        return value

    def _tensor(self, value: torch.Tensor) -> torch.Tensor:
        if id(value) not in self._met:  # blocks are given the same one, and comparing takes time
            self._met[id(value)] = (value, self._found(value))
        return self._met[id(value)][1]

    def _found(self, value: torch.Tensor) -> torch.Tensor:
        import torch

        known = self._known.setdefault((value.shape, value.dtype), [])
        for each in known:
            if torch.equal(each, value):
                return each
        known.append(value)
        return value
