"""Inspects how a model's blocks hang together: one block of each kind is run and probed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconv._host import load_plugins
from qconv._sources import open_source
from qconv.errors import Unsupported
from qconv.inspection._inspect import architecture

if TYPE_CHECKING:
    import torch

    from qconv.model import BlockInfo, BlockModel, Topology
    from qconv.plugin import TensorInfo

#: Tokens of the window: random ones do, as what is looked for does not hang on their meaning.
_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockKind:
    """Blocks with the same tensors, and the topology of the first of them.

    blocks: their names, in order
    """

    blocks: tuple[str, ...]
    topology: Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologyInspection:
    """What probing finds of a model.

    architecture: as config.json names it; None when it does not
    kinds: in the order of their first blocks
    """

    path: Path
    architecture: str | None
    kinds: tuple[BlockKind, ...]

    def counts(self) -> Mapping[str, int]:
        """Blocks and kinds; inputs, folds and refused candidates, of one block of each kind."""
        topologies = [kind.topology for kind in self.kinds]
        return {
            "blocks": sum(len(kind.blocks) for kind in self.kinds),
            "kinds": len(self.kinds),
            "inputs": sum(len(each.inputs) for each in topologies),
            "folds": sum(len(each.folds) for each in topologies),
            "refused": sum(not v.accepted for each in topologies for v in each.verdicts),
        }

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {
            "path": str(self.path),
            "architecture": self.architecture,
            "counts": dict(self.counts()),
            "kinds": [
                {"blocks": list(kind.blocks), **kind.topology.to_json()} for kind in self.kinds
            ],
        }


def inspect_topology(path: str | Path, *, device: str = "auto") -> TopologyInspection:
    """Find which linears share an input, and where scales fold in, in one block of each kind.

    Peak memory: one block in float32, a copy of the weights that a fold rescales, and the
    embeddings of 32 tokens.

    device: ``auto``, ``cpu``, ``cuda`` or ``cuda:n``

    Raises:
        UnreadableInput: the source is missing, malformed or hostile, or not a checkpoint.
        Unsupported: its blocks cannot be run, by transformers or in float64.
    """
    from qconv.model import open_model

    with open_source(path, load_plugins()) as checkpoint:
        info = checkpoint.model
        if info.kind == "gguf":
            raise Unsupported(
                f"{info.name}: its topology is found by running blocks with transformers, which "
                "needs a config.json; give the Hugging Face directory that the GGUF was made from"
            )
        model = open_model(checkpoint, device=device)
        return TopologyInspection(
            path=Path(path),
            architecture=architecture(info),
            kinds=_kinds(model, info.tensors),
        )


def _kinds(model: BlockModel, tensors: Mapping[str, TensorInfo]) -> tuple[BlockKind, ...]:
    alike: dict[tuple[tuple[str, tuple[int, ...]], ...], list[BlockInfo]] = {}
    for block in model.blocks:
        alike.setdefault(_likeness(block, tensors), []).append(block)
    found = []
    with model.begin([_window(model)]) as hidden:
        for blocks in alike.values():
            with model.block(blocks[0].index) as live:
                topology = live.topology(hidden)
            names = tuple(block.name for block in blocks)
            found.append(BlockKind(blocks=names, topology=topology))
    return tuple(found)


def _likeness(
    block: BlockInfo, tensors: Mapping[str, TensorInfo]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """What blocks of one kind share: names, without the block's number, and shapes of tensors."""
    number = f".{block.index}."
    return tuple(
        sorted((f".{name}".replace(number, ".", 1), tensors[name].shape) for name in block.sources)
    )


def _window(model: BlockModel) -> torch.Tensor:
    import torch

    length = min(_TOKENS, model.context_length or _TOKENS)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, model.vocab_size, (length,), generator=generator)
