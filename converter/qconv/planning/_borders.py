"""The border to backends: what a plugin declares is checked before the host builds on it."""

from __future__ import annotations

from math import prod
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from qconv.errors import BrokenPlugin, UnsupportedGrid

if TYPE_CHECKING:
    from qconv.plugin import (
        Arrangement,
        FilePlan,
        Layout,
        ModelInfo,
        Place,
        TensorPlan,
        TensorPlans,
    )


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """``(rows, columns)``: all dimensions but the last count as rows; a vector is one row."""
    return (prod(shape[:-1]), shape[-1]) if shape else (1, 1)


def arranged_shape(shape: tuple[int, ...], arrangement: Arrangement) -> tuple[int, int]:
    """``(rows, columns)`` of a source tensor of that shape, as an artifact takes it."""
    rows, columns = matrix_shape(shape)
    if arrangement == "transposed":
        return columns, rows
    if arrangement == "flat":
        return (shape[0], prod(shape[1:])) if shape else (1, 1)
    return rows, columns


def check_plans(label: str, model: ModelInfo, plans: TensorPlans) -> None:
    """Check that each tensor's plan is whole and its shape is that of its sources.

    Raises:
        BrokenPlugin: in words addressed to the plugin's author.
        UnsupportedGrid: a grid that the tensor's shape does not suit.
    """
    for plan in plans.tensors:
        _check_kind(label, plan)
        rows, columns = matrix_shape(plan.shape)
        if plan.grid is not None:
            try:
                plan.grid.check_shape((rows, columns), plan.name)
            except UnsupportedGrid as error:
                raise UnsupportedGrid(f"{label}: {error}") from None
        if plan.sources:
            _check_shape(label, model, plan, rows, columns)


def _check_kind(label: str, plan: TensorPlan) -> None:
    ways = [plan.grid is not None, plan.dtype is not None]
    if sum(ways) != 1:
        raise BrokenPlugin(
            f"plugin author: {label} tensor {plan.name!r} needs a grid or a dtype, and not both"
        )
    if (plan.values is not None) != (not plan.sources):
        raise BrokenPlugin(
            f"plugin author: {label} tensor {plan.name!r} needs sources or values, and not both"
        )


def _check_shape(label: str, model: ModelInfo, plan: TensorPlan, rows: int, columns: int) -> None:
    if plan.arrangement != "rows":
        _check_arrangement(label, plan)
    shapes = [
        arranged_shape(model.tensors[source].shape, plan.arrangement) for source in plan.sources
    ]
    whole = sum(shape[0] for shape in shapes)
    if any(shape[1] != columns for shape in shapes):
        raise BrokenPlugin(
            f"plugin author: {label} tensor {plan.name!r} has {columns} columns, "
            f"but its sources have {sorted({shape[1] for shape in shapes})}"
        )
    given = len(plan.row_order.index) if plan.row_order else whole
    if given != rows:
        raise BrokenPlugin(
            f"plugin author: {label} tensor {plan.name!r} has {rows} rows, "
            f"but its sources and row order give {given}"
        )
    if plan.row_order and rows and min(plan.row_order.index) < 0:
        raise BrokenPlugin(f"plugin author: {label} tensor {plan.name!r}: negative row in order")
    if plan.row_order and rows and max(plan.row_order.index) >= whole:
        raise BrokenPlugin(
            f"plugin author: {label} tensor {plan.name!r}: row order names row "
            f"{max(plan.row_order.index)}, but the sources have {whole} rows"
        )


def _check_arrangement(label: str, plan: TensorPlan) -> None:
    if len(plan.sources) > 1 or plan.row_order is not None or plan.dtype == "raw":
        raise BrokenPlugin(
            f"plugin author: {label} tensor {plan.name!r} is {plan.arrangement}, so it must have "
            "one source, no row order, and not be copied raw"
        )


def check_layout(label: str, plans: TensorPlans, layout: Layout) -> None:
    """Check that files and places are whole: nothing overlaps, nothing lies outside.

    Raises:
        BrokenPlugin: in words addressed to the plugin's author.
    """
    files = {file.path: file for file in layout.files}
    for file in layout.files:
        _check_file(label, file)
    taken: dict[str, list[tuple[int, int, str]]] = {
        path: [(0, len(file.header), "the header")] for path, file in files.items()
    }
    for plan in plans.tensors:
        for place in layout.places.get(plan.name) or _no_place(label, plan):
            if place.file not in files:
                raise BrokenPlugin(
                    f"plugin author: {label} places {plan.name!r} in unknown file {place.file!r}"
                )
            _check_place(label, plan, place)
            taken[place.file].append((place.offset, place.offset + place.nbytes, plan.name))
    for path, ranges in taken.items():
        _check_ranges(label, files[path], sorted(ranges))


def _no_place(label: str, plan: TensorPlan) -> tuple[Place, ...]:
    raise BrokenPlugin(f"plugin author: {label} has no place for tensor {plan.name!r}")


def _check_file(label: str, file: FilePlan) -> None:
    path = PurePosixPath(file.path)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise BrokenPlugin(
            f"plugin author: {label} writes {file.path!r}, which is not inside the output directory"
        )


def _check_place(label: str, plan: TensorPlan, place: Place) -> None:
    rows, _ = matrix_shape(plan.shape)
    if place.row_nbytes is not None and place.row_nbytes * rows != place.nbytes:
        raise BrokenPlugin(
            f"plugin author: {label} tensor {plan.name!r}: {rows} rows of {place.row_nbytes} bytes "
            f"are not {place.nbytes} bytes"
        )
    if place.rows_together < 1 or (place.row_nbytes is not None and rows % place.rows_together):
        raise BrokenPlugin(
            f"plugin author: {label} tensor {plan.name!r}: rows_together is {place.rows_together}, "
            f"which does not divide {rows} rows"
        )


def _check_ranges(label: str, file: FilePlan, ranges: list[tuple[int, int, str]]) -> None:
    end, owner = 0, "the start"
    for start, stop, name in ranges:
        if start < end:
            raise BrokenPlugin(
                f"plugin author: {label} file {file.path!r}: {name} at byte {start} overlaps "
                f"{owner}, which ends at {end}"
            )
        end, owner = stop, name
    if end > file.nbytes:
        raise BrokenPlugin(
            f"plugin author: {label} file {file.path!r}: {owner} ends at byte {end}, "
            f"the file at {file.nbytes}"
        )
