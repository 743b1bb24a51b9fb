"""The plan itself: what each target writes, made from answers of backends that were checked."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm
from typing import TYPE_CHECKING

from qconv.errors import GateFailed, UnreadableInput, Unsupported
from qconv.planning._accounting import listed, refuse_unused, unused_tensors
from qconv.planning._borders import check_layout, check_plans, matrix_shape
from qconv.planning._needs import Needs, estimate_needs
from qconv.planning._source import SourceFacts
from qconv.plugin import PlanRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import torch

    from qconv.grids import Grid
    from qconv.planning._calibrated import CalibrationPlan
    from qconv.planning._json import PlanJson, TargetJson, TensorJson
    from qconv.plugin import Backend, Layout, ModelInfo, TensorPlan, TensorPlans

_PLAIN = SourceFacts()

#: How often a transposed tensor may be read: a slab takes some of every row of its source.
_READS = 8

#: Where ModelOpt says how it quantized.
_MODELOPT = "hf_quant_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetPlan:
    """Everything one target will write.

    label: the target's canonical name, ``gguf:q4_k_m``
    unused: source tensors left out because the caller allowed it
    """

    label: str
    backend: Backend
    request: PlanRequest
    tensors: TensorPlans
    layout: Layout
    unused: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.nbytes for file in self.layout.files)

    @property
    def weights(self) -> int:
        """Values in all tensors of the artifact."""
        return sum(_numel(plan.shape) for plan in self.tensors.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data per value, over all tensors; headers do not count."""
        nbytes = sum(tensor_nbytes(self.layout, plan.name) for plan in self.tensors.tensors)
        return 8 * nbytes / max(1, self.weights)

    @property
    def type_shares(self) -> dict[str, float]:
        """Share of the artifact's values in each storage type, 0 to 1, largest first."""
        weights: dict[str, int] = {}
        for plan in self.tensors.tensors:
            weights[plan.storage] = weights.get(plan.storage, 0) + _numel(plan.shape)
        ranked = sorted(weights.items(), key=lambda item: (-item[1], item[0]))
        return {name: count / max(1, self.weights) for name, count in ranked}

    @property
    def fallbacks(self) -> tuple[TensorPlan, ...]:
        """Tensors stored in another type than the format asks for, which cannot hold them."""
        return tuple(plan for plan in self.tensors.tensors if plan.fallback_from)

    @property
    def fallback_share(self) -> float:
        """Share of the artifact's values that fallbacks touch, 0 to 1."""
        return sum(_numel(plan.shape) for plan in self.fallbacks) / max(1, self.weights)

    def to_json(self) -> TargetJson:
        """The target as JSON-able data (``schemas/plan.schema.json``)."""
        return {
            "target": self.label,
            "options": dict(self.request.options),
            "files": [{"path": file.path, "nbytes": file.nbytes} for file in self.layout.files],
            "nbytes": self.nbytes,
            "weights": self.weights,
            "bits_per_weight": self.bits_per_weight,
            "fallback_share": self.fallback_share,
            "type_shares": self.type_shares,
            "tensors": list(self._rows()),
        }

    def _rows(self) -> Iterator[TensorJson]:
        for plan in self.tensors.tensors:
            yield {
                "name": plan.name,
                "sources": list(plan.sources),
                "shape": list(plan.shape),
                "action": plan.action,
                "type": plan.storage,
                "reason": plan.reason,
                "fallback_from": plan.fallback_from,
                "row_order": plan.row_order.label if plan.row_order else None,
                "nbytes": tensor_nbytes(self.layout, plan.name),
            }
        for name, reason in self.left_out():
            yield {
                "name": None,
                "sources": [name],
                "shape": list(self.request.model.tensors[name].shape),
                "action": "drop",
                "type": None,
                "reason": reason,
                "fallback_from": None,
                "row_order": None,
                "nbytes": 0,
            }

    def left_out(self) -> tuple[tuple[str, str], ...]:
        """Source tensors that are not in the artifact, each with its reason."""
        dropped = [(drop.name, drop.reason) for drop in self.tensors.dropped]
        allowed = [(name, "no place in this format; left out as allowed") for name in self.unused]
        return (*dropped, *allowed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole conversion before its first byte.

    source: the checkpoint's path
    facts: how it is stored
    method: the method chain, ``rtn``; ``transcode`` where codes are kept
    streams: the method treats every row on its own, so tensors flow in slabs of rows
    calibration: None when the method needs no forward pass
    warnings: what the user should know, from the source and from the plan
    threads: workers the plan's memory estimate counts on
    plugins: who brings the method and the backends, with versions
    """

    source: Path
    out: Path
    model: ModelInfo
    method: str
    streams: bool
    calibration: CalibrationPlan | None
    targets: tuple[TargetPlan, ...]
    needs: Needs
    warnings: tuple[str, ...]
    threads: int
    plugins: tuple[str, ...]
    facts: SourceFacts = _PLAIN

    @property
    def source_nbytes(self) -> int:
        """Bytes of the source's tensors on disk."""
        if self.facts.nbytes is not None:
            return self.facts.nbytes
        return sum(info.nbytes for info in self.model.tensors.values())

    def to_json(self) -> PlanJson:
        """The plan as JSON-able data (``schemas/plan.schema.json``)."""
        tensors = self.model.tensors.values()
        return {
            "source": {
                "path": str(self.source),
                "kind": self.model.kind,
                "name": self.model.name,
                "tensors": len(self.model.tensors),
                "weights": sum(info.numel for info in tensors),
                "nbytes": self.source_nbytes,
                "quantized": self.facts.family,
            },
            "method": self.method,
            "calibration": self.calibration.to_json() if self.calibration else None,
            "out": str(self.out),
            "needs": {
                "disk_nbytes": self.needs.disk_nbytes,
                "ram_nbytes": self.needs.ram_nbytes,
                "threads": self.threads,
            },
            "plugins": list(self.plugins),
            "warnings": list(self.warnings),
            "targets": [target.to_json() for target in self.targets],
        }


def tensor_nbytes(layout: Layout, name: str) -> int:
    """Bytes a tensor takes in the artifact, over all its parts."""
    return sum(place.nbytes for place in layout.places[name])


def build_plan(
    *,
    source: Path,
    out: Path,
    model: ModelInfo,
    method: str,
    streams: bool,
    targets: Sequence[tuple[str, Backend, str, Mapping[str, str]]],
    allow_unused: bool,
    threads: int,
    max_ram: int | None,
    warnings: Sequence[str],
    plugins: Sequence[str] = (),
    calibration: CalibrationPlan | None = None,
    steps: Sequence[str] = (),
    held: Mapping[str, Grid] | None = None,
    facts: SourceFacts = _PLAIN,
    read: Callable[[str], torch.Tensor] | None = None,
    input_errors: Sequence[Mapping[str, float]] | None = None,
    exact: bool = True,
) -> Plan:
    """Ask every backend for its plan, check the answers, and add up what they need.

    targets: label, backend, format and options of each target
    streams: the method treats every row on its own
    plugins: who brings the method and the backends, with versions
    calibration: None when the method needs no forward pass
    steps: names of the method chain's steps, as :class:`PlanRequest` has them
    held: in a transcoding, the grids that quantized tensors lie on
    facts: how the source is stored, and what reading it takes
    read: a tensor of the source, as :class:`PlanRequest` has it
    input_errors: of each target, as :class:`PlanRequest` has them
    exact: as :class:`PlanRequest` has it

    Raises:
        UnreadableInput: the source holds no tensors.
        Unsupported: the source is quantized in a way that is not decoded.
        UnusedTensors: a source tensor has no place and ``allow_unused`` is False.
        BrokenPlugin: a backend's answer breaks its contract.
        NotEnoughResources: ``max_ram`` is too small.
    """
    _refuse_empty(source, model)
    _refuse_quantized(source, model, facts.families)
    requests = [
        (
            label,
            backend,
            PlanRequest(
                model=model,
                format=name,
                options=options,
                importance=calibration is not None,
                method=tuple(steps),
                held=held or {},
                read=read,
                input_errors=input_errors[number] if input_errors else None,
                exact=exact,
            ),
        )
        for number, (label, backend, name, options) in enumerate(targets)
    ]
    planned = tuple(_plan_target(*request, allow_unused=allow_unused) for request in requests)
    return Plan(
        source=source,
        out=out,
        model=model,
        facts=facts,
        method=method,
        streams=streams,
        calibration=calibration,
        targets=planned,
        needs=_add_up_needs(
            planned,
            threads,
            max_ram,
            streams=streams,
            extra_nbytes=facts.reading_nbytes + (calibration.nbytes if calibration else 0),
        ),
        warnings=(*warnings, *_plan_warnings(planned, calibrated=calibration is not None)),
        threads=threads,
        plugins=tuple(plugins),
    )


def _add_up_needs(
    targets: Sequence[TargetPlan],
    threads: int,
    max_ram: int | None,
    *,
    streams: bool,
    extra_nbytes: int,
) -> Needs:
    tensors = [
        (plan, rows_apart(target.layout, plan) if streams else matrix_shape(plan.shape)[0])
        for target in targets
        for plan in target.tensors.tensors
    ]
    disk = sum(target.nbytes for target in targets)
    headers = sum(len(file.header) for target in targets for file in target.layout.files)
    return estimate_needs(tensors, disk, headers, threads, max_ram, extra_nbytes=extra_nbytes)


def _refuse_empty(source: Path, model: ModelInfo) -> None:
    if not model.tensors:
        raise UnreadableInput(
            f"{str(source)!r} holds no tensors: an empty model cannot be converted; "
            "check that the download is complete"
        )


def _refuse_quantized(source: Path, model: ModelInfo, families: Sequence[str]) -> None:
    """Packed codes look like weights: never take them for some, whatever may be left out.

    Raises:
        Unsupported: config.json, or a file beside it, says that the checkpoint is quantized.
    """
    for where, settings in _quantization_settings(model):
        method = settings.get("quant_method") if isinstance(settings, dict) else None
        raise Unsupported(
            f"{str(source)!r} is quantized already ({where}, method {method or 'unknown'!r}), "
            f"which no plugin decodes (those that are decoded: {', '.join(families) or 'none'}); "
            "convert the float checkpoint it was made from"
        )


def _quantization_settings(model: ModelInfo) -> Iterator[tuple[str, object]]:
    """Where it is said that the weights are quantized, and what: for parts of a model, too."""
    nested = {key: value for key, value in model.config.items() if isinstance(value, dict)}
    for within, config in (("", model.config), *nested.items()):
        for key in ("quantization_config", "compression_config"):
            if config.get(key):
                yield f"{within} {key} in config.json".lstrip(), config[key]
    if _MODELOPT in model.files:
        yield _MODELOPT, {"quant_method": "modelopt"}


def _plan_target(
    label: str, backend: Backend, request: PlanRequest, *, allow_unused: bool
) -> TargetPlan:
    tensors = backend.plan_tensors(request)
    unused = unused_tensors(label, request.model, tensors)
    if not allow_unused:
        refuse_unused(label, unused)
    check_plans(label, request.model, tensors)
    layout = backend.layout(request, tensors)
    check_layout(label, tensors, layout)
    return TargetPlan(
        label=label,
        backend=backend,
        request=request,
        tensors=tensors,
        layout=layout,
        unused=unused,
    )


def rows_apart(layout: Layout, plan: TensorPlan) -> int:
    """The fewest rows that can be quantized, encoded and written apart from others; or all."""
    rows, _ = matrix_shape(plan.shape)
    places = layout.places[plan.name]
    placed = all(place.row_nbytes is not None for place in places)
    if not placed or (plan.grid is not None and not plan.grid.rows_independent):
        return rows
    apart = lcm(*(place.rows_together for place in places))
    if plan.arrangement == "transposed":  # each slab reads all of the source
        apart *= -(-rows // (apart * _READS))
    return min(rows, apart)


def _plan_warnings(targets: Sequence[TargetPlan], *, calibrated: bool) -> Iterator[str]:
    for target in targets:
        if target.tensors.asks_input_errors:
            yield f"{target.label}: " + (
                "which layers keep their inputs in float is measured when converting; this plan "
                "has none of them"
                if calibrated
                else "the inputs of all layers are rounded, for nothing tells which would lose "
                "much by it: give --calibration, e.g. --calibration builtin, to have it measured"
            )
        if target.fallbacks:
            yield (
                f"{target.label}: {target.fallback_share:.1%} of the weights fall back to another "
                f"type; {target.bits_per_weight:.2f} bits per weight in all "
                "(qconv plan lists them; --max-fallback turns this into an error)"
            )
        if target.unused:
            yield (
                f"{target.label}: {len(target.unused)} source tensors left out (--allow-unused): "
                f"{listed(target.unused)}"
            )


def check_fallbacks(plan: Plan, limit: float | None) -> None:
    """Refuse a plan in which fallbacks touch more than ``limit`` (0 to 1) of a target's values.

    Raises:
        GateFailed: names the target, the share and the first tensors.
    """
    if limit is None:
        return
    for target in plan.targets:
        if target.fallback_share > limit:
            some = ", ".join(
                f"{plan.name} ({plan.fallback_from} to {plan.storage})"
                for plan in target.fallbacks[:3]
            )
            raise GateFailed(
                f"{target.label}: {target.fallback_share:.1%} of the weights fall back to another "
                f"type, more than the {limit:.1%} allowed: {some}, ...; choose a format whose "
                "block size divides the rows, or raise --max-fallback"
            )


def _numel(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
