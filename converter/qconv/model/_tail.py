"""What comes after the last block: final norm and head."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qconv.errors import Unsupported
from qconv.statistics import Statistics, StatisticsSum

if TYPE_CHECKING:
    import torch

    from qconv.model._hidden import Hidden
    from qconv.model._recording import Recorder


class _Reached(Exception):
    """The head was called: its input is known."""


class Tail:
    """Final norm and head, materialised from the first use until the context ends.

    Memory: the head in the model's dtype, ``vocab_size * hidden`` values, once logits are asked;
    the head is not needed for :meth:`normed` and :meth:`statistics`.
    """

    def __init__(self, model: Any, recorder: Recorder, device: torch.device, *, head: Any) -> None:
        self._model, self._recorder, self._device, self._head = model, recorder, device, head

    def normed(self, state: torch.Tensor) -> torch.Tensor:
        """The last hidden states, as the head multiplies them: (tokens, hidden).

        state: (tokens, hidden), the last block's output
        """
        last: torch.Tensor = self._after(
            state, lambda tokens: until_head(self._model, self._head, tokens)
        )
        return last[0]

    def logits(self, state: torch.Tensor) -> torch.Tensor:
        """(tokens, vocab) float32.

        state: (tokens, hidden), the last block's output

        Raises:
            Unsupported: the model has no head.
        """
        if self._head is None:
            raise self._headless()
        logits: torch.Tensor = self._after(state, self._model).logits
        return logits[0].float()

    def statistics(self, hidden: Hidden, *, gram: bool = True) -> Statistics:
        """Statistics of the head's input.

        hidden: the last block's outputs
        """
        total: StatisticsSum | None = None
        for window in range(len(hidden)):
            rows = self.normed(hidden[window])
            total = total or StatisticsSum(rows.shape[-1], device=rows.device, gram=gram)
            total.add(rows, hidden.starts[window])
        return (total or StatisticsSum(hidden.width, gram=gram)).total()

    def _after(self, state: torch.Tensor, run: Callable[[torch.Tensor], Any]) -> Any:
        import torch

        # The tokens do not matter: what the embedding makes of them is replaced by the state.
        tokens = torch.zeros(1, len(state), dtype=torch.int64, device=self._device)
        with torch.no_grad():
            return self._recorder.after(state.to(self._device)[None], lambda: run(tokens))

    def _headless(self) -> Unsupported:
        return Unsupported(
            f"{type(self._model).__name__} has no head that predicts tokens, so there are no "
            "logits; compare its hidden states instead"
        )


def until_head(model: Any, head: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Run the model up to its head: the head's input, (1, tokens, hidden).

    head: None: the model ends with its last hidden states
    tokens: (1, tokens) int64
    """
    if head is None:
        last: torch.Tensor = model(tokens)[0]
        return last
    inputs: list[torch.Tensor] = []

    def reached(module: Any, args: tuple[Any, ...]) -> None:
        del module
        inputs.append(args[0])
        raise _Reached

    # Prepended: reached before the hook that would fill the head with its weights.
    handle = head.register_forward_pre_hook(reached, prepend=True)
    try:
        output: torch.Tensor = model(tokens)[0]
    except _Reached:
        return inputs[0]
    finally:
        handle.remove()
    return output
