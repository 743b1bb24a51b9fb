"""Folds that are wrong on purpose, and blocks in which the obvious fold would do damage."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from test_topology import GROUPED, Called
from torch import nn

from qconv.errors import Unsupported
from qconv.model import (
    FOLD_TOLERANCE,
    BlockFold,
    LinearPart,
    Topology,
    apply_folds,
    folding_error,
    probe_block,
)


@cache
def called(kind: str, **changes: Any) -> Called:
    return Called(kind, **changes)


@cache
def topology(kind: str) -> Topology:
    return called(kind).probe()


def fold_of(kind: str, producer: str, expert: int | None = None) -> BlockFold:
    (fold,) = (
        each for each in topology(kind).folds if (each.producer, each.expert) == (producer, expert)
    )
    return fold


def error(kind: str, *folds: BlockFold, **changes: Any) -> float:
    each = called(kind, **changes)
    return folding_error(folds, each.block, each.hidden, args=each.args, kwargs=each.kwargs)


def is_refused(kind: str, fold: BlockFold, **changes: Any) -> bool:
    return error(kind, fold, **changes) > 1e-3


def part(parameter: str, columns: int, rows: int = 32) -> LinearPart:
    return LinearPart(
        parameter=parameter, expert=None, rows=(0, rows), columns=columns, transposed=False
    )


def linear(producer: str, consumer: LinearPart, channel_of: tuple[int, ...]) -> BlockFold:
    return BlockFold(
        kind="linear",
        producer=producer,
        bias=None,
        expert=None,
        transposed=False,
        rows=tuple(range(max(channel_of) + 1)),
        consumers=(consumer,),
        channel_of=channel_of,
    )


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "opt", "mixtral"])
def test_right_folds_pass_all_at_once(kind):
    assert error(kind, *topology(kind).folds) <= FOLD_TOLERANCE


@pytest.mark.parametrize("left_out", [0, 1, 2])
def test_a_norm_with_only_some_of_its_readers(left_out):
    fold = fold_of("llama", "input_layernorm.weight")
    readers = tuple(each for n, each in enumerate(fold.consumers) if n != left_out)
    assert is_refused("llama", replace(fold, consumers=readers))


def test_a_norm_without_its_router():
    fold = fold_of("mixtral", "post_attention_layernorm.weight")
    experts = tuple(each for each in fold.consumers if each.expert is not None)
    assert len(experts) == len(fold.consumers) - 1
    assert is_refused("mixtral", replace(fold, consumers=experts))


@pytest.mark.parametrize("left_out", range(4))
def test_a_norm_without_one_of_the_experts(left_out):
    fold = fold_of("mixtral", "post_attention_layernorm.weight")
    readers = tuple(each for each in fold.consumers if each.expert != left_out)
    assert is_refused("mixtral", replace(fold, consumers=readers))


def test_one_expert_with_the_consumer_of_another():
    fold = fold_of("mixtral", "mlp.experts.gate_up_proj", 0)
    other = fold_of("mixtral", "mlp.experts.gate_up_proj", 1)
    assert is_refused("mixtral", replace(fold, consumers=other.consumers))


@pytest.mark.parametrize(
    ("kind", "wrong"), [("llama", "norm_plus_one"), ("gemma2", "norm"), ("gemma3_text", "norm")]
)
def test_weight_and_one_plus_weight_confused(kind, wrong):
    assert is_refused(kind, replace(fold_of(kind, "input_layernorm.weight"), kind=wrong))


@pytest.mark.parametrize(
    ("kind", "producer"),
    [("gpt2", "ln_1.weight"), ("opt", "fc1.weight"), ("qwen2", "self_attn.v_proj.weight")],
)
def test_a_bias_left_behind(kind, producer):
    assert is_refused(kind, replace(fold_of(kind, producer), bias=None))


def test_heads_repeated_in_the_wrong_order():
    fold = fold_of("llama", "self_attn.v_proj.weight")
    assert fold.channel_of == GROUPED
    interleaved = tuple(column % 16 for column in range(32))
    assert is_refused("llama", replace(fold, channel_of=interleaved))


def test_two_channels_exchanged():
    fold = fold_of("llama", "mlp.up_proj.weight")
    assert is_refused("llama", replace(fold, channel_of=(1, 0, *range(2, 48))))


@pytest.mark.parametrize(
    ("producer", "consumer", "channel_of"),
    [
        ("mlp.gate_proj.weight", part("mlp.down_proj.weight", 48), tuple(range(48))),
        ("self_attn.q_proj.weight", part("self_attn.o_proj.weight", 32), tuple(range(32))),
        ("self_attn.k_proj.weight", part("self_attn.o_proj.weight", 32), GROUPED),
        ("self_attn.o_proj.weight", part("mlp.up_proj.weight", 32, 48), tuple(range(32))),
    ],
)
def test_linears_with_something_else_in_between(producer, consumer, channel_of):
    assert is_refused("llama", linear(producer, consumer, channel_of))


def test_the_gate_in_place_of_the_up_half():
    fold = fold_of("phi3", "mlp.gate_up_proj.weight")
    assert is_refused("phi3", replace(fold, rows=tuple(range(48))))


def test_queries_through_their_norm():
    """Scales on q would vanish in its norm: the output stays, but o_proj may not be rescaled."""
    consumer = part("self_attn.o_proj.weight", 32)
    wrong = linear("self_attn.q_proj.weight", consumer, tuple(range(32)))
    assert is_refused("qwen3", wrong)


def test_a_fold_of_relu_in_a_block_with_gelu():
    fold = fold_of("opt", "fc1.weight")
    assert is_refused("opt", fold, activation_function="gelu")


def test_a_norm_that_is_also_the_residual():
    consumer = part("intermediate.dense.weight", 32, 48)
    wrong = replace(
        linear("attention.output.LayerNorm.weight", consumer, tuple(range(32))),
        kind="norm",
        bias="attention.output.LayerNorm.bias",
    )
    assert is_refused("bert", wrong)


# --- small blocks ---------------------------------------------------------------------------------


class Small(nn.Module):
    """A norm and two linears; subclasses put something between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.weight = nn.Parameter(torch.rand(8) + 0.5)
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x)

    def forward(self, x: torch.Tensor, **_: Any) -> torch.Tensor:
        return x + self.down(self.between(self.up(self.norm(x))))


def states(tokens: int = 16) -> torch.Tensor:
    return torch.randn(1, tokens, 8, generator=torch.Generator().manual_seed(5))


def pairs(block: nn.Module, **kwargs: Any) -> dict[str, tuple[str, ...]]:
    return {
        fold.producer: tuple(part.parameter for part in fold.consumers)
        for fold in probe_block(block, states(), kwargs=kwargs).folds
    }


def why(block: nn.Module, producer: str) -> str:
    verdicts = probe_block(block, states()).verdicts
    (verdict,) = (each for each in verdicts if each.producer == producer)
    assert not verdict.accepted
    return verdict.reason


def test_a_small_block_folds_twice():
    assert pairs(Small()) == {"weight": ("up.weight",), "up.weight": ("down.weight",)}


def test_dead_channels_are_read_all_the_same():
    """Of a ReLU that never fires on the window, the map still comes out."""
    block = Small()
    with torch.no_grad():
        block.up.bias[3:] = -1e3
        block.weight[2] = 0
    assert pairs(block) == pairs(Small())


class SquaredRelu(Small):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x).square()


def test_squares_do_not_take_the_same_factor():
    assert "do not take their channel's factor" in why(SquaredRelu(), "up.weight")


class Flipped(Small):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x).flip(-1)


def test_columns_in_another_order_are_mapped():
    (fold,) = (f for f in probe_block(Flipped(), states()).folds if f.kind == "linear")
    assert fold.channel_of == tuple(reversed(range(12)))


class AlsoAdded(Small):
    def forward(self, x: torch.Tensor, **_: Any) -> torch.Tensor:
        normed = self.norm(x)
        return x + self.down(self.between(self.up(normed))) + 0.01 * normed


def test_a_norm_read_by_the_output_too():
    assert why(AlsoAdded(), "weight") == (
        "the block's output takes it up without a linear in between"
    )


class ReadByAnEinsum(Small):
    def forward(self, x: torch.Tensor, **_: Any) -> torch.Tensor:
        normed = self.norm(x)
        hidden = self.up(normed) + torch.einsum("bti,oi->bto", normed, self.up.weight).tanh()
        return x + self.down(self.between(hidden))


def test_a_reader_that_is_no_known_product():
    assert why(ReadByAnEinsum(), "weight").startswith("down.weight reads it too")


class UsedTwice(Small):
    """``down`` has another input as well, which the rescaling would hit."""

    def forward(self, x: torch.Tensor, **_: Any) -> torch.Tensor:
        raw = torch.cat([x, x[..., :4]], dim=-1)
        return x + self.down(self.between(self.up(self.norm(x)))) + self.down(raw)


def test_a_consumer_with_a_second_input():
    assert why(UsedTwice(), "up.weight") == "rescaling both sides changes the block's output"


class Lends(Small):
    """Leaves what it computed to later blocks, as layers that share keys and values do."""

    def forward(self, x: torch.Tensor, shared: Any = None, **_: Any) -> torch.Tensor:
        hidden = self.between(self.up(self.norm(x)))
        if shared is not None:
            shared["hidden"] = hidden
        return x + self.down(hidden)


def test_what_a_block_lends_to_later_ones_counts_as_its_output():
    shared: dict[str, Any] = {}
    assert "up.weight" not in pairs(Lends(), shared=shared)
    assert "up.weight" in pairs(Lends())
    assert not shared


class Interleaved(Small):
    """Gate and up rows in turn, and a bias added by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Parameter(torch.randn(8, 24))
        self.shift = nn.Parameter(torch.randn(24))

    def forward(self, x: torch.Tensor, **_: Any) -> torch.Tensor:
        both = self.norm(x) @ self.both + self.shift
        return x + self.down(nn.functional.silu(both[..., ::2]) * both[..., 1::2])


def test_rows_that_are_not_side_by_side():
    folds = {fold.producer: fold for fold in probe_block(Interleaved(), states()).folds}
    assert folds["both"].rows == tuple(range(1, 24, 2))
    assert folds["both"].row_range is None
    assert folds["both"].bias == "shift"
    assert folds["both"].transposed


class Stacked(Small):
    """All experts in one product, each on all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Parameter(torch.randn(3, 8, 24))
        self.out = nn.Parameter(torch.randn(3, 12, 8))

    def forward(self, x: torch.Tensor, **_: Any) -> torch.Tensor:
        each = self.norm(x).reshape(1, -1, 8).repeat(3, 1, 1)
        gate, up = torch.bmm(each, self.both).chunk(2, dim=-1)
        return x + torch.bmm(gate.tanh() * up, self.out).sum(0)[None]


def test_experts_in_one_product_are_told_apart():
    folds = probe_block(Stacked(), states()).folds
    assert [(fold.producer, fold.expert) for fold in folds] == [
        ("weight", None), ("both", 0), ("both", 1), ("both", 2),
    ]  # fmt: skip
    assert [part.expert for part in folds[0].consumers] == [0, 1, 2]
    for fold in folds[1:]:
        assert [(part.parameter, part.expert) for part in fold.consumers] == [("out", fold.expert)]
        assert fold.row_range == (12, 24)


class Routed(Small):
    """Every token goes to the expert of its highest score; ``argmax`` deals nothing."""

    def __init__(self, highest: Any) -> None:
        super().__init__()
        self.router = nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self._highest = highest

    def forward(self, x: torch.Tensor, **_: Any) -> torch.Tensor:
        normed = self.norm(x)
        scores, chosen = self._highest(self.router(normed))
        out = x.clone()
        for number, expert in enumerate(self.experts):
            mine = (chosen == number).squeeze(-1)
            if mine.any():
                out[mine] += expert(normed[mine]) * scores[mine].sigmoid()
        return out


def test_every_expert_is_reached_however_few_the_tokens_choose():
    block = Routed(lambda scores: torch.topk(scores, 1))
    with torch.no_grad():
        block.router.bias[0] = 100
    readers = ("router.weight", *(f"experts.{n}.weight" for n in range(3)))
    assert pairs(block) == {"weight": readers}
    two = probe_block(block, states(tokens=2))
    assert [each.parameter for each in two.folds[0].consumers] == list(readers)


def test_experts_that_no_token_reached_may_read_a_norm_too():
    block = Routed(lambda scores: (scores[..., :1], torch.zeros_like(scores[..., :1]).long()))
    assert why(block, "weight").startswith("some experts were given no token")


class Stubborn(Small):
    def between(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float32:
            raise ValueError("float32 only")
        return x


def test_a_block_that_cannot_run_in_float64():
    with pytest.raises(Unsupported, match="block Stubborn: cannot be run in float64.*float32 only"):
        probe_block(Stubborn(), states())
    with pytest.raises(Unsupported, match="block Stubborn"):
        folding_error([], Stubborn(), states())


def test_states_that_are_not_finite_pass_nothing():
    fold = probe_block(Small(), states()).folds
    assert folding_error(fold, Small(), states() * torch.inf) == float("inf")


def test_apply_folds_leaves_what_it_was_given():
    block = Small()
    folds = probe_block(block, states()).folds
    tensors = dict(block.named_parameters())
    before = {path: tensor.detach().clone() for path, tensor in tensors.items()}
    changed = apply_folds(tensors, [(fold, torch.full((fold.channels,), 2.0)) for fold in folds])
    assert set(changed) == {"weight", "up.weight", "up.bias", "down.weight"}
    assert all(torch.equal(tensors[path], before[path]) for path in before)
    assert torch.equal(changed["up.weight"], before["up.weight"])  # times two, and divided by it
    assert torch.equal(changed["up.bias"], before["up.bias"] / 2)


def test_training_mode_and_random_state_survive():
    block = Small().train()
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    probe_block(block, states())
    assert block.training
    assert torch.equal(torch.rand(1), expected)
