"""The fate of every tensor: linear weights of blocks are quantized, all others carried over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qconv.errors import Unsupported, UnsupportedGrid
from qconv.plugin import Action, ModelInfo, PlanRequest, RowOrder, TensorPlan, TensorPlans

from ._dtypes import TORCH_FLOATS, is_integer, model_dtype
from ._grids import activation_of, grid_of, layout_name
from ._held import held_grids
from ._layouts import LayoutName, layout_of
from ._options import FLOATS, Scheme, read_scheme
from ._part import STORED_DTYPES
from ._roles import TRANSPOSED, Role, counted_blocks, experts_of, role_of, siblings
from ._serve import check_served
from ._view import HuggingFaceView, ViewTensor, view_of

if TYPE_CHECKING:
    from qconv.grids import Grid

#: Group sizes to suggest, largest first: fewer scales.
_SUGGESTED = (128, 64, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTensor(TensorPlan):
    """A tensor of a safetensors artifact.

    layout: how a quantized weight is stored; None for one left in float
    computed_in: torch dtype name that the model computes in
    value_order: which source value each value of a vector comes from; None keeps them. To the
        host a vector is one row, never reordered
    """

    layout: LayoutName | None = None
    computed_in: str
    value_order: RowOrder | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A request, read: what is to be planned, and as what.

    dtype: torch dtype name that the model computes in
    """

    model: ModelInfo
    view: HuggingFaceView
    scheme: Scheme
    dtype: str


def read_job(request: PlanRequest) -> Job:
    """Read a request.

    Raises:
        UsageError: an option is unknown to the format, or no runtime computes what it asks for.
        Unsupported: the checkpoint is of a kind whose names are not known.
    """
    scheme = read_scheme(request)
    view = view_of(request.model, request.read)
    dtype = FLOATS.get(scheme.format) or model_dtype(view.config, request.model)
    return Job(model=request.model, view=view, scheme=scheme, dtype=dtype)


def plan(request: PlanRequest) -> TensorPlans:
    """Plan every tensor.

    Raises:
        UsageError: an option is unknown to the format, or no runtime computes what it asks for.
        Unsupported: the architecture or format cannot be written.
        UnsupportedGrid: a weight's shape or held grid does not suit the format.
    """
    job = read_job(request)
    blocks = counted_blocks(job.view.config)
    roles = {each.name: role_of(each.name, each.shape, blocks) for each in job.view.tensors}
    _refuse_codes(job, request, roles)
    grids: Mapping[str, Grid] = {}
    kept: Mapping[str, str] = {}
    if job.scheme.format not in FLOATS:
        weights = {each.name: each for each in job.view.tensors if roles[each.name].linear}
        grids, kept = _choose_grids(job, request, weights)
    check_served(job.scheme, job.view, grids)
    tensors = tuple(
        _quantized(job, each, grids[each.name], roles[each.name])
        if each.name in grids
        else _float(job, each, roles[each.name], kept.get(each.name))
        for each in job.view.tensors
    )
    return TensorPlans(tensors=tensors, dropped=job.view.dropped)


def _refuse_codes(job: Job, request: PlanRequest, roles: Mapping[str, Role]) -> None:
    """Refuse codes that nothing says the values of: cast or rounded, they would be garbage.

    Raises:
        Unsupported: names the first such tensor.
    """
    if job.model.kind != "safetensors":
        return
    for each in job.view.tensors:
        stored = job.model.tensors[each.source].dtype
        plain = stored in TORCH_FLOATS or each.source in request.held
        if not plain and (stored.startswith("F") or roles[each.name].linear):
            raise Unsupported(
                f"tensor {each.name!r}: stored as {stored}, and neither config.json nor tensors "
                "beside it say what values such codes stand for; start from the float checkpoint"
            )


def _choose_grids(
    job: Job, request: PlanRequest, weights: Mapping[str, ViewTensor]
) -> tuple[Mapping[str, Grid], Mapping[str, str]]:
    """The grid of every weight to be quantized; of those kept in float, why."""
    if request.held:
        return held_grids(job.scheme.format, job.view, request.held), {}
    kind = job.view.config.get("model_type")
    if isinstance(kind, str) and kind in TRANSPOSED:
        raise Unsupported(
            f"safetensors:{job.scheme.format}: model_type is {kind!r}, which stores its linear "
            "weights transposed (Conv1D); no runtime loads them quantized: use safetensors:bf16, "
            "or a gguf format"
        )
    experts = _experts_left(job, weights)
    weights = {name: each for name, each in weights.items() if name not in experts}
    if not weights:
        raise Unsupported(
            f"safetensors:{job.scheme.format}: no linear weight of a block was found among "
            f"{len(job.view.tensors)} tensors, so there is nothing to quantize; use safetensors:"
            "bf16 to copy the model"
        )
    grid = grid_of(job.scheme, job.dtype)
    kept = _kept_in_float(job, grid, weights)
    return {name: grid for name in weights if name not in kept}, {**experts, **kept}


def _experts_left(job: Job, names: Iterable[str]) -> dict[str, str]:
    """Experts that stay float whatever their shape, with the reason.

    transformers 5 stacks experts when it loads them, which bitsandbytes' codes cannot be.
    """
    if job.scheme.format not in {"nf4", "fp4"}:
        return {}
    reason = "experts stay float: transformers stacks them, and bitsandbytes takes linear layers"
    return {name: reason for name in names if experts_of(name)}


def _kept_in_float(job: Job, grid: Grid, weights: Mapping[str, ViewTensor]) -> dict[str, str]:
    """Weights whose shape does not suit, and their siblings, with the reason.

    Raises:
        UnsupportedGrid: there are any, and they were not to be kept.
    """
    faults = {name: _fault(job, grid, name, each.shape) for name, each in weights.items()}
    faults = {name: fault for name, fault in faults.items() if fault}
    if faults and not job.scheme.keep_indivisible:
        raise UnsupportedGrid(_refusal(job.scheme, faults, weights))
    kept: dict[str, str] = {}
    for members in siblings(weights).values():
        wrong = next((name for name in members if name in faults), None)
        if wrong is not None:
            last = wrong.removesuffix(".weight").rpartition(".")[2]
            like = f"stored like its sibling {last}, which must stay float: {faults[wrong]}"
            kept |= {name: faults.get(name, like) for name in members}
    if len(kept) == len(weights):
        raise UnsupportedGrid(
            f"{_refusal(job.scheme, faults, weights)}; with indivisible=float nothing would be "
            "left to quantize"
        )
    return kept


def _fault(job: Job, grid: Grid, name: str, shape: tuple[int, ...]) -> str:
    """Why a weight cannot lie on the grid or in the layout; empty when it can."""
    matrix = (shape[0], shape[1])
    activation = activation_of(job.scheme, grid)
    layout = layout_of(layout_name(job.scheme.format, activation))
    try:
        grid.check_shape(matrix, name)
        layout.parts(name, matrix, grid, activation, job.dtype)
    except UnsupportedGrid as error:
        return str(error).removeprefix(f"tensor {name!r}: ").partition(";")[0]
    return ""


def _refusal(scheme: Scheme, faults: Mapping[str, str], weights: Mapping[str, ViewTensor]) -> str:
    first, fault = next(iter(faults.items()))
    others = f" (and {len(faults) - 1} more tensors)" if len(faults) > 1 else ""
    step = f"{_way_out(scheme, weights)}indivisible=float keeps such tensors in float"
    return f"safetensors:{scheme.format}: tensor {first!r}{others}: {fault}; {step}"


def _way_out(scheme: Scheme, weights: Mapping[str, ViewTensor]) -> str:
    """Options that suit every weight, as the start of a sentence."""
    if scheme.format == "fp8":
        return "scope=channel suits every tensor; or "
    if scheme.format in {"nf4", "fp4"}:
        return ""
    columns = {each.shape[1] for each in weights.values()}
    sizes = [str(size) for size in _SUGGESTED if not any(each % size for each in columns)]
    return f"group sizes that suit every tensor: {', '.join([*sizes, 'channel'])}; or "


def _quantized(job: Job, tensor: ViewTensor, grid: Grid, role: Role) -> PlannedTensor:
    activation = activation_of(job.scheme, grid)
    return PlannedTensor(
        name=tensor.name,
        sources=(tensor.source,),
        shape=tensor.shape,
        action="quantize",
        storage=grid.name,
        grid=grid,
        reason=role.reason,
        activation=activation,
        row_order=tensor.row_order,
        layout=layout_name(job.scheme.format, activation),
        computed_in=job.dtype,
    )


def _float(job: Job, tensor: ViewTensor, role: Role, kept: str | None) -> PlannedTensor:
    stored = job.model.tensors[tensor.source].dtype
    target = _float_dtype(job, stored)
    order, vector = tensor.row_order, len(tensor.shape) == 1
    if stored == STORED_DTYPES.get(target or "") and not (vector and order):
        target = None
    action: Action = "copy" if target is None else "cast"
    return PlannedTensor(
        name=tensor.name,
        sources=(tensor.source,),
        shape=tensor.shape,
        action=action,
        storage=stored if target is None else STORED_DTYPES[target],
        dtype="raw" if target is None else target,
        reason=kept or (role.reason if job.scheme.format not in FLOATS else "plain floats"),
        fallback_from=grid_of(job.scheme, job.dtype).name if kept else None,
        row_order=None if vector else order,
        value_order=order if vector else None,
        computed_in=job.dtype,
    )


def _float_dtype(job: Job, stored: str) -> str | None:
    """The dtype that a tensor left in float is cast to; None keeps its bytes."""
    if job.model.kind == "safetensors":
        # bitsandbytes' layers compute in one dtype; other runtimes cast what they load.
        one_dtype = job.scheme.format in {*FLOATS, "nf4", "fp4"}
        if stored not in TORCH_FLOATS or not one_dtype:
            return None
    elif is_integer(stored):
        return None
    return job.dtype
