"""Transcoding: a quantized checkpoint in another format, every value as it was, which is proven."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from qconv.checkpoint import DecodedCheckpoint
from qconv.conversion._carrying import BYTES_IN_CARRYING, KEPT, Carrying
from qconv.conversion._outputs import check_outputs
from qconv.conversion._pipeline import run
from qconv.conversion._proof import BYTES_IN_PROOF, BYTES_IN_PROOF_OF_PACKED, Proof
from qconv.errors import Unsupported, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qconv._host import Host, Target
    from qconv._sources import OpenedSource
    from qconv.conversion._artifact import Artifact
    from qconv.conversion._json import TranscodingJson
    from qconv.planning import Plan, SourceFacts, TargetPlan
    from qconv.plugin import Event, TensorPlan

#: What takes the place of the method in plans and results.
METHOD = "transcode"


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcoding:
    """What a transcoding wrote, all of it equal to the source.

    family: what kind of quantized checkpoint the source is
    compared: of each artifact, how many tensors were decoded from it and found equal
    recoded: of each artifact, how many of them are on another grid than in the source
    seconds: wall time of the work, without planning
    """

    plan: Plan
    family: str
    artifacts: tuple[Artifact, ...]
    compared: tuple[int, ...]
    recoded: tuple[int, ...]
    seconds: float

    def to_json(self) -> TranscodingJson:
        """The result as JSON-able data (``schemas/transcoding.schema.json``)."""
        return {
            "source": str(self.plan.source),
            "family": self.family,
            "seconds": self.seconds,
            "warnings": list(self.plan.warnings),
            "artifacts": [
                {
                    **artifact.to_json(),
                    "tensors_compared": compared,
                    "tensors_recoded": recoded,
                    "all_equal": True,
                }
                for artifact, compared, recoded in zip(
                    self.artifacts, self.compared, self.recoded, strict=True
                )
            ],
        }


def transcode(
    artifact: str | Path,
    to: str | Sequence[str],
    *,
    out: str | Path = ".",
    force: bool = False,
    allow_unused: bool = False,
    threads: int | None = None,
    max_ram: int | None = None,
    resume: bool = True,
    observer: Callable[[Event], None] | None = None,
) -> Transcoding:
    """Write a quantized checkpoint in other formats, without rounding a single value.

    Codes, scales and zero-points are re-coded where the values stay what they are, and refused
    with the tensor's name where they cannot. Before an artifact gets its name, it is read back by
    its backend's own reader, and every tensor is compared with the source.

    artifact: HF directory, ``.safetensors`` file or index that a source plugin decodes
    to: targets such as ``safetensors:gptq``
    out, force, allow_unused, threads, max_ram, resume, observer: as :func:`qconv.convert` takes
        them

    Raises:
        UsageError: nothing in the source is quantized.
        Unsupported: a target would have to round, or to decode, a tensor.
        qconv.errors.QconvError: its subclass and message say what is wrong and what to do.
    """
    from qconv._host import load_plugins
    from qconv._sources import open_source
    from qconv.planning import chosen_threads

    host = load_plugins()
    targets, workers = host.resolve_targets(to), chosen_threads(threads)
    with open_source(artifact, host) as opened:
        checkpoint = _quantized(opened, artifact, host)
        job = _Job(host=host, checkpoint=checkpoint, source=Path(artifact), out=Path(out))
        plan = job.planned(targets, allow_unused=allow_unused, threads=workers, max_ram=max_ram)
        check_outputs(plan.out, plan.targets, plan.source, force=force)
        watch = host.watch(observer)
        proof = Proof(checkpoint, watch)
        done = run(
            plan,
            checkpoint,
            Carrying(checkpoint),
            resume=resume,
            force=force,
            observer=watch,
            verify=proof,
        )
    return Transcoding(
        plan=plan,
        family=checkpoint.family,
        artifacts=done.artifacts,
        compared=tuple(proof.compared),
        recoded=tuple(job.recoded(target) for target in plan.targets),
        seconds=done.seconds,
    )


def _quantized(opened: OpenedSource, path: str | Path, host: Host) -> DecodedCheckpoint:
    if isinstance(opened, DecodedCheckpoint) and opened.encoded:
        return opened
    if opened.model.kind == "gguf":
        raise UsageError(
            f"{path}: the codes of a GGUF are not carried over to other formats; use qconv convert"
        )
    families = ", ".join(spec.name for spec in host.sources) or "none"
    raise UsageError(
        f"{path}: nothing to transcode: it is no quantized checkpoint that a plugin decodes "
        f"(those that are decoded: {families}); use qconv convert"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A source to be transcoded."""

    host: Host
    checkpoint: DecodedCheckpoint
    source: Path
    out: Path

    def planned(
        self,
        targets: Sequence[Target],
        *,
        allow_unused: bool,
        threads: int,
        max_ram: int | None,
    ) -> Plan:
        """The plan, in which every quantized tensor keeps its values, as far as grids tell."""
        from qconv._sources import plugins_behind, whole_tensor
        from qconv.planning import build_plan

        checkpoint, host = self.checkpoint, self.host
        labels = [host.owner(target.backend).label for target in targets]
        plan = build_plan(
            source=self.source,
            out=self.out,
            model=checkpoint.model,
            method=METHOD,
            streams=True,
            targets=[
                (each.label, host.backend(each.backend.name), each.format, each.options)
                for each in targets
            ],
            allow_unused=allow_unused,
            threads=threads,
            max_ram=max_ram,
            warnings=checkpoint.stored.warnings,
            plugins=list(dict.fromkeys([*plugins_behind(checkpoint, host), *labels])),
            held=checkpoint.held_grids,
            facts=self._facts(threads),
            read=partial(whole_tensor, checkpoint),
        )
        for target in plan.targets:
            self._check(target)
        notes = [text for target in plan.targets for text in self._notes(target)]
        return replace(plan, warnings=(*plan.warnings, *notes))

    def recoded(self, target: TargetPlan) -> int:
        """How many quantized tensors are on another grid than in the source."""
        grids = self.checkpoint.held_grids
        return sum(
            any(grids[name] != plan.grid for name in plan.sources)
            for plan in target.tensors.tensors
            if plan.grid is not None
        )

    def _facts(self, threads: int) -> SourceFacts:
        """Those of the source, with the memory of re-coding and of the proof, which comes after."""
        from qconv.planning import source_facts

        checkpoint = self.checkpoint
        facts = source_facts(checkpoint, self.host, threads)
        tensors = checkpoint.model.tensors.values()
        largest = max((info.numel for info in tensors), default=0)
        packed = max(prod(tensor.shape) for tensor in checkpoint.encoded.values())
        proof = max(BYTES_IN_PROOF * largest, BYTES_IN_PROOF_OF_PACKED * packed)
        carrying = (2 * KEPT + BYTES_IN_CARRYING * threads) * packed
        return replace(facts, reading_nbytes=facts.reading_nbytes + max(carrying, proof))

    def _check(self, target: TargetPlan) -> None:
        """Refuse a target that would round or decode.

        Raises:
            Unsupported: it names the first such tensors.
        """
        rounded, decoded = [], []
        for plan in target.tensors.tensors:
            held = [name in self.checkpoint.encoded for name in plan.sources]
            if plan.grid is not None and not all(held):
                rounded.append(f"{plan.name!r} to {plan.grid.name}")
            if plan.grid is None and any(held):
                decoded.append(f"{plan.name!r} to {plan.storage}")
            self._check_input(target, plan)
        if rounded:
            raise Unsupported(
                f"{target.label} would round {_some(rounded)}, which the source holds as floats, "
                "and transcode never rounds; choose a format or options that keep them, or use "
                "qconv convert"
            )
        if decoded:
            raise Unsupported(
                f"{target.label} would decode {_some(decoded)}: that is no transcoding; use "
                "qconv convert for a float artifact, or choose a quantized format"
            )

    def _check_input(self, target: TargetPlan, plan: TensorPlan) -> None:
        wanted = plan.activation
        if wanted is None or wanted.dynamic or self._inputs(plan) == {wanted}:
            return
        raise Unsupported(
            f"{target.label}: tensor {plan.name!r}: the format states the scale of its input "
            "beforehand, which the source does not hold; choose a format with dynamic "
            "activations, or use qconv convert with --calibration"
        )

    def _notes(self, target: TargetPlan) -> Iterator[str]:
        """What the user should know of a target besides that its weights are the source's."""
        dropped = [name for name, _ in target.left_out() if name in self.checkpoint.encoded]
        if dropped:
            yield f"{target.label}: leaves quantized tensors of the source out: {_some(dropped)}"
        changed = [
            plan
            for plan in target.tensors.tensors
            if plan.grid is not None and self._inputs(plan) != {plan.activation}
        ]
        if changed:
            before = self.checkpoint.encoded[changed[0].sources[0]].activation
            after = changed[0].activation
            yield (
                f"{target.label}: the weights stay what they are, but the inputs of "
                f"{len(changed)} of them are quantized in another way at run time: "
                f"{after.name if after else 'not at all'} instead of "
                f"{before.name if before else 'not at all'}"
            )

    def _inputs(self, plan: TensorPlan) -> set[object]:
        return {
            self.checkpoint.encoded[name].activation
            for name in plan.sources
            if name in self.checkpoint.encoded
        }


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"tensor {', '.join(names[:3])}{more}"
