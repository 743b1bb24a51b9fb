"""What comes after the last block: final norm and head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qconv.errors import Unsupported

if TYPE_CHECKING:
    import torch

    from qconv.model._recording import Recorder


class Tail:
    """Final norm and head, materialised from the first use until the context ends.

    Memory: the head in the model's dtype, ``vocab_size * hidden`` values, once logits are asked.
    """

    def __init__(self, model: Any, recorder: Recorder, device: torch.device, *, head: bool) -> None:
        self._model, self._recorder, self._device, self._head = model, recorder, device, head

    def normed(self, state: torch.Tensor) -> torch.Tensor:
        """The last hidden states as the head sees them: (tokens, hidden).

        state: (tokens, hidden), the last block's output
        """
        output: torch.Tensor = self._run(self._model.base_model, state)[0]
        return output[0]

    def logits(self, state: torch.Tensor) -> torch.Tensor:
        """(tokens, vocab) float32.

        state: (tokens, hidden), the last block's output

        Raises:
            Unsupported: the model has no head.
        """
        if not self._head:
            raise Unsupported(
                f"{type(self._model).__name__} has no head that predicts tokens, so there are no "
                "logits; compare its hidden states instead"
            )
        logits: torch.Tensor = self._run(self._model, state).logits
        return logits[0].float()

    def _run(self, model: Any, state: torch.Tensor) -> Any:
        import torch

        # The tokens do not matter: what the embedding makes of them is replaced by the state.
        tokens = torch.zeros(1, len(state), dtype=torch.int64, device=self._device)
        with torch.no_grad():
            return self._recorder.after(state.to(self._device)[None], lambda: model(tokens))
