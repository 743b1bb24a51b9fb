"""Tells which parameter, and which part of it, a tensor that a linear is given comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qconv.model._topology import LinearPart

if TYPE_CHECKING:
    import torch


class ParameterFinder:
    """Parameters found again by their storage, whatever views were taken of them."""

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        self._by_storage: dict[int, list[tuple[str, torch.Tensor]]] = {}
        for path, tensor in parameters.items():
            pointer = tensor.untyped_storage().data_ptr()
            self._by_storage.setdefault(pointer, []).append((path, tensor))

    def owner(self, tensor: torch.Tensor) -> tuple[str, torch.Tensor] | None:
        """The path and the whole of the parameter that ``tensor`` is a view of."""
        offset = tensor.storage_offset()
        for path, whole in self._by_storage.get(tensor.untyped_storage().data_ptr(), ()):
            if whole.storage_offset() <= offset < whole.storage_offset() + whole.numel():
                return path, whole
        return None

    def linear(self, weight: torch.Tensor) -> LinearPart | None:
        """What part of a parameter a weight is; None when it is none, or not full rows of one.

        weight: (out, in), as the product uses it
        """
        found = self.owner(weight)
        if found is None or weight.dim() != 2 or found[1].dim() not in {2, 3}:
            return None
        path, whole = found
        offset = int(weight.storage_offset() - whole.storage_offset())
        expert = None
        if whole.dim() == 3:
            expert, offset = divmod(offset, whole.stride(0))
        for transposed in (False, True):
            along_out, along_in = (-1, -2) if transposed else (-2, -1)
            start, rest = divmod(offset, whole.stride(along_out))
            fits = _steps(weight, 0, whole.stride(along_out)) and _steps(
                weight, 1, whole.stride(along_in)
            )
            if fits and not rest and weight.shape[1] == whole.shape[along_in]:
                return LinearPart(
                    parameter=path,
                    expert=expert,
                    rows=(start, start + weight.shape[0]),
                    columns=weight.shape[1],
                    transposed=transposed,
                )
        return None

    def vector(self, tensor: torch.Tensor | None) -> str | None:
        """The path of a parameter that ``tensor`` is a bias of, all of it or an expert's row."""
        if tensor is None or tensor.dim() != 1:
            return None
        found = self.owner(tensor)
        if found is None or found[1].dim() > 2 or found[1].shape[-1] != tensor.shape[0]:
            return None
        return found[0]


def _steps(tensor: torch.Tensor, dim: int, stride: int) -> bool:
    return tensor.shape[dim] == 1 or tensor.stride(dim) == stride
