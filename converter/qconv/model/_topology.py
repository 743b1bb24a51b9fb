"""What probing finds of a block: which linears share an input, and where scales can be folded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

#: A norm that multiplies by its weight, one that multiplies by ``1 + weight``, rows of a linear.
FoldKind = Literal["norm", "norm_plus_one", "linear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearPart:
    """A linear weight as the block uses it: a parameter, one expert's slice of it, or some rows.

    parameter: path in the block
    expert: index along the first dimension of a 3-D parameter; None when the parameter is 2-D
    rows: outputs ``start:stop`` inside the parameter, or inside the expert's slice
    columns: how many inputs
    transposed: stored ``(in, out)``
    """

    parameter: str
    expert: int | None
    rows: tuple[int, int]
    columns: int
    transposed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFold:
    """A place where scales fold in: the block's output stays when both sides are rescaled.

    Channel ``c`` of the producer is divided by ``s[c]``, column ``j`` of every consumer is
    multiplied by ``s[channel_of[j]]``; scales are positive.

    kind: how the producer's value becomes a factor of its channel
    producer: path of a norm's weight (channels,), or of a linear weight
    bias: path of the bias, which is divided with it; for an expert, its row of the bias
    expert: as in :class:`LinearPart`, for a linear producer
    transposed: the producer is stored ``(in, out)``
    rows: the producer's value, or output, of every channel
    channel_of: for every column of a consumer, its channel
    """

    kind: FoldKind
    producer: str
    bias: str | None
    expert: int | None
    transposed: bool
    rows: tuple[int, ...]
    consumers: tuple[LinearPart, ...]
    channel_of: tuple[int, ...]

    @property
    def channels(self) -> int:
        """How many scales it takes."""
        return len(self.rows)

    @property
    def row_range(self) -> tuple[int, int] | None:
        """``(start, stop)`` of the rows; None when they are not one after the other."""
        start, stop = self.rows[0], self.rows[0] + len(self.rows)
        return (start, stop) if self.rows == tuple(range(start, stop)) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A candidate and what became of it. ``[*]`` in a name stands for all experts.

    folds: how many folds it gave, one per expert
    error: relative change of the block's output after rescaling; None when it came to no run
    """

    kind: FoldKind
    producer: str
    consumers: tuple[str, ...]
    accepted: bool
    reason: str
    folds: int
    error: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The topology of one block.

    shapes: the block's parameters by path; what two blocks of one kind have in common
    inputs: linears that are given one and the same input, in order of use
    """

    shapes: Mapping[str, tuple[int, ...]]
    inputs: tuple[tuple[LinearPart, ...], ...]
    folds: tuple[BlockFold, ...]
    verdicts: tuple[Verdict, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; channel maps are told by their sizes only."""
        return {
            "inputs": [[asdict(part) for part in group] for group in self.inputs],
            "folds": [_fold_json(fold) for fold in self.folds],
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
        }


def _fold_json(fold: BlockFold) -> dict[str, Any]:
    return {
        "kind": fold.kind,
        "producer": fold.producer,
        "bias": fold.bias,
        "expert": fold.expert,
        "rows": fold.row_range,
        "channels": fold.channels,
        "columns": len(fold.channel_of),
        "consumers": [asdict(part) for part in fold.consumers],
    }


def label(parameter: str, expert: int | str | None, rows: Sequence[int] | None, total: int) -> str:
    """A name for people, e.g. ``mlp.experts.gate_up_proj[3, 64:128]``.

    rows: None, or as many as ``total``, for all rows
    """
    inside = [] if expert is None else [str(expert)]
    if rows is not None and len(rows) != total:
        straight = list(rows) == list(range(rows[0], rows[0] + len(rows)))
        inside.append(f"{rows[0]}:{rows[-1] + 1}" if straight else f"{len(rows)} rows")
    return f"{parameter}[{', '.join(inside)}]" if inside else parameter


def apply_fold(
    tensors: Mapping[str, torch.Tensor], fold: BlockFold, scales: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The tensors that a fold changes, rescaled; those given are not modified.

    tensors: the block's parameters by path
    scales: (channels,), positive
    """
    return apply_folds(tensors, [(fold, scales)])


def apply_folds(
    tensors: Mapping[str, torch.Tensor], folds: Iterable[tuple[BlockFold, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """The tensors that folds change, rescaled by one after the other, in their own dtype.

    Memory: one copy of each tensor that changes, and one in float32 of the part in hand.
    """
    changed: dict[str, torch.Tensor] = {}

    def at(path: str) -> torch.Tensor:
        if path not in changed:
            changed[path] = tensors[path].detach().clone()
        return changed[path]

    for fold, scales in folds:
        _divide_producer(at(fold.producer), fold, scales)
        if fold.bias is not None:
            _divide(_expert(at(fold.bias), fold.expert), fold.rows, scales)
        for part in fold.consumers:
            weight = _expert(at(part.parameter), part.expert)
            _multiply_columns(weight.T if part.transposed else weight, part, fold, scales)
    return changed


def _expert(tensor: torch.Tensor, expert: int | None) -> torch.Tensor:
    return tensor if expert is None else tensor[expert]


def _divide_producer(tensor: torch.Tensor, fold: BlockFold, scales: torch.Tensor) -> None:
    """Change the copy ``tensor`` in place."""
    tensor = _expert(tensor, fold.expert)
    if fold.kind == "norm_plus_one":
        precise = tensor.double()
        tensor.copy_((1 + precise) / scales.to(precise) - 1)
        return
    _divide(tensor.T if fold.transposed else tensor, fold.rows, scales)


def _divide(tensor: torch.Tensor, rows: Sequence[int], scales: torch.Tensor) -> None:
    import torch

    index = torch.tensor(rows, device=tensor.device)
    part = _wide(tensor[index])
    scales = scales.to(part).reshape(-1, *[1] * (part.dim() - 1))
    tensor[index] = (part / scales).to(tensor.dtype)


def _multiply_columns(
    weight: torch.Tensor, part: LinearPart, fold: BlockFold, scales: torch.Tensor
) -> None:
    import torch

    rows = weight[part.rows[0] : part.rows[1]]
    wide = _wide(rows)
    index = torch.tensor(fold.channel_of, device=scales.device)
    rows.copy_(wide * scales[index].to(wide))


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return tensor if tensor.dtype == torch.float64 else tensor.float()
