"""Bytes of weights on the device: those of the artifact, less what a runtime leaves in memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qconv.planning import TargetPlan
    from qconv.plugin import ModelInfo

#: What llama.cpp reads row by row, and so keeps on the host: ``LLM_TENSOR_LAYER_INPUT``.
_ROWS = frozenset(
    {"token_embd.weight", "per_layer_token_embd.weight", "position_embd.weight"}
    | {"token_types.weight"}
)

_BLOCK = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The tensors of an artifact.

    nbytes: of each, as stored
    rest: of the files, in no tensor that is known by name
    """

    nbytes: Mapping[str, int]
    rest: int = 0

    @property
    def total(self) -> int:
        """Bytes of all tensors."""
        return sum(self.nbytes.values()) + self.rest

    def on_device(self, runtime: str, device: str = "cuda") -> int:
        """Bytes that the runtime puts on the device.

        llama.cpp keeps embeddings on the host; where they are the output projection too, a second
        copy goes to the GPU.
        """
        if runtime != "llama.cpp" or device == "cpu":
            return self.total
        return sum(self._offloaded(name) for name in self.nbytes) + self.rest

    def layers(self, count: int) -> list[int]:
        """Bytes of the blocks of a GGUF, and then of what comes after them."""
        blocks = [0] * (count + 1)
        for name in self.nbytes:
            block = _BLOCK.match(name)
            index = min(int(block[1]), count) if block else count
            blocks[index] += self._offloaded(name)
        return blocks

    def _offloaded(self, name: str) -> int:
        tied = name == "token_embd.weight" and "output.weight" not in self.nbytes
        return self.nbytes[name] if tied or name not in _ROWS else 0


def planned_weights(target: TargetPlan) -> Weights:
    """Of an artifact that is planned: to the byte."""
    from qconv.planning import tensor_nbytes

    return Weights(
        nbytes={
            plan.name: tensor_nbytes(target.layout, plan.name) for plan in target.tensors.tensors
        }
    )


def stored_weights(model: ModelInfo) -> Weights:
    """Of a checkpoint as stored."""
    return Weights(nbytes={name: info.nbytes for name, info in model.tensors.items()})
