"""Seeing what linear weights multiply, whoever multiplies them: Linear, Conv1D, fused experts.

A TorchFunctionMode looks at every matrix product whose second operand is a parameter of the block
or a slice of one, told by the memory it lies in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: Called with the source names of the weights that are multiplied, the input, and the output.
Seen = Callable[[tuple[str, ...], "torch.Tensor", "torch.Tensor"], None]


class Memory:
    """Finds the source tensors whose values lie in the memory of a given weight.

    views: source name and the part of a parameter it fills, for every linear weight
    """

    def __init__(self, views: Sequence[tuple[str, torch.Tensor]]) -> None:
        self._starts: dict[int, list[tuple[int, str]]] = {}
        for source, view in views:
            known = self._starts.setdefault(_storage(view), [])
            known.append((int(view.storage_offset()), source))
        self._aliases: dict[int, tuple[torch.Tensor, tuple[str, ...]]] = {}

    def sources(self, weight: torch.Tensor) -> tuple[str, ...]:
        """The sources inside ``weight``, in the order of their rows; empty if it is none."""
        alias = self._aliases.get(_storage(weight))
        if alias is not None:
            return alias[1]
        start = int(weight.storage_offset())
        stop = start + weight.numel()
        known = self._starts.get(_storage(weight), ())
        return tuple(source for at, source in known if start <= at < stop)

    def alias(self, weight: torch.Tensor, converted: torch.Tensor) -> None:
        """Take ``converted`` (another dtype or device) for ``weight`` from now on."""
        sources = self.sources(weight)
        if sources and _storage(converted) != _storage(weight):
            self._aliases[_storage(converted)] = (converted, sources)

    def forget(self) -> None:
        """Drop the aliases: the converted weights may be freed."""
        self._aliases.clear()


def watching(memory: Memory, seen: Seen) -> Any:
    """A mode in which ``seen`` is called for every product with a linear weight."""
    import torch
    from torch.overrides import TorchFunctionMode

    products = _products()
    conversions = {torch.Tensor.to, torch.Tensor.float, torch.Tensor.type, torch.Tensor.type_as}

    class Watching(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            operands = products.get(func)
            if operands is not None:
                x, weight = (
                    _operand(args, kwargs, *operands[0]),
                    _operand(args, kwargs, *operands[1]),
                )
                sources = memory.sources(weight)
                if sources:
                    seen(sources, x, result)
            elif func in conversions and isinstance(result, torch.Tensor):
                memory.alias(args[0], result)
            return result

    return Watching()


def _products() -> Mapping[Any, tuple[tuple[int, str], tuple[int, str]]]:
    """Of every matrix product: position and name of the input, and of the weight."""
    import torch

    first, second, third = (0, "input"), (1, "other"), (2, "mat2")
    of_two = dict.fromkeys(
        (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__), (first, second)
    )
    mm = dict.fromkeys((torch.mm, torch.Tensor.mm), ((0, "input"), (1, "mat2")))
    addmm = dict.fromkeys((torch.addmm, torch.Tensor.addmm), ((1, "mat1"), third))
    return {torch.nn.functional.linear: (first, (1, "weight")), **of_two, **mm, **addmm}


def _operand(args: Any, kwargs: Any, position: int, name: str) -> torch.Tensor:
    operand: torch.Tensor = args[position] if len(args) > position else kwargs[name]
    return operand


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
