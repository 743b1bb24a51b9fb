"""Modules outside the blocks: each gets its parameters when it is called, and gives them back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qconv.errors import UnreadableInput

if TYPE_CHECKING:
    import torch
    from torch import nn

    from qconv.model._weights import Weights


class Outside:
    """Embeddings, final norm, head.

    Of the input embedding only the rows of the tokens in hand are read.
    """

    def __init__(self, model: Any, path: str, weights: Weights, device: torch.device) -> None:
        self._model, self._weights, self._device = model, weights, device
        self._modules = {
            name: module
            for name, module in model.named_modules()
            if not (name + ".").startswith(path + ".") and _own(module)
        }

    @contextmanager
    def lent(self, tokens: torch.Tensor) -> Iterator[None]:
        """Let the modules be called within.

        tokens: (n,) int64, sorted: the only ones that may be looked up
        """
        embedding = self._model.get_input_embeddings()
        handles = []
        empty = {name: _own(module) for name, module in self._modules.items()}
        try:
            for name, module in self._modules.items():
                if module is embedding and self._is_table(name, module):
                    # At once: models ask for the device of this weight before they use it.
                    self._fill_table(name, module, tokens)
                    hook = _lookup(tokens.to(self._device))
                else:
                    hook = self._filling(name)
                handles.append(module.register_forward_pre_hook(hook))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for name, own in empty.items():
                _assign(self._modules[name], own)

    def _is_table(self, name: str, module: nn.Module) -> bool:
        """The module is a plain table of rows, and a source tensor is that table."""
        from torch import nn

        pieces = self._weights.pieces.get(f"{name}.weight", ())
        return isinstance(module, nn.Embedding) and len(pieces) == 1

    def _fill_table(self, name: str, module: Any, tokens: torch.Tensor) -> None:
        module.padding_idx = None  # matters to gradients only, and counts rows of the whole table
        weight = module._parameters["weight"]
        _assign(module, {"weight": self._weights.rows(f"{name}.weight", tokens, weight)})

    def _filling(self, name: str) -> Callable[..., object]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            del args
            for each, value in _own(module).items():
                full = f"{name}.{each}" if name else each
                if full in self._weights.pieces and (value.is_meta or _is_buffer(module, each)):
                    _assign(module, {each: self._weights.parameter(full, value)})
                elif value.is_meta:
                    raise UnreadableInput(
                        f"parameter {full!r} of shape {tuple(value.shape)} is filled by no tensor "
                        "of the checkpoint, but the model needs it; the checkpoint is incomplete"
                    )

        return hook


def _lookup(tokens: torch.Tensor) -> Callable[..., object]:
    """Replaces token ids by the places of their rows in a table of ``tokens`` only."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        import torch

        del module
        return (torch.searchsorted(tokens, args[0]), *args[1:])

    return hook


def _own(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers of the module itself, not of its children."""
    parameters = {n: p for n, p in module._parameters.items() if p is not None}
    buffers = {
        n: b
        for n, b in module._buffers.items()
        if b is not None and n not in module._non_persistent_buffers_set
    }
    return {**parameters, **buffers}


def _is_buffer(module: nn.Module, name: str) -> bool:
    return name in module._buffers


def _assign(module: nn.Module, values: dict[str, torch.Tensor]) -> None:
    from torch import nn

    for name, value in values.items():
        if _is_buffer(module, name):
            module._buffers[name] = value
        elif isinstance(value, nn.Parameter):
            module._parameters[name] = value
        else:
            module._parameters[name] = nn.Parameter(value, requires_grad=False)
