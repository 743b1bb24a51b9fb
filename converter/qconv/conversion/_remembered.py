"""What some rows decode to, remembered while they are encoded: to be compared with the artifact.

Of every kind of tensor (a name without its numbers) the first and the last are watched, and of
these some rows, spread from the first to the last. So whatever method chose the codes, and whatever
it made of the weights, the values that the artifact must hold are known, bit for bit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qconv.planning import matrix_shape

if TYPE_CHECKING:
    import torch

    from qconv.conversion._journal import Slab
    from qconv.conversion._work import Rows
    from qconv.planning import TargetPlan
    from qconv.plugin import TensorPlan
    from qconv.tensors import QuantTensor

#: Values remembered of a tensor, at most (256 KiB), and of all tensors of a target.
_VALUES, _ALL_VALUES = 1 << 16, 1 << 23

#: Values of a tensor whose rows share parameters, which must be decoded whole, at most: 256 MiB.
_WHOLE = 1 << 26

#: Numbers in a tensor's name: of blocks, experts, and the like.
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")

#: Torch's names of float types, which a tensor that a transform changed is rounded to.
_FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


def kind_of(name: str) -> str:
    """The name with ``*`` for its numbers: ``model.layers.*.mlp.up_proj.weight``."""
    return _NUMBER.sub("*", name)


def kinds_of(plans: Sequence[TensorPlan]) -> Mapping[str, list[TensorPlan]]:
    """The tensors that hold values, by kind, in the order of the file."""
    kinds: dict[str, list[TensorPlan]] = {}
    for plan in plans:
        if all(plan.shape):
            kinds.setdefault(kind_of(plan.name), []).append(plan)
    return kinds


@dataclass(slots=True)
class KeptRows:
    """Rows of one tensor of an artifact.

    rows: decoded, by their number in the artifact, (columns,) float32, in the order they came
    squares: of rows of which it was at hand what the rounder was given, sums of squares: of decoded
        less given values, and of the given
    """

    rows: dict[int, torch.Tensor] = field(default_factory=dict)
    squares: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def relative_error(self) -> float | None:
        """What rounding lost of these rows; None where it is not known."""
        energy = math.fsum(given for _, given in self.squares.values())
        error = math.fsum(lost for lost, _ in self.squares.values())
        return (error / energy) ** 0.5 if energy else None


@dataclass(frozen=True, slots=True)
class Remembered:
    """Rows by the label of their target and the name of their tensor. Safe to fill from threads.

    Memory: 256 KiB a tensor that is watched, 32 MiB a target.
    """

    _kept: dict[str, dict[str, KeptRows]] = field(default_factory=dict)
    _labels: list[str] = field(default_factory=list)
    _done: list[frozenset[Slab]] = field(default_factory=list)

    def begin(self, targets: Sequence[TargetPlan], done: Sequence[frozenset[Slab]]) -> None:
        """Choose what to watch.

        done: slabs that each target has, of which nothing is remembered
        """
        for target in targets:
            self._labels.append(target.label)
            self._kept[target.label] = {name: KeptRows() for name in _watched(target)}
        self._done.extend(done)

    def of(self, label: str) -> Mapping[str, KeptRows]:
        """What is known of a target, by the names of tensors that something is known of."""
        return {name: kept for name, kept in self._kept.get(label, {}).items() if kept.rows}

    def saw(
        self,
        number: int,
        slab: Slab,
        rows: Rows,
        plan: TensorPlan,
        value: torch.Tensor | QuantTensor,
    ) -> None:
        """Keep rows of what the backend is about to encode.

        number: of the target
        value: of the slab; see :meth:`qconv.plugin.Backend.encode`
        """
        kept = self._kept[self._labels[number]].get(plan.name)
        if kept is None or slab in self._done[number]:
            return
        wanted = [row for row in _rows_of(plan) if slab.start <= row < slab.stop]
        if not wanted:
            return
        decoded = _decoded(rows, plan, value, wanted)
        if decoded is None:
            return
        given = rows.at_hand(wanted)
        if given is not None:
            error = (decoded - given).double().square().sum(1).tolist()
            energy = given.double().square().sum(1).tolist()
            kept.squares.update(zip(wanted, zip(error, energy, strict=True), strict=True))
        kept.rows.update(zip(wanted, decoded.unbind(), strict=True))


def _watched(target: TargetPlan) -> Iterator[str]:
    """The first tensor of every kind, then the last, as far as the memory goes."""
    kinds = kinds_of(target.tensors.tensors).values()
    left = _ALL_VALUES
    for plan in [*(each[0] for each in kinds), *(each[-1] for each in kinds)]:
        left -= len(_rows_of(plan)) * matrix_shape(plan.shape)[1]
        if left < 0:
            return
        yield plan.name


def _rows_of(plan: TensorPlan) -> list[int]:
    """The rows of a tensor that are remembered, first and last included."""
    rows, columns = matrix_shape(plan.shape)
    count = min(rows, max(2, _VALUES // columns))
    return sorted({number * (rows - 1) // max(1, count - 1) for number in range(count)})


def _decoded(
    rows: Rows, plan: TensorPlan, value: torch.Tensor | QuantTensor, wanted: Sequence[int]
) -> torch.Tensor | None:
    """Rows as the artifact must hold them: (rows, columns) float32; None where that is not known.

    wanted: their numbers in the artifact
    """
    import torch

    if plan.dtype == "raw":
        return _as_stored(rows, plan, wanted)
    index = [row - rows.start for row in wanted]
    if isinstance(value, torch.Tensor):
        return value[index].float().cpu()
    if value.grid.rows_independent:
        return value.take_rows(index).to("cpu").dequantize()
    if value.shape[0] * value.shape[1] > _WHOLE:
        return None
    return value.dequantize()[index].cpu()


def _as_stored(rows: Rows, plan: TensorPlan, wanted: Sequence[int]) -> torch.Tensor | None:
    """Rows that are copied as they are, read as numbers."""
    import torch

    if plan.arrangement == "transposed":
        return None  # every row of it would be a read of the whole
    parts = [rows.only(row).stored(plan) for row in wanted]
    dtype = _FLOATS.get(plan.storage.upper())
    stored = torch.cat(parts)
    return (stored if dtype is None else stored.to(getattr(torch, dtype))).float().cpu()
