"""Which folds and shared inputs probing finds in the blocks of known architectures."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from qconv.model import Topology, apply_fold, probe_block

NORM, PLUS_ONE, LINEAR = "norm", "norm_plus_one", "linear"
QKV = tuple(f"self_attn.{name}_proj.weight" for name in "qkv")
GATE_UP = ("mlp.gate_proj.weight", "mlp.up_proj.weight")
DOWN = ("mlp.down_proj.weight",)
EXPERTS = [("mlp.experts.gate_up_proj", expert) for expert in range(4)]
#: What columns of o_proj read with 4 heads of 8 on 2 key and value heads: each v row is read twice.
GROUPED = tuple(head // 2 * 8 + channel for head in range(4) for channel in range(8))


class Called:
    """A block of a tiny model, and what the model calls it with."""

    def __init__(self, kind: str, block: int = 0, tokens: int = 16, **changes: Any) -> None:
        model = tiny.build(kind, **changes)
        model.config._experts_implementation = "eager"
        options = {} if kind == "bert" else {"use_cache": False}
        (window,) = tiny.windows(tokens)
        lists = (m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
        self.block = next(lists)[block]
        with self.block.register_forward_pre_hook(self._hear, with_kwargs=True), torch.no_grad():
            model(window[None], **options)

    def _hear(self, module: Any, args: Any, kwargs: Any) -> None:
        self.hidden, self.args, self.kwargs = args[0], args[1:], kwargs

    def probe(self) -> Topology:
        return probe_block(self.block, self.hidden, args=self.args, kwargs=self.kwargs)

    def run(self, **parameters: torch.Tensor) -> torch.Tensor:
        call = (self.hidden, *self.args)
        with torch.no_grad():
            result = torch.func.functional_call(self.block, parameters, call, self.kwargs)
        return result[0] if isinstance(result, tuple) else result


def same(n: int) -> tuple[int, ...]:
    return tuple(range(n))


def decoder(norms: str = NORM, v_bias: str | None = None) -> list[Any]:
    """The folds of a block like Llama's."""
    return [
        (norms, "input_layernorm.weight", None, same(32), QKV, same(32)),
        (norms, "post_attention_layernorm.weight", None, same(32), GATE_UP, same(32)),
        (LINEAR, QKV[2], v_bias, same(16), ("self_attn.o_proj.weight",), GROUPED),
        (LINEAR, GATE_UP[1], None, same(48), DOWN, same(48)),
    ]


def gemma() -> list[Any]:
    folds = decoder(PLUS_ONE)
    folds[1] = (PLUS_ONE, "pre_feedforward_layernorm.weight", *folds[1][2:])
    return folds


def mixture(width: int) -> list[Any]:
    """Like Llama's, but the second norm feeds router and experts, each of which has a fold."""
    readers = ("mlp.gate.weight", *EXPERTS)
    folds = decoder()[:3]
    folds[1] = (*folds[1][:4], readers, same(32))
    up = tuple(range(width, 2 * width))
    return folds + [
        (LINEAR, producer, None, up, (("mlp.experts.down_proj", producer[1]),), same(width))
        for producer in EXPERTS
    ]


PHI = [
    (NORM, "input_layernorm.weight", None, same(32), ("self_attn.qkv_proj.weight",), same(32)),
    (
        NORM,
        "post_attention_layernorm.weight",
        None,
        same(32),
        ("mlp.gate_up_proj.weight",),
        same(32),
    ),
    (
        LINEAR,
        "self_attn.qkv_proj.weight",
        None,
        tuple(range(48, 64)),
        ("self_attn.o_proj.weight",),
        GROUPED,
    ),
    (LINEAR, "mlp.gate_up_proj.weight", None, tuple(range(48, 96)), DOWN, same(48)),
]
GPT2 = [
    (NORM, "ln_1.weight", "ln_1.bias", same(32), ("attn.c_attn.weight",), same(32)),
    (NORM, "ln_2.weight", "ln_2.bias", same(32), ("mlp.c_fc.weight",), same(32)),
    (
        LINEAR,
        "attn.c_attn.weight",
        "attn.c_attn.bias",
        tuple(range(64, 96)),
        ("attn.c_proj.weight",),
        same(32),
    ),
]
OPT = [
    (
        NORM,
        "self_attn_layer_norm.weight",
        "self_attn_layer_norm.bias",
        same(32),
        ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
        same(32),
    ),
    (NORM, "final_layer_norm.weight", "final_layer_norm.bias", same(32), ("fc1.weight",), same(32)),
    (
        LINEAR,
        "self_attn.v_proj.weight",
        "self_attn.v_proj.bias",
        same(32),
        ("self_attn.out_proj.weight",),
        same(32),
    ),
    (LINEAR, "fc1.weight", "fc1.bias", same(48), ("fc2.weight",), same(48)),
]
BERT = [
    (
        LINEAR,
        "attention.self.value.weight",
        "attention.self.value.bias",
        same(32),
        ("attention.output.dense.weight",),
        same(32),
    ),
]
FOLDS = {
    "llama": decoder(),
    "mistral": decoder(),
    "qwen2": decoder(v_bias="self_attn.v_proj.bias"),
    "qwen3": decoder(),
    "gemma2": gemma(),
    "gemma3_text": gemma(),
    "phi3": PHI,
    "gpt2": GPT2,
    "opt": OPT,
    "bert": BERT,
    "mixtral": mixture(48),
    "qwen3_moe": mixture(24),
}


def place(parameter: str, expert: int | None) -> Any:
    return parameter if expert is None else (parameter, expert)


def found(topology: Topology) -> list[Any]:
    return [
        (
            fold.kind,
            place(fold.producer, fold.expert),
            fold.bias,
            fold.rows,
            tuple(place(part.parameter, part.expert) for part in fold.consumers),
            fold.channel_of,
        )
        for fold in topology.folds
    ]


@pytest.fixture(scope="module")
def topologies() -> dict[str, tuple[Called, Topology]]:
    called = {kind: Called(kind) for kind in FOLDS}
    return {kind: (each, each.probe()) for kind, each in called.items()}


def sorted_folds(folds: list[Any]) -> list[Any]:
    return sorted(folds, key=str)


@pytest.mark.parametrize("kind", FOLDS)
def test_exactly_these_folds_with_these_channel_maps(kind, topologies):
    assert sorted_folds(found(topologies[kind][1])) == sorted_folds(FOLDS[kind])


@pytest.mark.parametrize("kind", FOLDS)
def test_any_scales_at_any_fold_leave_the_output(kind, topologies):
    called, topology = topologies[kind]
    before = called.run()
    parameters = dict(called.block.named_parameters())
    generator = torch.Generator().manual_seed(1)
    for fold in topology.folds:
        scales = torch.rand(fold.channels, generator=generator) * 3 + 0.3
        after = called.run(**apply_fold(parameters, fold, scales))
        error = (after - before).norm() / (before - called.hidden).norm()
        assert error < 3e-6, fold.producer


def refused(topology: Topology) -> dict[tuple[str, tuple[str, ...]], str]:
    return {(v.producer, v.consumers): v.reason for v in topology.verdicts if not v.accepted}


ATTENTION = ("self_attn.o_proj.weight",)
OTHERWISE = "its input changes other than by a factor per column"


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_all_other_pairs_are_refused(kind, topologies):
    assert refused(topologies[kind][1]) == {
        (QKV[0], ATTENTION): OTHERWISE,
        (QKV[1], ATTENTION): OTHERWISE,
        ("self_attn.o_proj.weight", GATE_UP): OTHERWISE,
        (GATE_UP[0], DOWN): OTHERWISE,
    }


def test_norms_of_queries_and_keys_are_refused(topologies):
    verdicts = refused(topologies["qwen3"][1])
    assert verdicts["self_attn.q_norm.weight", ATTENTION] == OTHERWISE
    assert verdicts["self_attn.k_norm.weight", ATTENTION] == OTHERWISE


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text"])
def test_norms_before_the_residual_are_refused(kind, topologies):
    verdicts = refused(topologies[kind][1])
    assert verdicts["post_attention_layernorm.weight", GATE_UP] == OTHERWISE
    assert verdicts["post_feedforward_layernorm.weight", ()] == "no linear of the block reads it"


def test_norms_whose_output_is_also_the_residual_are_refused(topologies):
    verdicts = refused(topologies["bert"][1])
    reason = verdicts["attention.output.LayerNorm.weight", ("intermediate.dense.weight",)]
    assert reason == "the block's output takes it up without a linear in between"
    assert ("output.LayerNorm.weight", ()) in verdicts


def test_gelu_is_refused_where_relu_is_not(topologies):
    assert refused(topologies["gpt2"][1])["mlp.c_fc.weight", ("mlp.c_proj.weight",)] == OTHERWISE
    gelu = Called("opt", activation_function="gelu").probe()
    assert refused(gelu)["fc1.weight", ("fc2.weight",)] == OTHERWISE


def test_halves_of_fused_weights_are_judged_apart(topologies):
    assert (("mlp.gate_up_proj.weight[0:48]", DOWN)) in refused(topologies["phi3"][1])
    gate = ("mlp.experts.gate_up_proj[*, 0:48]", ("mlp.experts.down_proj[*]",))
    assert gate in refused(topologies["mixtral"][1])


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("llama", [QKV, ATTENTION, GATE_UP, DOWN]),
        ("gpt2", [("attn.c_attn.weight",), ("attn.c_proj.weight",), ("mlp.c_fc.weight",),
                  ("mlp.c_proj.weight",)]),
        ("mixtral", [QKV, ATTENTION, ("mlp.gate.weight",), *((each,) for each in EXPERTS),
                     *((("mlp.experts.down_proj", expert),) for expert in range(4))]),
    ],
)  # fmt: skip
def test_linears_that_share_an_input(kind, inputs, topologies):
    groups = [
        tuple(place(part.parameter, part.expert) for part in group)
        for group in topologies[kind][1].inputs
    ]
    assert sorted_folds(groups) == sorted_folds(inputs)


def test_dense_and_expert_layers_of_one_model_differ():
    assert sorted_folds(found(Called("qwen3_moe", block=1).probe())) == sorted_folds(decoder())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_the_same_folds(dtype, topologies):
    for kind in ("gemma2", "mixtral"):
        called = Called(kind)
        called.block.to(dtype)
        called.hidden = called.hidden.to(dtype)
        assert called.probe().folds == topologies[kind][1].folds


def test_stored_the_other_way_round(topologies):
    (fold,) = (fold for fold in topologies["gpt2"][1].folds if fold.kind == LINEAR)
    assert fold.transposed
    assert fold.row_range == (64, 96)
    assert [part.transposed for part in fold.consumers] == [True]
    assert [part.rows for part in fold.consumers] == [(0, 32)]


def test_equal_blocks_give_equal_topologies_and_stay_as_they_are(topologies):
    for kind in ("gpt2", "mixtral"):
        called, first = topologies[kind]
        before = {name: value.clone() for name, value in called.block.state_dict().items()}
        assert called.probe() == first
        assert all(torch.equal(before[n], v) for n, v in called.block.state_dict().items())
