"""What a worker does with a slab: read it once, quantize once per grid, encode per target."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from qconv.conversion._activations import with_activation
from qconv.conversion._journal import Slab
from qconv.conversion._slabs import read_slab
from qconv.errors import UnreadableInput, UnsupportedGrid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from qconv.conversion._remembered import Remembered
    from qconv.conversion._slabs import Job
    from qconv.grids import Grid
    from qconv.plugin import Backend, TensorPlan
    from qconv.statistics import Statistics
    from qconv.tensors import QuantTensor

Encoded = list[tuple[int, Slab, "Sequence[bytes | memoryview]"]]


class RowSource(Protocol):
    """Where rows come from: a checkpoint, or a block of one that transforms have changed."""

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop`` as floats, (stop - start, last dimension)."""
        ...

    def read_raw(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop`` as stored: (stop - start, bytes per row) uint8."""
        ...


class Rounding(Protocol):
    """How codes are chosen for the rows of a job."""

    @property
    def statistics(self) -> Mapping[str, Statistics]:
        """What is known of inputs, by the source name of the weight."""
        ...

    def quantize(self, rows: Rows, plan: TensorPlan, grid: Grid) -> QuantTensor:
        """Quantize the slab onto ``grid``, rows as in the artifact."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """Shared by all threads; holds nothing of a slab.

    backends: of each target
    done: slabs each target has already
    remembered: takes down what rows decode to; None: nobody asks
    """

    source: RowSource
    rounding: Rounding
    backends: Sequence[Backend]
    done: Sequence[frozenset[Slab]]
    remembered: Remembered | None = None

    def encode(self, job: Job, start: int, stop: int) -> Encoded:
        """Encode rows ``start:stop`` for every target that lacks them.

        Raises:
            UnreadableInput: a value is NaN or infinite.
            UnsupportedGrid: the values do not suit the grid or dtype.
        """
        rows = Rows(source=self.source, job=job, start=start, stop=stop)
        encoded: Encoded = []
        for number, plan in job.uses:
            slab = Slab(tensor=plan.name, start=start, stop=stop)
            if slab not in self.done[number]:
                value = self.value(rows, plan)
                if self.remembered is not None:
                    self.remembered.saw(number, slab, rows, plan, value)
                encoded.append((number, slab, self.backends[number].encode(plan, value)))
        return encoded

    def value(self, rows: Rows, plan: TensorPlan) -> torch.Tensor | QuantTensor:
        """What the backend encodes of the slab for one target."""
        if plan.dtype == "raw":
            return rows.raw()
        if plan.grid is None:
            return _cast(rows, plan)
        for grid, done in rows.quantized:
            if grid == plan.grid:
                return with_activation(done, plan, self.rounding.statistics)
        try:
            result = self.rounding.quantize(rows, plan, plan.grid)
        except UnsupportedGrid as error:
            _refuse_non_finite(rows, plan)
            counted = f" (rows counted from {rows.start})" if rows.start else ""
            raise UnsupportedGrid(f"tensor {plan.name!r}{counted}: {error}") from error
        rows.quantized.append((plan.grid, result))
        return with_activation(result, plan, self.rounding.statistics)


@dataclass(slots=True, kw_only=True)
class Rows:
    """The slab in hand: read when first asked for, kept for all targets."""

    source: RowSource
    job: Job
    start: int
    stop: int
    quantized: list[tuple[Grid, QuantTensor]] = field(default_factory=list)
    _stored: torch.Tensor | None = None

    def raw(self) -> torch.Tensor:
        """As stored, uint8."""
        return read_slab(self.job, self.start, self.stop, self.source.read_raw)

    def stored(self, plan: TensorPlan) -> torch.Tensor:
        """As floats, (rows, columns)."""
        if self._stored is None:
            self._stored = self._generated(plan) if plan.values is not None else self._read()
        return self._stored

    def only(self, row: int) -> Rows:
        """One row, by its number in the artifact."""
        return Rows(source=self.source, job=self.job, start=row, stop=row + 1)

    def at_hand(self, wanted: Sequence[int]) -> torch.Tensor | None:
        """Rows by their numbers in the artifact, float32 on the CPU; None where none were read."""
        if self._stored is None:
            return None
        return self._stored[[row - self.start for row in wanted]].float().cpu()

    def _read(self) -> torch.Tensor:
        return read_slab(self.job, self.start, self.stop, self.source.read_rows)

    def _generated(self, plan: TensorPlan) -> torch.Tensor:
        import torch

        whole = torch.tensor(plan.values, dtype=torch.float32)
        return whole.reshape(self.job.rows, self.job.columns)[self.start : self.stop]


def _cast(rows: Rows, plan: TensorPlan) -> torch.Tensor:
    import torch

    stored = rows.stored(plan)
    cast = stored.to(getattr(torch, str(plan.dtype)))
    if not torch.isfinite(cast).all():
        _refuse_non_finite(rows, plan)
        largest = float(stored.abs().max())
        raise UnsupportedGrid(
            f"tensor {plan.name!r}: its largest magnitude {largest:g} does not fit {plan.dtype}; "
            "choose a format with bfloat16 or float32 for it"
        )
    return cast


def _refuse_non_finite(rows: Rows, plan: TensorPlan) -> None:
    """Say where the first NaN or infinity of the slab stands, if there is one."""
    import torch

    stored = rows.stored(plan)
    bad = torch.nonzero(~torch.isfinite(stored.float()))
    if len(bad):
        row, column = (int(at) for at in bad[0])
        source, source_row = rows.job.origin(rows.start + row) or (plan.name, rows.start + row)
        value = float(stored[row, column])
        if rows.job.arrangement == "transposed":
            source_row, column = column, source_row
        raise UnreadableInput(
            f"tensor {source!r} (for {plan.name!r}): row {source_row}, column {column} is "
            f"{value}; a weight must be finite: the checkpoint is damaged, "
            "download it again (qconv inspect lists every such tensor)"
        )
