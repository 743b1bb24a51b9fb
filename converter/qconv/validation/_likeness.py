"""Whose values a tensor holds, when they are not its own: those of another, or its own rows moved.

Only asked of tensors that were found wrong, so that the message helps to find out why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from qconv._sources import OpenedSource
    from qconv.plugin import TensorPlan

#: Cosine from which on rows are taken for the same, however coarse the grid.
_SAME = 0.8

#: Tensors of the same shape that are looked at, and rows that are searched for.
_TENSORS, ROWS = 4096, 1024


def whose_values(
    found: torch.Tensor,
    expected: torch.Tensor,
    plan: TensorPlan,
    source: OpenedSource,
) -> Iterator[str]:
    """At most one sentence on where the values seem to come from.

    found: (rows, columns) float32, decoded
    expected: the first rows of what it should be, at most :data:`ROWS`
    """
    if len(plan.sources) != 1 or found.shape[0] < 2 or plan.arrangement != "rows":
        return
    other = _other_tensor(found[0], plan.sources[0], source)
    if other is not None:
        yield f"its rows are those of {other!r}: swapped?"
        return
    moved = _moved_rows(found, expected)
    if moved is not None:
        yield f"its row {moved[0]} is what row {moved[1]} should be: rows in another order?"


def _other_tensor(row: torch.Tensor, own: str, source: OpenedSource) -> str | None:
    infos = source.model.tensors
    shape = infos[own].shape
    alike = [name for name, info in infos.items() if info.shape == shape and name != own]
    for name in alike[:_TENSORS]:
        if _cosine(row, source.read_rows(name, 0, 1)[0]) > _SAME:
            return name
    return None


def _moved_rows(found: torch.Tensor, expected: torch.Tensor) -> tuple[int, int] | None:
    """A row that is another one: which it is, and which it should be."""
    import torch

    if not bool(torch.isfinite(found).all()):
        return None
    normed = torch.nn.functional.normalize(expected.float(), dim=1)
    mine = torch.nn.functional.normalize(found[: len(expected)], dim=1)
    best = (mine @ normed.T).max(1)
    moved = (best.values > _SAME) & (best.indices != torch.arange(len(mine)))
    at = torch.nonzero(moved)
    return (int(at[0]), int(best.indices[at[0]])) if len(at) else None


def _cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    import torch

    return float(torch.nn.functional.cosine_similarity(one.float(), other.float(), dim=0))
