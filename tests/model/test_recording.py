"""Recorders in place of blocks: models that take tuples from them, and models that are no chain."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qconv.errors import Unsupported
from qconv.model._recording import Pool, Recorder


class Chain(nn.Module):
    """Calls its blocks as ``step`` says, and ends with the state."""

    def __init__(self, count, step):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(count))
        self.step = step

    def forward(self, x):
        for layer in self.layers:
            x = self.step(layer, x)
        return x


def recorded(count, step):
    model = Chain(count, step)
    recorder = Recorder(model.layers, "layers")
    x = torch.rand(1, 3, 4)
    return recorder, x, recorder.record(lambda: model(x)), model


def test_arguments_are_recorded_without_the_state():
    mask = torch.ones(3)
    _, x, (state, arguments), _ = recorded(2, lambda layer, x: layer(x, mask, scale=2))
    assert state is x
    assert arguments == (((mask,), {"scale": 2}),) * 2


def test_a_state_passed_by_name_is_found():
    _, x, (state, arguments), _ = recorded(2, lambda layer, x: layer(hidden_states=x, scale=2))
    assert state is x
    assert arguments == (((), {"scale": 2}),) * 2


def test_models_that_expect_tuples_of_their_blocks_get_them():
    recorder, x, (state, _), model = recorded(3, lambda layer, x: layer(x)[0])
    assert recorder.returns_tuple
    assert state is x
    last = torch.rand(1, 3, 4)
    assert recorder.after(last, lambda: model(x)) is last


def test_blocks_run_as_before_once_recorded():
    _, x, _, model = recorded(1, lambda layer, x: layer(x))
    assert torch.equal(model(x), model.layers[0](x))


@pytest.mark.parametrize(
    ("step", "match"),
    [
        (lambda layer, x: layer(layer(x)), r"layers.0: called again or out of order \(call 1\)"),
        (lambda layer, x: layer(x) + 1, r"layers.1: the model changes the hidden states"),
        (lambda layer, x: layer(x[0]), r"layers.0: hidden states have shape \(3, 4\)"),
        (lambda layer, x: x, r"layers: the model ran through 0 of 2 blocks"),
    ],
)
def test_what_is_no_plain_chain_is_unsupported(step, match):
    with pytest.raises(Unsupported, match=match):
        recorded(2, step)


def test_the_pool_keeps_one_of_equal_tensors_and_all_that_differ():
    pool = Pool()
    one, other = torch.ones(2), torch.zeros(2)
    assert pool.shared({"a": (one, [other])})["a"][0] is one
    assert pool.shared((torch.ones(2), 3, None)) == (one, 3, None)
    assert pool.shared(torch.ones(2)) is one
    assert pool.shared(torch.zeros(2)) is other
    assert pool.shared(torch.ones(2).double()) is not one
