"""Prints a model's topology for people."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ._output import write_line

if TYPE_CHECKING:
    from qconv.inspection import BlockKind, TopologyInspection
    from qconv.model import LinearPart, Verdict

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def render_topology(inspection: TopologyInspection) -> None:
    """Print, for one block of each kind, shared inputs, folds, and refused candidates."""
    counts = inspection.counts()
    write_line(
        f"{inspection.path}: {inspection.architecture or 'no architecture'}, "
        f"{_count(counts['blocks'], 'block')} of {_count(counts['kinds'], 'kind')}"
    )
    for kind in inspection.kinds:
        _render_kind(kind)


def _render_kind(kind: BlockKind) -> None:
    topology = kind.topology
    write_line(f"\n{kind.blocks[0]}{_others(kind)}")
    write_line("  linears that share an input:")
    for line, count in _counted(", ".join(_names(group)) for group in topology.inputs):
        write_line(f"    {line}{_times(count)}")
    accepted = [verdict for verdict in topology.verdicts if verdict.accepted]
    refused = [verdict for verdict in topology.verdicts if not verdict.accepted]
    folds = _count(len(topology.folds), "fold")
    write_line(f"  {folds}, output unchanged when both sides are rescaled:")
    for line, count in _counted(f"{_pair(each)}  {_evidence(each)}" for each in accepted):
        write_line(f"    {line}{_times(count)}")
    write_line(f"  {_count(len(refused), 'candidate')} refused:")
    for line, count in _counted(f"{_pair(each)}: {each.reason}" for each in refused):
        write_line(f"    {line}{_times(count)}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _others(kind: BlockKind) -> str:
    more = len(kind.blocks) - 1
    return f", and {_count(more, 'block')} like it up to {kind.blocks[-1]}" if more else ""


def _names(parts: Iterable[LinearPart]) -> Iterable[str]:
    return dict.fromkeys(_name(part) for part in parts)


def _name(part: LinearPart) -> str:
    return _family(part.parameter if part.expert is None else f"{part.parameter}[*]")


def _pair(verdict: Verdict) -> str:
    readers = ", ".join(dict.fromkeys(_family(name) for name in verdict.consumers))
    return f"{_family(verdict.producer)} -> {readers or '(none)'}"


def _evidence(verdict: Verdict) -> str:
    kind = {"norm": "weight", "norm_plus_one": "1 + weight", "linear": "rows"}[verdict.kind]
    experts = f", one per expert: {verdict.folds}" if verdict.folds > 1 else ""
    return f"({kind}{experts}; error {verdict.error or 0:.2g})"


def _family(name: str) -> str:
    """The name, with ``*`` for the number of an expert."""
    return _NUMBER.sub("*", name)


def _counted(lines: Iterable[str]) -> Iterable[tuple[str, int]]:
    counts: dict[str, int] = {}
    for line in lines:
        counts[line] = counts.get(line, 0) + 1
    return counts.items()


def _times(count: int) -> str:
    return f"  x{count}" if count > 1 else ""
