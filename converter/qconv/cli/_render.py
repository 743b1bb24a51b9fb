"""Prints results for people, as tables on stdout."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._output import UNBOUNDED, console, printable, warn, write_line
from ._sizes import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from rich.table import Table

    from qconv._host import PluginRecord
    from qconv.conversion import Artifact, Checked, Conversion, Transcoding
    from qconv.inspection import Inspection, TensorRow, TokenizerSummary
    from qconv.planning import Plan, TargetPlan

#: Characters of a checksum in a table; ``--json`` has all of them.
_DIGEST = 12
#: Share of the weights below which a type is left out of a table: vectors, mostly.
_VISIBLE = 0.005
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def render_plan(plan: Plan, *, every_tensor: bool = False) -> None:
    """Print a plan.

    every_tensor: one row per tensor; otherwise tensors that differ in their layer only share one
    """
    tensors = plan.model.tensors.values()
    write_line(
        f"{plan.source}: {len(tensors)} tensors, "
        f"{format_count(sum(tensor.numel for tensor in tensors))} weights, "
        f"{format_bytes(plan.source_nbytes)} ({_kind(plan)})"
    )
    for target in plan.targets:
        _render_target(plan, target, every_tensor=every_tensor)
    write_line(
        f"\nmethod {plan.method}{_calibrated(plan)}; "
        f"disk {format_bytes(plan.needs.disk_nbytes)}, memory up to "
        f"{format_bytes(plan.needs.ram_nbytes)} with {plan.threads} threads"
    )


def _kind(plan: Plan) -> str:
    family = plan.facts.family
    return plan.model.kind if family is None else f"{plan.model.kind}, quantized: {family}"


def _calibrated(plan: Plan) -> str:
    text = plan.calibration
    if text is None:
        return ""
    windows = f"{text.windows} windows" if text.windows else "all windows"
    return (
        f", calibrated on {windows} of {text.window_length} tokens of {text.source} "
        f"({text.statistics} statistics)"
    )


def _render_target(plan: Plan, target: TargetPlan, *, every_tensor: bool) -> None:
    write_line(
        f"\n{target.label}: {format_bytes(target.nbytes)}, "
        f"{target.bits_per_weight:.2f} bits per weight ({_type_shares(target.type_shares)})"
    )
    for file in target.layout.files:
        write_line(f"  {plan.out / file.path}  {file.nbytes} bytes")
    table = _table("tensor", ">n", "shape", "action", "type", ">size", "why")
    for row in _rows(target, every_tensor=every_tensor):
        _add_row(table, *row.cells())
    _print(table)
    if target.fallbacks:
        write_line(
            f"{len(target.fallbacks)} tensors fall back to another type for their shape: "
            f"{target.fallback_share:.1%} of the weights"
        )


@dataclass(slots=True, kw_only=True)
class _Row:
    """Tensors with the same fate, whose names differ in a number at most."""

    name: str
    shape: str
    action: str
    storage: str
    reason: str
    count: int = 0
    nbytes: int = 0

    def cells(self) -> tuple[str, ...]:
        return (
            self.name,
            str(self.count),
            self.shape,
            self.action,
            self.storage,
            format_bytes(self.nbytes),
            self.reason,
        )


def _rows(target: TargetPlan, *, every_tensor: bool) -> Iterable[_Row]:
    rows: dict[tuple[str, ...], _Row] = {}
    for entry in target.to_json()["tensors"]:
        name = entry["name"] or ", ".join(entry["sources"])
        fallback = entry["fallback_from"]
        kind = entry["type"] or "-"
        row = _Row(
            name=_family(name, every_tensor=every_tensor),
            shape=_shape(entry["shape"]),
            action=entry["action"],
            storage=f"{kind} (not {fallback})" if fallback else kind,
            reason=entry["reason"],
        )
        fate = (row.name, row.shape, row.action, row.storage, row.reason)
        row = rows.setdefault(fate, row)
        row.count += 1
        row.nbytes += entry["nbytes"]
    return rows.values()


def render_conversion(conversion: Conversion) -> None:
    """Print what a conversion wrote."""
    _print_artifacts(conversion.artifacts)
    for each in conversion.checked:
        write_line(_checked_line(each))
        warn(f"{each.target}: {text}; see qconv validate" for text in each.warnings)
    weights = sum(artifact.weights for artifact in conversion.artifacts)
    speed = weights / max(1e-9, conversion.seconds)
    write_line(f"done in {format_seconds(conversion.seconds)}, {format_count(speed)} weights/s")


def _checked_line(checked: Checked) -> str:
    if checked.reason is not None:
        return f"{checked.target}: not read back: {checked.reason}"
    unseen = f"; not decoded: {_some(checked.unseen)}" if checked.unseen else ""
    return (
        f"{checked.target}: read back, {checked.tensors} tensors accounted for, rows of "
        f"{checked.decoded} ({checked.share:.1%} of the weights) decoded: they are what the method "
        f"computed{unseen}; predictions unmeasured: see qconv validate"
    )


def _some(kinds: Sequence[str]) -> str:
    more = f" and {len(kinds) - 3} more kinds" if len(kinds) > 3 else ""
    return ", ".join(kinds[:3]) + more


def render_transcoding(transcoding: Transcoding) -> None:
    """Print what a transcoding wrote, and what was proven of it."""
    _print_artifacts(transcoding.artifacts)
    for artifact, compared, recoded in zip(
        transcoding.artifacts, transcoding.compared, transcoding.recoded, strict=True
    ):
        write_line(
            f"{artifact.target}: decoded, all {compared} tensors equal the source's "
            f"({transcoding.family}), {recoded} of them re-coded"
        )
    write_line(f"done in {format_seconds(transcoding.seconds)}")


def _print_artifacts(artifacts: Iterable[Artifact]) -> None:
    table = _table("target", ">size", ">bits/weight", ">fallback", "types", "file", "SHA-256")
    for artifact in artifacts:
        first: tuple[str, ...] = (
            artifact.target,
            format_bytes(artifact.nbytes),
            f"{artifact.bits_per_weight:.2f}",
            f"{artifact.fallback_share:.0%}",
            _type_shares(artifact.type_shares),
        )
        for path, digest in zip(artifact.files, artifact.sha256, strict=True):
            _add_row(table, *first, str(path), f"{digest[:_DIGEST]}...")
            first = ("",) * len(first)
    _print(table)


def _type_shares(shares: Mapping[str, float]) -> str:
    """Types with their shares of the weights; what rounds to nothing is left out."""
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= _VISIBLE)


def render_inspection(inspection: Inspection, *, every_tensor: bool = False) -> None:
    """Print what a checkpoint or artifact holds.

    every_tensor: one row per tensor; otherwise tensors that differ in their layer only share one
    """
    write_line(
        f"{inspection.path}: {inspection.kind}, {inspection.architecture or 'no architecture'}, "
        f"{len(inspection.tensors)} tensors, {format_count(inspection.parameters)} weights, "
        f"{format_bytes(inspection.nbytes)}{_bits(inspection.bits_per_weight)}"
    )
    if inspection.tokenizer is not None:
        write_line(_tokenizer_line(inspection.tokenizer))
    types = _table("type", ">tensors", ">weights", ">size")
    for name, share in inspection.types.items():
        cells = (format_count(share.parameters), format_bytes(share.nbytes))
        _add_row(types, name, str(share.tensors), *cells)
    write_line("")
    _print(types)
    write_line("")
    _print(_tensor_table(inspection.tensors, every_tensor=every_tensor))
    write_line("")
    for problem in inspection.problems:
        write_line(f"problem: {problem}")
    if not inspection.problems:
        read = any(row.values is not None for row in inspection.tensors)
        write_line("no problems found" if read else "no problems found; the values were not read")


def _bits(bits: float | None) -> str:
    return "" if bits is None else f", {bits:.2f} bits per weight"


def _tokenizer_line(tokenizer: TokenizerSummary) -> str:
    size = "" if tokenizer.vocab_size is None else f", {tokenizer.vocab_size} tokens"
    special = ", ".join(f"{role} {text}" for role, text in tokenizer.special_tokens.items())
    template = "chat template" if tokenizer.chat_template else "no chat template"
    return f"tokenizer {tokenizer.model or 'unknown'}{size}, {special or 'no roles'}, {template}"


@dataclass(slots=True, kw_only=True)
class _Seen:
    """Tensors of one shape and type whose names differ in a number at most."""

    name: str
    shape: str
    dtype: str
    members: list[TensorRow]

    def cells(self) -> list[str]:
        nbytes = sum(row.nbytes for row in self.members)
        cells = [self.name, str(len(self.members)), self.shape, self.dtype, format_bytes(nbytes)]
        values = [row.values for row in self.members if row.values is not None]
        if values:
            least = [item.minimum for item in values if item.minimum is not None]
            most = [item.maximum for item in values if item.maximum is not None]
            cells += [
                _number(min(least, default=None)),
                _number(max(most, default=None)),
                str(sum(item.zero_rows for item in values)),
                str(sum(item.constant_rows for item in values)),
            ]
        return cells


def _tensor_table(tensors: Sequence[TensorRow], *, every_tensor: bool) -> Table:
    read = any(row.values is not None for row in tensors)
    extra = (">least", ">most", ">zero rows", ">constant rows") if read else ()
    table = _table("tensor", ">n", "shape", "type", ">size", *extra)
    alike: dict[tuple[str, str, str], _Seen] = {}
    for row in tensors:
        key = (_family(row.name, every_tensor=every_tensor), _shape(row.shape), row.dtype)
        seen = alike.setdefault(key, _Seen(name=key[0], shape=key[1], dtype=key[2], members=[]))
        seen.members.append(row)
    for seen in alike.values():
        _add_row(table, *seen.cells())
    return table


def _family(name: str, *, every_tensor: bool) -> str:
    """The name, with ``*`` for a layer's number unless every tensor is to be told apart."""
    return name if every_tensor else _NUMBER.sub("*", name)


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def render_plugins(records: Sequence[PluginRecord]) -> None:
    """Print what is installed and what it offers, or why it is not in use. Needs no table."""
    for record in records:
        write_line(f"{record.entry_point}  ({record.distribution} {record.version})")
        if record.status != "ok":
            write_line(f"  {record.status}: {record.reason}")
        for line in _offers(record):
            write_line(f"  {line}")


def _offers(record: PluginRecord) -> Iterable[str]:
    for method in record.methods:
        yield f"method {method.name}: {method.summary}"
    for backend in record.backends:
        yield f"backend {backend.name}: {backend.summary}"
        labels = [f"{backend.name}:{item.name}" for item in backend.formats]
        width = max(map(len, labels))
        for label, item in zip(labels, backend.formats, strict=True):
            yield f"  {label:{width}}  {item.summary}"
        for option in backend.options:
            choices = "|".join(option.choices) or "..."
            yield f"  option {option.name}={choices}: {option.summary}"
    for source in record.sources:
        yield f"source {source.name}: {source.summary}"
    for check in record.checks:
        yield f"check {check.name}: {check.summary}"
    if record.status == "ok" and not record.specs:
        yield "watches events"


def _table(*headings: str) -> Table:
    """A table without frames; a heading that starts with ``>`` aligns to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(
            heading.removeprefix(">"),
            justify="right" if heading.startswith(">") else "left",
            overflow="fold",
        )
    return table


def _print(table: Table) -> None:
    """Print a table, its rows on one line each: a terminal wraps them better than cells would.

    Without the spaces that fill its last column.
    """
    terminal = console(sys.stdout, width=UNBOUNDED)
    with terminal.capture() as captured:
        terminal.print(table)
    for line in captured.get().splitlines():
        print(line.rstrip())  # noqa: T201 - the result; its cells are printable already


def _add_row(table: Table, *cells: str) -> None:
    table.add_row(*(printable(cell) for cell in cells))
