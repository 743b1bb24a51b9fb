"""Which target an artifact is, and which source rows each of its tensors must hold.

The answer is the backend's own plan for the source: its format is told, or is the one whose plan is
nearest to what the artifact holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from qconv._host import normalise
from qconv._sources import whole_tensor
from qconv.conversion._slabs import make_jobs
from qconv.errors import QconvError, UsageError
from qconv.planning import TargetPlan, unused_tensors
from qconv.plugin import Layout, PlanRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from qconv._host import Host, Target
    from qconv._sources import OpenedSource
    from qconv.conversion._slabs import Job
    from qconv.grids import ActivationGrid, Grid, Parameters
    from qconv.plugin import (
        ArtifactReader,
        Backend,
        BackendSpec,
        EncodedTensor,
        TensorPlan,
        TensorPlans,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """An artifact, opened, beside the backend's plan of the source.

    target: the plan; its layout may be empty
    """

    path: Path
    target: TargetPlan
    reader: ArtifactReader

    @property
    def label(self) -> str:
        """``gguf:q4_k_m``."""
        return self.target.label

    @property
    def plans(self) -> tuple[TensorPlan, ...]:
        """What should be there, in file order."""
        return self.target.tensors.tensors

    def layout(self) -> Layout:
        """The backend's layout of the plan, which opening an artifact does without.

        Raises:
            QconvError: it has none without options that the artifact was made with.
        """
        return self.target.backend.layout(self.target.request, self.target.tensors)

    def jobs(self) -> list[tuple[Job, TensorPlan]]:
        """Every planned tensor, and the source rows it is made of, in file order."""
        jobs = make_jobs(self.target.request.model, [self.target])
        found = {plan.name: (job, plan) for job in jobs for _, plan in job.uses}
        return [found[plan.name] for plan in self.plans]

    @property
    def encoded(self) -> Mapping[str, EncodedTensor]:
        """What the reader says of quantized tensors; a reader need not say anything."""
        encoded: Mapping[str, EncodedTensor] = getattr(self.reader, "encoded", {})
        return encoded

    @property
    def activation_parameters(self) -> Mapping[str, Parameters]:
        """What inputs of weights are rounded with; a reader need not say anything."""
        static: Mapping[str, Parameters] = getattr(self.reader, "activation_parameters", {})
        return static

    def grid(self, plan: TensorPlan) -> Grid | None:
        """The grid a tensor lies on, as the artifact says, or as planned; None: not known."""
        said = self.encoded.get(plan.name)
        if said is not None:
            return said.grid
        stored = self.reader.tensors[plan.name].dtype
        return plan.grid if plan.grid is not None and _same(plan, stored) else None

    def activation(self, plan: TensorPlan) -> ActivationGrid | None:
        """How the tensor's input is quantized; None when it is not.

        Where the artifact does not say, it is as planned, if the weight is: one on another grid was
        left out, since its input rounds badly.
        """
        said = self.encoded.get(plan.name)
        if said is not None:
            return said.activation
        info = self.reader.tensors.get(plan.name)
        return plan.activation if info is not None and _same(plan, info.dtype) else None


def match(path: Path, source: OpenedSource, host: Host, target: str | None = None) -> Match:
    """Open an artifact, and find the plan it follows.

    target: what it is, ``gguf:q4_k_m``; None: find out

    Raises:
        UnreadableInput: no backend knows it, or the one that does finds it damaged.
        UsageError: an unknown target.
        QconvError: the source cannot be written in the format of the artifact.
    """
    if target is not None:
        chosen = host.resolve_target(target)
        backend = host.backend(chosen.backend.name)
        return _planned(path, source, backend, backend.open(path), [chosen])
    spec = host.backend_of(path)
    backend = host.backend(spec.name)
    return _planned(path, source, backend, backend.open(path), _candidates(path, spec, host))


def _candidates(path: Path, spec: BackendSpec, host: Host) -> list[Target]:
    """Every format of a backend; those that the artifact is called after come first."""
    called = normalise(path.name)
    formats = [each.name for each in spec.formats]
    ranked = sorted(formats, key=lambda name: (normalise(name) not in called, -len(name)))
    return [host.resolve_target(f"{spec.name}:{name}") for name in ranked]


@dataclass(frozen=True, slots=True)
class _Try:
    """A target that the artifact may be. score: how near its plan is to what is there, 0 to 1."""

    score: float
    target: Target
    request: PlanRequest
    plans: TensorPlans


def _planned(
    path: Path,
    source: OpenedSource,
    backend: Backend,
    reader: ArtifactReader,
    candidates: Sequence[Target],
) -> Match:
    best, refusal = _nearest(source, backend, reader, candidates)
    if best is None:
        raise refusal or UsageError(f"{path}: its backend offers no format to compare it with")
    label = ",".join((best.target.label, *(f"{k}={v}" for k, v in best.target.options.items())))
    planned = TargetPlan(
        label=label,
        backend=backend,
        request=best.request,
        tensors=best.plans,
        layout=Layout(files=(), places={}),
        unused=unused_tensors(label, source.model, best.plans),
    )
    return Match(path=path, target=planned, reader=reader)


def _nearest(
    source: OpenedSource,
    backend: Backend,
    reader: ArtifactReader,
    candidates: Sequence[Target],
) -> tuple[_Try | None, QconvError | None]:
    """The candidate nearest to what is there; and why the first that cannot be planned fails."""
    best: _Try | None = None
    refusal: QconvError | None = None
    for target in candidates:
        if best is not None and best.score == 1:
            break
        request = _request(source, target, reader)
        try:
            plans = backend.plan_tensors(request)
        except QconvError as error:
            refusal = refusal or error
            continue
        score = _likeness(plans, reader) * (1.0 if _states_alike(plans, reader) else 0.5)
        if best is None or score > best.score:
            best = _Try(score, target, request, plans)
    return best, refusal


def _request(source: OpenedSource, target: Target, reader: ArtifactReader) -> PlanRequest:
    """What to plan: weights on the grids that the artifact says they lie on, where it says so.

    Backends plan held grids as they are, so that group sizes need not be guessed.
    """
    encoded: Mapping[str, EncodedTensor] = getattr(reader, "encoded", {})
    return PlanRequest(
        model=source.model,
        format=target.format,
        options=target.options,
        held={name: each.grid for name, each in encoded.items() if name in source.model.tensors},
        read=partial(whole_tensor, source),
    )


def _likeness(plans: TensorPlans, reader: ArtifactReader) -> float:
    """Share of names, planned or there, that are both and stored as planned: 0 to 1."""
    there = reader.tensors
    names = {plan.name for plan in plans.tensors} | set(there)
    return sum(_alike(plan, reader) for plan in plans.tensors) / max(1, len(names))


def _states_alike(plans: TensorPlans, reader: ArtifactReader) -> bool:
    """Inputs have scales beforehand both as planned and as the artifact has it, if it can tell."""
    stated: Mapping[str, Parameters] | None = getattr(reader, "activation_parameters", None)
    grids = [plan.activation for plan in plans.tensors if plan.activation is not None]
    planned = any(not grid.dynamic for grid in grids)
    return stated is None or planned == bool(stated)


def _alike(plan: TensorPlan, reader: ArtifactReader) -> float:
    info = reader.tensors.get(plan.name)
    if info is None:
        return 0.0
    return 1.0 if _same(plan, info.dtype) else 0.1  # a name counts where no type agrees


def _same(plan: TensorPlan, stored: str) -> bool:
    names = {plan.storage.lower()} if plan.grid is None else {plan.storage.lower(), plan.grid.name}
    return stored.lower() in names
