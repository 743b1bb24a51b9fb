"""The stored tensors of a quantized linear module, checked by name, dtype and shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qconv.errors import UnreadableInput

if TYPE_CHECKING:
    import torch

    from qconv.plugin import ModelInfo, TensorInfo

#: Scale types, by safetensors' name, and torch's.
SCALE_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A module of the model with what the checkpoint stores of it.

    name: ``model.layers.0.mlp.up_proj``
    tensors: all of the checkpoint, by name
    """

    name: str
    tensors: Mapping[str, TensorInfo]

    @property
    def weight(self) -> str:
        """The model's name of the weight."""
        return f"{self.name}.weight"

    def full(self, suffix: str) -> str:
        """The stored name of ``suffix``."""
        return f"{self.name}.{suffix}"

    def is_named_by(self, names: tuple[str, ...]) -> bool:
        """Whether one of ``names`` is the module's, of what it is within, or the end of its own.

        Runtimes take any part of a name for ``modules_to_not_convert``; yet ``gate`` stands there
        for a router beside modules ``gate_proj``, which are quantized.
        """
        return any(
            self.name == name or self.name.startswith(f"{name}.") or self.name.endswith(f".{name}")
            for name in names
        )

    def find(self, suffix: str) -> TensorInfo | None:
        """A stored tensor, or None."""
        return self.tensors.get(self.full(suffix))

    def need(self, suffix: str, dtypes: tuple[str, ...], dimensions: int) -> TensorInfo:
        """A stored tensor of one of ``dtypes`` and of so many dimensions, none of them empty.

        Raises:
            UnreadableInput: it is missing, or another.
        """
        info = self.find(suffix)
        if info is None:
            raise UnreadableInput(
                f"tensor {self.full(suffix)!r}: missing, but the other tensors of {self.name!r} "
                "need it; the checkpoint is incomplete, get all its files anew"
            )
        if info.dtype not in dtypes or len(info.shape) != dimensions or 0 in info.shape:
            raise UnreadableInput(
                f"tensor {info.name!r}: {info.dtype} {info.shape}, but must be "
                f"{' or '.join(dtypes)} of {dimensions} dimensions; config.json and weights do "
                "not belong together, get all files anew"
            )
        return info

    def need_shape(
        self, suffix: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]
    ) -> TensorInfo:
        """A stored tensor of one of ``dtypes`` and ``shapes``.

        Raises:
            UnreadableInput: it is missing, or another.
        """
        info = self.find(suffix)
        dimensions = len(shapes[0] if info is None else info.shape)
        info = self.need(suffix, dtypes, dimensions)
        if info.shape not in shapes:
            listed = " or ".join(map(str, shapes))
            raise UnreadableInput(
                f"tensor {info.name!r}: shape {info.shape}, but the other tensors of "
                f"{self.name!r} and config.json demand {listed}; they do not belong together, "
                "get all files anew"
            )
        return info


def modules_with(model: ModelInfo, suffix: str) -> Iterator[Module]:
    """The modules that store a ``suffix``, in the order of their names."""
    for name in sorted(model.tensors):
        if name.endswith(f".{suffix}"):
            yield Module(name=name.removesuffix(f".{suffix}"), tensors=model.tensors)


def packed_modules(model: ModelInfo, suffix: str) -> Iterator[Module]:
    """The modules whose weight is stored as ``suffix``, and not as a weight besides.

    Raises:
        UnreadableInput: a weight is stored both ways.
    """
    for module in modules_with(model, suffix):
        if module.find("weight") is not None:
            raise UnreadableInput(
                f"tensor {module.weight!r}: stored as it is and as {module.full(suffix)!r}; "
                "nothing says which of them counts, get the checkpoint anew from its publisher"
            )
        yield module


def own_parts(name: str, parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The parts of the weight ``name`` by what follows its module's name."""
    prefix = name.removesuffix("weight")
    return {part.removeprefix(prefix): value for part, value in parts.items()}


def finite(name: str, values: torch.Tensor) -> torch.Tensor:
    """``values`` as they are.

    Raises:
        UnreadableInput: one is infinite or not a number.
    """
    bad = int((~values.isfinite()).sum())
    if bad:
        raise UnreadableInput(
            f"tensor {name!r}: {bad} of {values.numel()} scales are not finite; "
            "the checkpoint is damaged, get it anew from its publisher"
        )
    return values
