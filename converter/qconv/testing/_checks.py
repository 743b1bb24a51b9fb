"""Checks a validator check: what it must leave alone, and what it may say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._failed import equal, require, sample_weight

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from qconv.plugin import Check, TensorInfo

_SHAPE = (6, 64)
_NAMES = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight")


@dataclass(frozen=True, slots=True)
class _InMemory:
    """Tensors behind :class:`qconv.plugin.ArtifactReader`."""

    values: Mapping[str, torch.Tensor]

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        from qconv.plugin import TensorInfo

        return {
            name: TensorInfo(
                name=name, shape=tuple(value.shape), dtype="F32", nbytes=4 * value.numel()
            )
            for name, value in self.values.items()
        }

    def read(self, name: str) -> torch.Tensor:
        return self.values[name]


def check_validator_check(check_class: Callable[[], Check]) -> None:
    """Check a validator check on an artifact that is its source, value for value.

    Raises:
        ConformanceError: it finds fault with that, changes what it read, says something that is no
            text, or says something else the second time.
    """
    from qconv.plugin import ModelInfo

    what = getattr(check_class, "__name__", str(check_class))
    values = {name: sample_weight(*_SHAPE) for name in _NAMES}
    before = {name: value.clone() for name, value in values.items()}
    reader = _InMemory(values)
    model = ModelInfo(
        kind="safetensors",
        name="sample",
        config={},
        tensors=reader.tensors,
        files={},
        metadata={},
    )
    found = list(check_class().faults(model, reader, reader))
    require(all(isinstance(each, str) for each in found), f"{what}: a fault is a sentence, a str")
    require(not found, f"{what}: finds fault with an artifact that equals its source: {found}")
    for name, value in values.items():
        require(equal(value, before[name]), f"{what}: modified tensor {name!r}, which it read")
    again = list(check_class().faults(model, reader, reader))
    require(again == found, f"{what}: says something else the second time")
