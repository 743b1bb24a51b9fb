"""How a check says no, and the facts that more than one check needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from qconv.grids import Grid
    from qconv.statistics import Statistics


class ConformanceError(AssertionError):
    """A rule of the plugin API is broken; the message says which, and by what."""


def require(holds: object, message: str) -> None:
    """Raise ConformanceError with ``message`` unless ``holds``."""
    if not holds:
        raise ConformanceError(message)


def sample_weight(rows: int, columns: int) -> torch.Tensor:
    """(rows, columns) float32: normal values, one row of zeros, one outlier; always the same."""
    import torch

    generator = torch.Generator().manual_seed(rows * 1_000_003 + columns)
    weight = torch.randn(rows, columns, generator=generator) * 0.05
    weight[1] = 0.0
    weight[2, 3] = 4.0
    return weight


def sample_importance(columns: int) -> torch.Tensor:
    """(columns,) float32, positive; always the same."""
    import torch

    generator = torch.Generator().manual_seed(columns)
    return torch.rand(columns, generator=generator) + 0.1


def sample_statistics(columns: int) -> Statistics:
    """Of twice as many correlated rows as columns, one column always zero; always the same."""
    import torch

    from qconv.statistics import StatisticsSum

    generator = torch.Generator().manual_seed(columns)
    rows = torch.randn(2 * columns, columns, generator=generator)
    rows += 0.5 * rows.roll(1, dims=1)
    rows *= torch.rand(columns, generator=generator) + 0.1
    rows[:, 5] = 0.0
    total = StatisticsSum(columns)
    total.add(rows)
    return total.total()


def equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Same type, shape and bits."""
    import torch

    return left.dtype == right.dtype and torch.equal(left, right)


def check_stored(
    what: str,
    grid: Grid,
    shape: tuple[int, int],
    codes: torch.Tensor,
    parameters: Mapping[str, torch.Tensor],
) -> None:
    """Check that codes and parameters have the types and shapes the grid declares."""
    declared = grid.layout(shape)
    stored = {"codes": codes, **parameters}
    require(
        set(stored) == set(declared),
        f"{what}: stores {sorted(stored)}, but the grid's layout declares {sorted(declared)}",
    )
    for name, tensor in stored.items():
        found = (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        require(
            found == (tuple(declared[name][0]), declared[name][1]),
            f"{what}: {name} is {found}, but the grid's layout declares {declared[name]}",
        )
