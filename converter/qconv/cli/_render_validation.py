"""Prints a validation for people: the verdict, the gates, then what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._output import printable, write_line
from ._render import _add_row, _print, _table
from ._sizes import format_bytes, format_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qconv.validation import (
        ArtifactResult,
        GateResult,
        LogitsResult,
        RuntimeResult,
        TensorResult,
        Validation,
        VramResult,
    )

#: Tensors and blocks listed unless all are asked for.
_LISTED = 5


def render_validation(validation: Validation, *, every_tensor: bool = False) -> None:
    """Print a validation. every_tensor: list all tensors, not only the worst."""
    for number, artifact in enumerate(validation.artifacts):
        if number:
            write_line("")
        _render_artifact(artifact, validation.source, every_tensor=every_tensor)
    for baseline in validation.baselines:
        kl = "unmeasured" if baseline.logits is None else f"{baseline.logits.kl.mean:.4g} nats"
        told = f"baseline {baseline.path} ({baseline.target}), not judged"
        write_line(f"\n{told}: KL divergence mean {kl}")


def _render_artifact(artifact: ArtifactResult, source: str, *, every_tensor: bool) -> None:
    write_line(
        f"{artifact.path} against {source}: {artifact.status.upper()}  ({artifact.target}, class "
        f"{artifact.grid_class}, {format_bytes(artifact.bytes)}, "
        f"{artifact.bits_per_weight:.2f} bits per weight)"
    )
    for fault in artifact.faults:
        write_line(f"  fault: {fault}")
    for tensor in _faulty(artifact.tensors):
        for fault in tensor.faults:
            write_line(f"  fault: tensor {tensor.name!r} ({tensor.grid}): {fault}")
    _render_warnings(artifact)
    _render_gates(artifact.gates)
    if artifact.logits is not None:
        _render_logits(artifact.logits, "")
    for runtime in artifact.runtimes:
        _render_runtime(runtime)
    if artifact.vram is not None:
        _render_vram(artifact.vram)
    _render_blocks(artifact)
    _render_tensors(artifact, every_tensor=every_tensor)


def _render_warnings(artifact: ArtifactResult) -> None:
    for warning in artifact.warnings:
        write_line(f"  warning: {warning}")
    for tensor in artifact.tensors:
        for warning in tensor.warnings:
            write_line(f"  warning: tensor {tensor.name!r} ({tensor.grid}): {warning}")


def _faulty(tensors: Iterable[TensorResult]) -> list[TensorResult]:
    return [each for each in tensors if each.faults]


def _render_gates(gates: Iterable[GateResult]) -> None:
    table = _table("gate", ">figure", "", ">limit", "status", "why")
    for gate in gates:
        value = "-" if gate.value is None else _number(gate.name, gate.value)
        limit = _number(gate.name, gate.limit)
        _add_row(table, gate.name, value, gate.relation, limit, gate.status, gate.why)
    write_line("")
    _print(table)


def _number(name: str, value: float) -> str:
    return format_bytes(value) if name == "vram" else f"{value:.4g}"


def _render_logits(logits: LogitsResult, beside: str) -> None:
    kl, (low, high) = logits.kl, logits.ratio_interval
    write_line(
        f"\n{logits.scored}{beside}: {logits.windows} windows, {logits.tokens} tokens\n"
        f"  KL divergence  mean {kl.mean:.4g}, median {kl.median:.4g}, p90 {kl.p90:.4g}, "
        f"p99 {kl.p99:.4g}, p99.9 {kl.p999:.4g}, max {kl.max:.4g} nats\n"
        f"  tokens         same likeliest {logits.same_top1:.2%}, five likeliest "
        f"{logits.top5_overlap:.2%} shared, RMS change of probability "
        f"{logits.rms_probability:.2%}\n"
        f"  perplexity     {logits.perplexity:.4g}, was {logits.reference_perplexity:.4g}: "
        f"times {logits.perplexity_ratio:.4f} (95 %: {low:.4f} to {high:.4f})"
    )


def _render_runtime(runtime: RuntimeResult) -> None:
    if runtime.reason is not None:
        write_line(f"\n{runtime.engine}: unmeasured: {printable(runtime.reason)}")
        return
    if runtime.logits is not None:
        took = "" if runtime.seconds is None else f" (took {format_seconds(runtime.seconds)})"
        _render_logits(runtime.logits, took)
    if runtime.against_decoded is not None:
        kl = runtime.against_decoded.kl
        write_line(
            f"  beside the decoded weights: KL divergence mean {kl.mean:.4g}, p99 {kl.p99:.4g}"
        )


def _render_vram(vram: VramResult) -> None:
    write_line(
        f"\nmemory on the device, predicted: {format_bytes(vram.low)} to {format_bytes(vram.high)} "
        f"({vram.runtime}, context {vram.context}, cache {vram.cache_type})"
    )
    if vram.reason is not None:
        write_line(f"  unmeasured: {printable(vram.reason)}")
    if vram.measured is None:
        return
    write_line(
        f"  measured on {vram.device}: {format_bytes(vram.measured)}, {vram.place(format_bytes)} "
        f"(by {printable(vram.by or 'qconv')})"
    )
    for name, nbytes in vram.figures.items():
        write_line(f"    {name}  {format_bytes(nbytes)}")


def _render_blocks(artifact: ArtifactResult) -> None:
    if not artifact.blocks:
        return
    errors = " ".join(f"{each.relative_error:.3g}" for each in artifact.blocks)
    write_line(f"\nrelative error after each block: {errors}")


def _render_tensors(artifact: ArtifactResult, *, every_tensor: bool) -> None:
    compared = [each for each in artifact.tensors if each.relative_error is not None]
    if not compared:
        return
    rescaled = sum(each.rescaled for each in artifact.tensors)
    note = f", {rescaled} of them as rescaled by the method" if rescaled else ""
    write_line(
        f"\n{len(compared)} of {len(artifact.tensors)} tensors decoded and compared{note}"
        + ("" if every_tensor else "; nearest to what their grids allow:")
    )
    table = _table("tensor", "grid", ">bits/weight", ">relative error", ">allowed", ">cosine")
    ranked = compared if every_tensor else sorted(compared, key=_nearness, reverse=True)[:_LISTED]
    for each in ranked:
        _add_row(
            table,
            each.name,
            each.grid,
            f"{each.bits_per_weight:.3g}",
            f"{each.relative_error:.4g}",
            "-" if each.limit is None else f"{each.limit:.4g}",
            "-" if each.cosine is None else f"{each.cosine:.5f}",
        )
    _print(table)


def _nearness(tensor: TensorResult) -> float:
    return (tensor.relative_error or 0.0) / tensor.limit if tensor.limit else 0.0
