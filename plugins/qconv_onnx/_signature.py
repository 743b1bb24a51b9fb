"""Inputs and outputs of the graph, named as optimum and transformers.js name them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qconv.errors import Unsupported

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ._skeleton import Skeleton

BATCH, NEW, PAST = "batch_size", "sequence_length", "past_sequence_length"
ALL = f"{PAST} + {NEW}"

#: Sizes that the graph is traced with: no two alike, none 0 or 1, which torch takes for fixed.
_SIZES = {BATCH: 2, NEW: 3, PAST: 5, ALL: 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What goes into a graph and what comes out.

    module: takes the list of all inputs, gives the tuple of all outputs
    inputs: fake tensors, by name
    axes: the names of dynamic dimensions, by input and dimension
    outputs: names
    """

    module: nn.Module
    inputs: Mapping[str, torch.Tensor]
    axes: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...]


def signature_of(skeleton: Skeleton, *, kv_cache: bool) -> Signature:
    """The signature of a model.

    kv_cache: of a decoder: keys and values of earlier tokens are inputs, of all tokens outputs

    Raises:
        Unsupported: the model keeps something else than keys and values between tokens.
    """
    if skeleton.is_decoder and kv_cache:
        return _cached(skeleton)
    axes = {name: {0: BATCH, 1: NEW} for name in _ids(skeleton)}
    inputs = {name: _integers(skeleton, axes[name], name) for name in axes}
    outputs = ("logits",) if skeleton.is_decoder else _outputs(skeleton, inputs)
    module = _Flat.of(skeleton.module, tuple(inputs), outputs)
    return Signature(module=module, inputs=inputs, axes=axes, outputs=outputs)


def _ids(skeleton: Skeleton) -> list[str]:
    """The inputs that the model takes: tokens, and what says which are padding, where, and what."""
    taken = inspect.signature(skeleton.module.forward).parameters
    names = ["input_ids", "attention_mask"]
    if skeleton.is_decoder:
        names.append("position_ids")
    elif getattr(skeleton.module.config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    return [name for name in names if name in taken]


def _integers(skeleton: Skeleton, axes: Mapping[int, str], name: str) -> torch.Tensor:
    import torch

    shape = [_SIZES[axes[dimension]] for dimension in (0, 1)]
    with skeleton.fakes:
        make = torch.ones if name == "attention_mask" else torch.zeros
        return make(shape, dtype=torch.int64)


def _outputs(skeleton: Skeleton, inputs: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """What the model itself calls its outputs."""
    import torch

    with skeleton.fakes, torch.no_grad():
        found = skeleton.module(**inputs)
    return tuple(name for name, value in found.items() if isinstance(value, torch.Tensor))


def _cached(skeleton: Skeleton) -> Signature:
    """A decoder's with keys and values of every layer."""
    import torch

    axes: dict[str, Mapping[int, str]] = {name: {0: BATCH, 1: NEW} for name in _ids(skeleton)}
    if "attention_mask" in axes:
        axes["attention_mask"] = {0: BATCH, 1: ALL}
    inputs = {name: _integers(skeleton, axes[name], name) for name in axes}
    outputs = ["logits"]
    for number, shapes in enumerate(_cache_shapes(skeleton)):
        for part, (heads, size, dtype) in zip(("key", "value"), shapes, strict=True):
            name = f"past_key_values.{number}.{part}"
            with skeleton.fakes:
                inputs[name] = torch.zeros((_SIZES[BATCH], heads, _SIZES[PAST], size), dtype=dtype)
            axes[name] = {0: BATCH, 2: PAST}
            outputs.append(f"present.{number}.{part}")
    module = _Flat.of(skeleton.module, tuple(inputs), tuple(outputs))
    return Signature(module=module, inputs=inputs, axes=axes, outputs=tuple(outputs))


def _cache_shapes(skeleton: Skeleton) -> list[list[tuple[int, int, torch.dtype]]]:
    """Heads, size and dtype of every layer's keys and values, as the model itself leaves them."""
    import torch

    module = skeleton.module
    try:
        with skeleton.fakes, torch.no_grad():
            ids = torch.zeros((_SIZES[BATCH], _SIZES[NEW]), dtype=torch.int64)
            layers = module(input_ids=ids, use_cache=True).past_key_values.layers
            pairs = [(each.keys, each.values) for each in layers]
            whole = all(
                value.dim() == 4 and value.shape[2] == _SIZES[NEW]
                for pair in pairs
                for value in pair
            )
    except (AttributeError, TypeError):
        whole = False
    if not whole:
        raise Unsupported(
            f"{type(module).__name__} keeps something else than keys and values between tokens; "
            "add kv_cache=false to the target, to export it without"
        )
    return [[(value.shape[1], value.shape[3], value.dtype) for value in pair] for pair in pairs]


class _Flat:
    """Makes the module that takes a list of tensors and gives a tuple of them."""

    @staticmethod
    def of(model: Any, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> nn.Module:  # noqa: ANN401
        """Wrap a model: inputs and outputs in this order, keys and values put in and taken out."""
        import torch

        class Flat(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, values: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
                named = dict(zip(inputs, values, strict=True))
                past = [name for name in inputs if name.startswith("past_key_values.")]
                kept = [named.pop(name) for name in past]
                if not kept:
                    extra = {"use_cache": False} if outputs == ("logits",) else {}
                    found = self.model(**named, **extra)
                    return tuple(found[name] for name in outputs)
                from transformers import DynamicCache

                cache = DynamicCache(list(zip(kept[::2], kept[1::2], strict=True)))
                found = self.model(**named, past_key_values=cache, use_cache=True)
                layers = found.past_key_values.layers
                present = [value for each in layers for value in (each.keys, each.values)]
                return (found.logits, *present)

        return Flat().eval()
