"""An artifact's rows as its reader decodes them, beside what was remembered when they were encoded.

Equal bits are what a grid's ``decode`` promises. A reader that computes in another precision than
the grid does is off by roundings, which is told, and proves nothing; all else is a wrong artifact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qconv.conversion import kinds_of
from qconv.planning import matrix_shape
from qconv.validation._comparison import USELESS, no_better_than_zeros
from qconv.validation._stored import cost

if TYPE_CHECKING:
    import torch

    from qconv.conversion import KeptRows
    from qconv.planning import TargetPlan
    from qconv.plugin import ArtifactReader, TensorPlan

#: What decoding in bfloat16 with a scale and a zero-point, three roundings of 2^-9, may be off by,
#: beside the largest value of the row; and in float16, whose smallest step is 2^-24.
_ROUNDINGS, _SMALLEST = 2.0**-7, 2.0**-24

#: Decoding costs as many values as this, in all, or as this share of the artifact's.
_BUDGET, _SHARE = 64_000_000, 1 / 32

#: Values of a tensor that is decoded whole, at most: its reader may take 16 bytes for each.
_WHOLE = 1 << 26


@dataclass(slots=True)
class Look:
    """What comparing an artifact gave.

    faults, warnings: whole sentences that name the tensor
    exact: nothing but what was planned is there, and every value compared is equal
    decoded: tensors of which rows were compared; values: how many of all of them
    unseen: kinds of which none was
    """

    tensors: int
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    exact: bool = True
    decoded: int = 0
    values: int = 0
    unseen: tuple[str, ...] = ()


def look_at(target: TargetPlan, reader: ArtifactReader, kept: Mapping[str, KeptRows]) -> Look:
    """Account for all tensors, and compare what was remembered of some.

    Peak memory: a tensor as its reader decodes it; of one that reads rows, some rows.

    Raises:
        Exception: whatever the reader raises.
    """
    plans = target.tensors.tensors
    look = Look(tensors=len(plans))
    _account(plans, reader, look)
    if look.faults:
        return look
    kinds = kinds_of(plans)
    known = {kind: [plan for plan in each if plan.name in kept] for kind, each in kinds.items()}
    seen = set()
    for kind, plan in _affordable(known, reader, target.weights):
        seen.add(kind)
        _compare(plan, reader, kept[plan.name], look)
    look.unseen = tuple(kind for kind in kinds if kind not in seen)
    return look


def _account(plans: Sequence[TensorPlan], reader: ArtifactReader, look: Look) -> None:
    """Every planned tensor is there, in its shape; what else is there is told."""
    there = reader.tensors
    for plan in plans:
        info = there.get(plan.name)
        if info is None:
            look.faults.append(f"tensor {plan.name!r} is missing")
        elif matrix_shape(tuple(info.shape)) != matrix_shape(plan.shape):
            look.faults.append(
                f"tensor {plan.name!r} has shape {tuple(info.shape)}, planned was {plan.shape}"
            )
    names = {plan.name for plan in plans}
    extra = sorted(name for name in there if name not in names)
    look.exact = not look.faults and not extra
    if extra:
        look.warnings.append(not_planned(extra))


def not_planned(names: Sequence[str]) -> str:
    """Of tensors that are in an artifact beside all that should be."""
    return f"{len(names)} tensors are in the artifact that were not planned, {names[0]!r} first"


def _affordable(
    known: Mapping[str, Sequence[TensorPlan]], reader: ArtifactReader, weights: int
) -> Iterator[tuple[str, TensorPlan]]:
    """Kind and plan: the first of every kind, cheapest first, then the last; within the budget."""
    firsts = [(kind, plans[0]) for kind, plans in known.items() if plans]
    lasts = [(kind, plans[-1]) for kind, plans in known.items() if len(plans) > 1]
    by_rows = hasattr(reader, "read_rows")
    left = max(_BUDGET, int(weights * _SHARE))
    for group in (firsts, lasts):
        costs = [(cost(reader, plan.name), kind, plan) for kind, plan in group]
        for price, kind, plan in sorted(costs, key=lambda each: each[0]):
            if price <= left and (by_rows or price <= _WHOLE):
                left -= price
                yield kind, plan


def _compare(plan: TensorPlan, reader: ArtifactReader, kept: KeptRows, look: Look) -> None:
    import torch

    numbers = sorted(kept.rows)
    expected = torch.stack([kept.rows[number] for number in numbers])
    order: Any = getattr(plan, "value_order", None)  # of vectors, which are one row to the host
    if order is not None:
        expected = expected[:, torch.tensor(list(order.index))]
    found = _found(plan, reader, numbers)
    fault = warning = None
    if found is None:
        fault = "its values have another shape than was planned"
    elif not bool(_same(found, expected).all()):
        look.exact = False
        fault, warning = _differing(found, expected, numbers)
    elif (kept.relative_error or 0.0) > USELESS:
        warning = f"{no_better_than_zeros(kept.relative_error or 0.0)} in {len(numbers)} rows"
    look.decoded += 1
    look.values += expected.numel()
    if fault:
        look.faults.append(f"tensor {plan.name!r}: {fault}")
    if warning:
        look.warnings.append(f"tensor {plan.name!r}: {warning}")


def _found(plan: TensorPlan, reader: ArtifactReader, numbers: Sequence[int]) -> torch.Tensor | None:
    """Rows as decoded: (rows, columns) float32; None where the shape is another."""
    import torch

    rows, columns = matrix_shape(plan.shape)
    by_rows: Any = getattr(reader, "read_rows", None)
    if by_rows is not None:
        return torch.cat([by_rows(plan.name, number, number + 1) for number in numbers]).float()
    whole = reader.read(plan.name)
    if whole.numel() != rows * columns:
        return None
    return whole.reshape(rows, columns)[list(numbers)].float()


def _same(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Where values are equal: zeros of either sign are, and NaNs, which only copies hold."""
    return (found == expected) | (found.isnan() & expected.isnan())


def _differing(
    found: torch.Tensor, expected: torch.Tensor, numbers: Sequence[int]
) -> tuple[str | None, str | None]:
    """A fault, or, where only roundings differ, a warning."""
    import torch

    same = _same(found, expected)
    largest = expected.nan_to_num(0.0, 0.0, 0.0).abs().amax(1, keepdim=True)
    allowed = torch.clamp_min(_ROUNDINGS * largest, _SMALLEST)
    near = (found - expected).abs() <= allowed  # of what is not finite: never
    wrong = torch.nonzero(~same & ~near)
    if not len(wrong):
        worst = float(((found - expected).abs() / largest)[~same].max())
        return None, (
            f"{int((~same).sum())} of {same.numel()} values differ by roundings from what was "
            f"encoded (by {worst:.2g} of the row's largest at most)"
        )
    row, column = (int(at) for at in wrong[0])
    told = (
        f"row {numbers[row]}, column {column} decodes to {float(found[row, column]):g}, but "
        f"{float(expected[row, column]):g} was encoded ({len(wrong)} of {same.numel()} values "
        "are wrong)"
    )
    other = _whose_row(found[row], expected, row)
    if other is not None:
        told += f"; that is row {numbers[other]}: rows in another order?"
    return told, None


def _whose_row(found: torch.Tensor, expected: torch.Tensor, own: int) -> int | None:
    """Which of the other rows the decoded one is, if any."""
    alike = _same(expected, found[None]).all(1)
    alike[own] = False
    return int(alike.nonzero()[0]) if bool(alike.any()) else None
