"""What a format is expected to lose, before anything is measured: by the bits that weights get.

Classes and their usual KL divergence from the float model are those published for models of about
8 billion parameters (llama.cpp's table in https://github.com/ggml-org/llama.cpp/pull/6936, and
https://arxiv.org/abs/2411.02355); smaller models lose more. ``qconv validate`` measures.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qconv._sources import OpenedSource
    from qconv.grids import Grid
    from qconv.planning import TargetPlan

#: Share of the weights that must be of a class, or of a worse one, for an artifact to be.
_SHARE = 0.1

#: Bits of a significand and of an exponent; a float type holds those that have no more of both.
_FLOATS = {"F64": (53, 11), "F32": (24, 8), "F16": (11, 5), "BF16": (8, 8)}

#: Blocks of 32 with one scale each: llama.cpp's first types, which its K-quants outdid.
_PLAIN_BLOCKS = ("q4_0", "q4_1", "q5_0", "q5_1")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Quality:
    """A predicted class; the least loss sorts first.

    rank: 0 for a copy, up to 7
    plain: of two of one rank, scales that are not refined lose more
    kl: nats per token, usually, at 8 billion parameters; 0 for a copy
    """

    rank: int
    plain: bool = False
    name: str
    kl: float


_COPY = Quality(rank=0, name="lossless", kl=0.0)
_FLOAT = Quality(rank=1, name="next to lossless", kl=0.0005)
_EIGHT_INPUTS = Quality(rank=3, name="very good", kl=0.01)

#: By bits per weight from which on a class holds.
_CLASSES = (
    (7.5, Quality(rank=2, name="near lossless", kl=0.0015)),
    (6.1, Quality(rank=3, name="very good", kl=0.006)),
    (5.2, Quality(rank=4, name="good", kl=0.012)),
    (3.9, Quality(rank=5, name="fair", kl=0.03)),
    (2.9, Quality(rank=6, name="poor", kl=0.1)),
    (0.0, Quality(rank=7, name="bad", kl=0.3)),
)


def planned_quality(target: TargetPlan) -> Quality:
    """The class of what a target will write."""
    stored = target.request.model.tensors
    found = []
    for plan in target.tensors.tensors:
        rows, columns = _matrix(plan.shape)
        if plan.grid is not None:
            inputs = plan.activation is not None
            kind = _of_grid(plan.grid, (rows, columns), inputs=inputs)
            found.append((rows * columns, kind))
        else:
            kept = all(_holds(plan.storage, stored[name].dtype) for name in plan.sources)
            found.append((rows * columns, _COPY if kept or plan.action == "copy" else _FLOAT))
    return _overall(found)


def stored_quality(source: OpenedSource) -> Quality:
    """The class of what a checkpoint holds already, measured against the float it came from."""
    encoded = getattr(source, "encoded", {})
    found = []
    for name, info in source.model.tensors.items():
        if name in encoded:
            tensor = encoded[name]
            inputs = tensor.activation is not None
            found.append((info.numel, _of_grid(tensor.grid, tensor.shape, inputs=inputs)))
        elif info.dtype in _FLOATS or not info.numel:
            found.append((info.numel, _COPY))
        else:
            plain = info.dtype.lower() in _PLAIN_BLOCKS
            found.append((info.numel, _of_bits(8 * info.nbytes / info.numel, plain=plain)))
    return _overall(found)


def _of_grid(grid: Grid, shape: tuple[int, int], *, inputs: bool) -> Quality:
    kind = _of_bits(grid.bits_per_weight(shape), plain=grid.name in _PLAIN_BLOCKS)
    return max(kind, _EIGHT_INPUTS) if inputs else kind


def _of_bits(bits: float, *, plain: bool) -> Quality:
    kind = next(kind for least, kind in _CLASSES if bits >= least)
    return Quality(rank=kind.rank, plain=plain, name=kind.name, kl=kind.kl)


def _holds(storage: str, source: str) -> bool:
    """Whether every value of one float type is one of the other, too."""
    if storage.upper() not in _FLOATS or source not in _FLOATS:
        return storage.upper() == source
    mine, theirs = _FLOATS[storage.upper()], _FLOATS[source]
    return mine[0] >= theirs[0] and mine[1] >= theirs[1]


def _overall(found: Iterable[tuple[int, Quality]]) -> Quality:
    """The worst class that holds, with worse ones, for more than a few of the weights."""
    found = list(found)
    total, seen = sum(count for count, _ in found), 0
    for count, kind in sorted(found, key=lambda item: item[1], reverse=True):
        seen += count
        if seen >= _SHARE * total:
            return kind
    return _COPY


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    from qconv.planning import matrix_shape

    return matrix_shape(shape)
