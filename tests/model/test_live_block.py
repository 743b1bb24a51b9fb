"""A live block: its tensors, putting others in, running with others, and what its linears see."""

from __future__ import annotations

import pytest
import tiny
import torch

from qconv.checkpoint import open_checkpoint
from qconv.errors import UnreadableInput, UsageError
from qconv.model import open_model


@pytest.fixture
def opened(tmp_path):
    """Saves and opens a tiny model: ``opened(kind)``."""
    checkpoints = []

    def open_kind(kind, **options):
        whole = tiny.save(kind, tmp_path / kind)
        checkpoints.append(open_checkpoint(tmp_path / kind))
        return open_model(checkpoints[-1], device="cpu", **options), whole

    yield open_kind
    for checkpoint in checkpoints:
        checkpoint.close()


@pytest.mark.parametrize("kind", sorted(tiny.CONFIGS))
def test_tensors_are_the_checkpoints_own(kind, opened, tmp_path):
    model, _ = opened(kind)
    with open_checkpoint(tmp_path / kind) as checkpoint, model.block(1) as block:
        assert sorted(block.tensors) == list(model.blocks[1].sources)
        for name, value in block.tensors.items():
            shape = checkpoint.model.tensors[name].shape
            stored = checkpoint.read_rows(name, 0, value.numel() // shape[-1]).reshape(shape)
            assert torch.equal(value, stored)


@pytest.mark.parametrize("kind", sorted(tiny.CONFIGS))
def test_linears_say_where_each_weight_is_in_the_module(kind, opened):
    model, _ = opened(kind)
    with model.block(2) as block:
        for ref in block.linears:
            parameter = block.module.get_parameter(ref.parameter)
            part = parameter if ref.expert is None else parameter[ref.expert]
            source = block.tensors[ref.source]
            if ref.transposed:
                source, part = source.T, part.T
            assert torch.equal(part[slice(*ref.rows)], source[slice(*ref.source_rows)])
            assert ref.shape == tuple(source.shape)


def test_conv1d_is_transposed_and_nothing_else(opened):
    transposed = {}
    for kind in ("gpt2", "llama", "mixtral"):
        model, _ = opened(kind)
        with model.block(0) as block:
            transposed[kind] = {ref.transposed for ref in block.linears}
    assert transposed == {"gpt2": {True}, "llama": {False}, "mixtral": {False}}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi3", "mixtral", "qwen3_moe"])
def test_run_with_weights_equals_load_and_run(kind, opened):
    model, _ = opened(kind)
    with model.begin(tiny.windows(9)) as hidden, model.block(0) as block:
        before = {name: value.clone() for name, value in block.tensors.items()}
        plain = block.run(hidden, 0)
        other = {name: value * 0.9 for name, value in block.tensors.items()}
        functional = block.run(hidden, 0, weights=other)
        assert torch.equal(block.run(hidden, 0), plain)
        block.load(other)
        torch.testing.assert_close(block.run(hidden, 0), functional)
        assert not torch.allclose(functional, plain)
        assert all(torch.equal(block.tensors[name], value) for name, value in before.items())
        block.load(block.tensors)
        assert torch.equal(block.run(hidden, 0), plain)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_run_is_differentiable_in_every_linear_weight(kind, opened):
    model, _ = opened(kind)
    with model.begin(tiny.windows(12)) as hidden, model.block(0) as block:
        weights = {
            ref.source: block.tensors[ref.source].clone().requires_grad_() for ref in block.linears
        }
        block.run(hidden, 0, weights=weights).square().sum().backward()
        seen = {name for name, weight in weights.items() if weight.grad is not None}
        assert seen == set(weights)
        assert any(bool(weight.grad.abs().sum() > 0) for weight in weights.values())


def test_loading_part_of_a_fused_parameter_leaves_the_other_experts(opened):
    model, _ = opened("mixtral")
    name = "model.layers.0.block_sparse_moe.experts.2.w3.weight"
    with model.block(0) as block:
        block.load({name: torch.zeros(48, 32)})
        for ref in block.linears:
            parameter = block.module.get_parameter(ref.parameter)
            part = parameter if ref.expert is None else parameter[ref.expert]
            expected = torch.zeros(48, 32) if ref.source == name else block.tensors[ref.source]
            assert torch.equal(part[slice(*ref.rows)], expected)


def test_two_live_copies_of_a_block_are_independent(opened):
    model, _ = opened("llama")
    with model.begin(tiny.windows(5)) as hidden, model.block(0) as one, model.block(0) as other:
        expected = one.run(hidden, 0)
        other.load({name: value * 0 for name, value in other.tensors.items()})
        assert torch.equal(one.run(hidden, 0), expected)


def test_a_foreign_name_and_a_wrong_shape_are_usage_errors(opened):
    model, _ = opened("llama")
    with model.block(0) as block:
        with pytest.raises(UsageError, match=r"layers.0: tensor 'nobody' is not one of this"):
            block.load({"nobody": torch.zeros(1)})
        name = "model.layers.0.mlp.up_proj.weight"
        with pytest.raises(UsageError, match=r"stored shape \(48, 32\), not \(32, 48\)"):
            block.load({name: torch.zeros(32, 48)})


def hooked_inputs(whole, windows):
    """What every Linear and Conv1D of the model gets, by weight name, all windows stacked."""
    seen: dict[str, list[torch.Tensor]] = {}
    for name, module in whole.named_modules():
        if type(module).__name__ in ("Linear", "Conv1D"):
            module.register_forward_hook(
                lambda _, args, __, key=name: seen.setdefault(f"{key}.weight", []).append(
                    args[0].reshape(-1, args[0].shape[-1])
                )
            )
    with torch.no_grad():
        for window in windows:
            whole(window[None])
    return {name: torch.cat(each) for name, each in seen.items()}


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "phi3", "gpt2", "opt", "bert"])
def test_statistics_are_those_of_the_inputs_that_hooks_see(kind, opened):
    model, whole = opened(kind)
    windows = tiny.windows(12, 7, 12)
    expected = hooked_inputs(whole, windows)
    with model.begin(windows) as hidden:
        for info in model.blocks:
            with model.block(info.index) as block:
                statistics, _ = block.collect(hidden)
            assert set(statistics) == {ref.source for ref in block.linears}
            for name, found in statistics.items():
                x = expected[name]
                assert found.tokens == len(x) == 31
                torch.testing.assert_close(found.gram, x.T @ x / len(x), atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(found.abs_max, x.abs().amax(0))
                torch.testing.assert_close(found.abs_mean, x.abs().mean(0))


def test_linears_that_share_an_input_share_one_object(opened):
    model, _ = opened("llama")
    with model.begin(tiny.windows(5, 6)) as hidden, model.block(0) as block:
        statistics, _ = block.collect(hidden)
    layer = "model.layers.0."
    q, k, v, o = (statistics[f"{layer}self_attn.{n}_proj.weight"] for n in "qkvo")
    gate, up = (statistics[f"{layer}mlp.{n}_proj.weight"] for n in ("gate", "up"))
    assert q is k is v
    assert gate is up
    assert len({id(each) for each in (q, o, gate, statistics[f"{layer}mlp.down_proj.weight"])}) == 4


@pytest.mark.parametrize("kind", tiny.EXPERT_MODELS)
def test_every_expert_sees_its_own_tokens_only(kind, opened):
    model, _ = opened(kind)
    windows = tiny.windows(12, 7)
    names = ("w1", "w3", "w2") if kind == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    inside = "block_sparse_moe" if kind == "mixtral" else "mlp"
    with model.begin(windows) as hidden, model.block(0) as block:
        routed = []
        gate = next(m for name, m in block.module.named_modules() if name.endswith(".gate"))
        hook = gate.register_forward_hook(lambda _, args, out: routed.append((args[0], out)))
        statistics, _ = block.collect(hidden)
        hook.remove()
        tokens = [0] * 4
        grams = [torch.zeros(32, 32) for _ in range(4)]
        for x, out in routed:
            # transformers 4 routes outside the gate, by the largest of the logits it gives
            chosen = out[-1] if isinstance(out, tuple) else out.topk(2).indices
            for expert in range(4):
                rows = x.reshape(-1, 32)[(chosen == expert).any(-1)]
                tokens[expert] += len(rows)
                grams[expert] += rows.T @ rows
    assert sum(tokens) == 2 * 19
    for expert in range(4):
        path = f"model.layers.0.{inside}.experts.{expert}."
        gate, up, down = (statistics[f"{path}{name}.weight"] for name in names)
        assert gate is up
        assert gate.tokens == down.tokens == tokens[expert]
        if tokens[expert]:
            torch.testing.assert_close(gate.gram_sum, grams[expert], atol=1e-4, rtol=1e-4)


def test_an_expert_without_tokens_has_empty_statistics(opened):
    model, _ = opened("mixtral")
    with model.begin(tiny.windows(1)) as hidden, model.block(0) as block:
        statistics, _ = block.collect(hidden)
    counts = [
        statistics[f"model.layers.0.block_sparse_moe.experts.{n}.w1.weight"].tokens
        for n in range(4)
    ]
    assert sorted(counts) == [0, 0, 1, 1]


def test_statistics_of_two_halves_add_up_to_one_pass(opened):
    model, _ = opened("llama")
    windows = tiny.windows(12, 7, 5)
    name = "model.layers.0.mlp.down_proj.weight"
    found = []
    for part in (windows, windows[:2], windows[2:]):
        with model.begin(part) as hidden, model.block(0) as block:
            found.append(block.collect(hidden, replace=False)[0][name])
    both = found[1] + found[2]
    assert both.tokens == found[0].tokens == 24
    torch.testing.assert_close(both.gram, found[0].gram)


def test_collect_without_gram_keeps_the_diagonal(opened):
    model, _ = opened("llama")
    with model.begin(tiny.windows(5)) as hidden, model.block(0) as block:
        full, _ = block.collect(hidden, replace=False)
        lean, _ = block.collect(hidden, gram=False, replace=False)
    name = "model.layers.0.mlp.down_proj.weight"
    assert lean[name].gram_sum is None
    assert torch.equal(lean[name].importance, full[name].importance)


def test_collect_without_replacing_leaves_the_states_as_they_were(opened):
    model, _ = opened("llama")
    with model.begin(tiny.windows(5, 6)) as hidden, model.block(0) as block:
        before = hidden[0].clone()
        _, outputs = block.collect(hidden, replace=False)
        assert torch.equal(hidden[0], before)
        assert torch.equal(outputs[1], block.run(hidden, 1))
        _, same = block.collect(hidden)
        assert same is hidden
        assert torch.equal(hidden[0], outputs[0])


def test_bfloat16_routers_that_convert_their_weight_are_seen(opened):
    model, _ = opened("mixtral", dtype="bfloat16")
    with model.begin(tiny.windows(5)) as hidden, model.block(0) as block:
        statistics, _ = block.collect(hidden)
    assert statistics["model.layers.0.block_sparse_moe.gate.weight"].tokens == 5


def test_a_nan_names_block_window_and_linear(opened):
    model, _ = opened("llama")
    with model.begin(tiny.windows(5, 6)) as hidden, model.block(1) as block:
        name = "model.layers.1.mlp.up_proj.weight"
        block.load({name: torch.full((48, 32), float("nan"))})
        match = (
            r"layers.1: window 0: NaN or infinite.*output of 'model.layers.1.mlp.up_proj.weight'"
        )
        with pytest.raises(UnreadableInput, match=match):
            block.collect(hidden)


def test_an_overflow_of_float16_says_which_dtype_helps(opened):
    model, _ = opened("llama", dtype="float16")
    with model.begin(tiny.windows(5)) as hidden, model.block(0) as block:
        block.load({"model.layers.0.mlp.down_proj.weight": torch.full((32, 48), 60000.0)})
        with pytest.raises(UnreadableInput, match="use --dtype bfloat16 or float32"):
            block.advance(hidden)


def test_a_nan_in_the_embedding_names_the_window(opened):
    model, _ = opened("llama")
    with model.begin(tiny.windows(5, 6)) as hidden, model.block(0) as block:
        hidden[1] = torch.full((6, 32), float("nan"))
        with pytest.raises(UnreadableInput, match=r"window 1: .*first in the input of .*q_proj"):
            block.collect(hidden)
