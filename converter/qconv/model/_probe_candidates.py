"""Candidates for folds, from synthetic runs: every vector and every linear of a block is tried."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qconv.model._probe_channels import Reading, channel_factors
from qconv.model._topology import BlockFold, FoldKind, LinearPart, label

if TYPE_CHECKING:
    import torch

    from qconv.model._probe_watch import Seen, Use
    from qconv.model._probe_world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A producer and what reads it.

    readers: names of the linears it reaches
    objection: why it cannot be a fold; empty when it is to be checked by real runs
    folds: one, or one per expert
    """

    kind: FoldKind
    producer: str
    readers: tuple[str, ...]
    objection: str
    folds: tuple[BlockFold, ...]


# --- vectors --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Formula:
    """How a vector might act: which kind of norm, with which other vector as its bias."""

    kind: FoldKind
    bias: str | None


def vector_candidates(world: World) -> Iterator[Candidate]:
    """A candidate for every vector that is no bias."""
    biases = {seen.bias for seen in world.uses().values()}
    taken: set[str | None] = set(biases)
    for path in world.vectors:
        if path in taken:
            continue
        formula, reading = _best_formula(world, path, taken)
        taken |= {path, formula.bias}
        yield _vector_candidate(world, path, formula, reading)


def _best_formula(world: World, path: str, taken: set[str | None]) -> tuple[_Formula, Reading]:
    """The first formula that explains all readers; else the one that explains the most."""
    tried = []
    for formula in _formulas(world, path, taken):
        reading = _read_vector(world, path, formula)
        tried.append((formula, reading))
        if reading.is_clean:
            return tried[-1]
    return max(tried, key=lambda each: len(each[1].scaled))


def _formulas(world: World, path: str, taken: set[str | None]) -> Iterator[_Formula]:
    owner = path.rpartition(".")[0]
    partners = [
        other
        for other, vector in world.vectors.items()
        if other != path
        and other not in taken
        and other.rpartition(".")[0] == owner
        and vector.shape == world.vectors[path].shape
    ]
    kinds: tuple[FoldKind, ...] = ("norm", "norm_plus_one")
    for kind in kinds:
        for bias in (*partners, None):
            yield _Formula(kind=kind, bias=bias)


def _read_vector(world: World, path: str, formula: _Formula) -> Reading:
    vector = world.vectors[path]
    factors = channel_factors(len(vector), 0, vector.device)
    changed = {path: vector * factors}
    if formula.kind == "norm_plus_one":
        changed[path] = (1 + vector) * factors - 1
    if formula.bias is not None:
        changed[formula.bias] = world.vectors[formula.bias] * factors
    return world.reading(lambda _use: factors, vectors=changed)


def _vector_candidate(world: World, path: str, formula: _Formula, reading: Reading) -> Candidate:
    objection = _objection(reading)
    folds: tuple[BlockFold, ...] = ()
    if not objection:
        consumers = _consumers(reading, None)
        folds = (
            BlockFold(
                kind=formula.kind,
                producer=path,
                bias=formula.bias,
                expert=None,
                transposed=False,
                rows=tuple(range(len(world.vectors[path]))),
                consumers=consumers,
                channel_of=next(iter(reading.scaled.values())),
            ),
        )
    return Candidate(
        kind=formula.kind,
        producer=path,
        readers=_reader_names(world, reading),
        objection=objection,
        folds=folds,
    )


# --- linears --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Producer:
    """A linear, or all experts of a fused one, which the same code uses in turn."""

    parts: tuple[LinearPart, ...]
    seen: tuple[Seen, ...]

    @property
    def height(self) -> int:
        return self.parts[0].rows[1] - self.parts[0].rows[0]

    def pieces(self) -> list[tuple[int, ...]]:
        """Rows of the largest pieces the block takes the output apart into."""
        every = {rows for seen in self.seen for rows in seen.row_sets}
        sets = {rows: frozenset(rows) for rows in every}
        largest = [r for r in every if not any(sets[r] < other for other in sets.values())]
        return sorted(largest)


def linear_candidates(world: World) -> Iterator[Candidate]:
    """Candidates for every linear whose output reaches another one within the block."""
    for producer in _producers(world):
        whole = _linear_candidate(world, producer, tuple(range(producer.height)))
        pieces = []
        if whole.objection:
            pieces = [_linear_candidate(world, producer, rows) for rows in producer.pieces()]
        if any(not piece.objection for piece in pieces):
            yield from (piece for piece in pieces if piece.readers)
        elif whole.readers:
            yield whole


def _producers(world: World) -> Iterable[_Producer]:
    groups: dict[tuple[str, tuple[int, int]], dict[LinearPart, Seen]] = {}
    for use, seen in world.uses().items():
        key = (use.part.parameter, use.part.rows)
        groups.setdefault(key, {}).setdefault(use.part, seen)
    for group in groups.values():
        yield _Producer(parts=tuple(group), seen=tuple(group.values()))


def _linear_candidate(world: World, producer: _Producer, rows: tuple[int, ...]) -> Candidate:
    reading = _read_linear(world, producer, rows)
    objection = _objection(reading)
    folds = () if objection else tuple(_linear_folds(producer, rows, reading))
    first = producer.parts[0]
    return Candidate(
        kind="linear",
        producer=_name(world, first, [first.rows[0] + row for row in rows]),
        readers=_reader_names(world, reading),
        objection=objection,
        folds=folds,
    )


def _read_linear(world: World, producer: _Producer, rows: tuple[int, ...]) -> Reading:
    """Experts are multiplied all at once, by factors in an order of their own."""
    import torch

    device = world.call.hidden.device
    index = torch.tensor(rows, device=device)
    parts = set(producer.parts)

    def factors_of(expert: int | None) -> torch.Tensor:
        return channel_factors(len(rows), (expert or 0) + 1, device)

    def factors(part: LinearPart) -> torch.Tensor | None:
        if part not in parts:
            return None
        every = torch.ones(producer.height, dtype=torch.float64, device=device)
        every[index] = factors_of(part.expert)
        return every

    has_experts = producer.parts[0].expert is not None
    return world.reading(
        lambda use: factors_of(use.part.expert if has_experts else None), factors=factors
    )


def _linear_folds(
    producer: _Producer, rows: tuple[int, ...], reading: Reading
) -> Iterator[BlockFold]:
    for part, seen in zip(producer.parts, producer.seen, strict=True):
        consumers = _consumers(reading, part.expert)
        if not consumers:
            continue
        channels = next(c for use, c in reading.scaled.items() if use.part == consumers[0])
        yield BlockFold(
            kind="linear",
            producer=part.parameter,
            bias=seen.bias,
            expert=part.expert,
            transposed=part.transposed,
            rows=tuple(part.rows[0] + row for row in rows),
            consumers=consumers,
            channel_of=channels,
        )


# --- both -----------------------------------------------------------------------------------------


def _objection(reading: Reading) -> str:
    if not reading.scaled and not reading.otherwise:
        return "no linear of the block reads it"
    if not reading.scaled:
        return next(iter(reading.otherwise.values()))
    if reading.otherwise:
        use, why = next(iter(reading.otherwise.items()))
        return f"{use.part.parameter} reads it too, but {why}"
    if reading.elsewhere:
        return "the block's output takes it up without a linear in between"
    if len(set(reading.scaled.values())) > 1:
        return "its readers do not have their columns in one order"
    return ""


def _consumers(reading: Reading, expert: int | None) -> tuple[LinearPart, ...]:
    """The linears to compensate, without repetition; of one expert only, if it is one's output."""
    parts = dict.fromkeys(use.part for use in reading.scaled)
    return tuple(part for part in parts if expert is None or part.expert == expert)


def _reader_names(world: World, reading: Reading) -> tuple[str, ...]:
    uses: Iterable[Use] = (*reading.scaled, *reading.otherwise)
    names = (_name(world, use.part, range(*use.part.rows)) for use in uses)
    return tuple(dict.fromkeys(names))


def _name(world: World, part: LinearPart, rows: Sequence[int]) -> str:
    shape = world.parameters[part.parameter].shape
    total = shape[-1] if part.transposed else shape[-2]
    return label(part.parameter, None if part.expert is None else "*", rows, total)
