"""Following transformers' weight conversions by name gives what they do to the values."""

from __future__ import annotations

import pytest
import torch

from qconv.errors import Unsupported
from qconv.model._conversions import follow, whole
from qconv.model._placement import _pieces, natural_key

loading = pytest.importorskip("transformers.core_model_loading")


def both_ways(operations, sources, targets):
    """The targets as transformers makes them, and as our pieces fill them."""
    state = {key: [value for _, value in each] for key, each in sources.items()}
    for operation in operations:
        state = operation.convert(state, source_patterns=list(sources), target_patterns=targets)
    theirs = {key: each[0] if isinstance(each, list) else each for key, each in state.items()}
    values = {name: value for each in sources.values() for name, value in each}
    collected = {
        key: [whole(name, tuple(value.shape)) for name, value in each]
        for key, each in sources.items()
    }
    ours = {}
    for key, arrangement in follow(operations, collected, targets).items():
        ours[key] = torch.full(arrangement.shape, torch.nan)
        for piece in _pieces(key, arrangement):
            piece.of_parameter(ours[key]).copy_(piece.of_source(values[piece.source]))
    return theirs, ours


def named(pattern, count, *shape):
    return [(f"{pattern}.{n}", torch.rand(shape)) for n in range(count)]


@pytest.mark.parametrize(
    ("operations", "sources", "targets"),
    [
        (
            [loading.MergeModulelist(dim=0), loading.Concatenate(dim=1)],
            {"w1": named("w1", 3, 4, 6), "w3": named("w3", 3, 4, 6)},
            ["gate_up"],
        ),
        ([loading.MergeModulelist(dim=0)], {"w2": named("w2", 3, 4, 6)}, ["down"]),
        ([loading.Chunk(dim=0)], {"qkv": named("qkv", 1, 9, 5)}, ["q", "k", "v"]),
        ([loading.Concatenate(dim=0)], {"q": named("q", 1, 4, 5), "k": named("k", 1, 2, 5)}, ["c"]),
        ([loading.Transpose(0, 1)], {"w": named("w", 1, 4, 5)}, ["wt"]),
        (
            [loading.MergeModulelist(dim=0), loading.Concatenate(dim=1), loading.Transpose(1, 2)],
            {"w1": named("w1", 2, 4, 6), "w3": named("w3", 2, 4, 6)},
            ["gate_up"],
        ),
    ],
)
def test_pieces_fill_what_the_operations_compute(operations, sources, targets):
    theirs, ours = both_ways(operations, sources, targets)
    assert theirs.keys() == ours.keys()
    for key, value in theirs.items():
        assert torch.equal(ours[key], value)


def test_an_operation_that_is_no_rearrangement_known_here_is_unsupported():
    class Rotate:
        pass

    with pytest.raises(Unsupported, match=r"tensor 'w.0': transformers converts it by .*Rotate"):
        follow([Rotate()], {"w": [whole("w.0", (2, 2))]}, ["t"])


def test_experts_are_sorted_by_number():
    names = ["experts.10.w", "experts.2.w", "experts.a.w"]
    assert sorted(names, key=natural_key) == [
        "experts.2.w",
        "experts.10.w",
        "experts.a.w",
    ]
