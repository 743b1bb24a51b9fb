"""Block by block, a model gives what transformers gives when it runs it whole."""

from __future__ import annotations

import pytest
import tiny
import torch

from qconv.checkpoint import open_checkpoint
from qconv.model import BlockModel, Hidden, open_model


def run_through(model: BlockModel, hidden: Hidden) -> Hidden:
    for info in model.blocks:
        with model.block(info.index) as block:
            block.advance(hidden)
    return hidden


@pytest.mark.parametrize("kind", tiny.DECODERS)
def test_decoder_logits_equal_those_of_transformers(kind, tmp_path):
    whole = tiny.save(kind, tmp_path)
    windows = tiny.windows(12, 7, 12)
    with open_checkpoint(tmp_path) as checkpoint:
        model = open_model(checkpoint, device="cpu")
        with model.begin(windows) as hidden, model.tail() as tail:
            run_through(model, hidden)
            for number, window in enumerate(windows):
                with torch.no_grad():
                    expected = whole(window[None]).logits[0]
                torch.testing.assert_close(tail.logits(hidden[number]), expected)


def test_encoder_states_equal_those_of_transformers(tmp_path):
    whole = tiny.save("bert", tmp_path)
    windows = tiny.windows(12, 7)
    with open_checkpoint(tmp_path) as checkpoint:
        model = open_model(checkpoint, device="cpu")
        with model.begin(windows) as hidden:
            run_through(model, hidden)
            for window, state in zip(windows, model.finish(hidden), strict=True):
                with torch.no_grad():
                    expected = whole(window[None]).last_hidden_state[0]
                torch.testing.assert_close(state, expected)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "opt"])
def test_finish_gives_what_the_head_multiplies(kind, tmp_path):
    whole = tiny.save(kind, tmp_path)
    window = tiny.windows(9)[0]
    seen = []
    whole.get_output_embeddings().register_forward_hook(lambda _, args, __: seen.append(args[0][0]))
    with open_checkpoint(tmp_path) as checkpoint, torch.no_grad():
        model = open_model(checkpoint, device="cpu")
        whole(window[None])
        with model.begin([window]) as hidden, model.tail() as tail:
            run_through(model, hidden)
            torch.testing.assert_close(next(model.finish(hidden)), seen[0])
            statistics = tail.statistics(hidden)
    torch.testing.assert_close(statistics.gram, seen[0].T @ seen[0] / 9)


def test_logits_of_one_window_need_no_context(tmp_path):
    whole = tiny.save("llama", tmp_path)
    window = tiny.windows(5)[0]
    with open_checkpoint(tmp_path) as checkpoint, torch.no_grad():
        model = open_model(checkpoint, device="cpu")
        with model.begin([window]) as hidden:
            run_through(model, hidden)
            torch.testing.assert_close(model.logits(hidden[0]), whole(window[None]).logits[0])


def test_a_model_of_one_block_runs(tmp_path):
    whole = tiny.save("llama", tmp_path, num_hidden_layers=1)
    window = tiny.windows(5)[0]
    with open_checkpoint(tmp_path) as checkpoint, torch.no_grad():
        model = open_model(checkpoint, device="cpu")
        with model.begin([window]) as hidden:
            run_through(model, hidden)
            torch.testing.assert_close(model.logits(hidden[0]), whole(window[None]).logits[0])


def test_the_facts_of_a_model(tmp_path):
    tiny.save("qwen2", tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        model = open_model(checkpoint, device="cpu")
    assert model.is_decoder
    assert (model.vocab_size, model.context_length) == (tiny.VOCAB, 64)
    assert [block.name for block in model.blocks] == [f"model.layers.{n}" for n in range(3)]
    assert "model.layers.1.self_attn.q_proj.bias" in model.blocks[1].sources
    assert model.outside == ("model.embed_tokens.weight", "model.norm.weight")
    assert model.head == "model.embed_tokens.weight"  # tied


def test_every_source_tensor_is_in_a_block_or_outside(tmp_path):
    for kind in tiny.CONFIGS:
        tiny.save(kind, tmp_path / kind)
        with open_checkpoint(tmp_path / kind) as checkpoint:
            model = open_model(checkpoint, device="cpu")
            inside = [name for block in model.blocks for name in block.sources]
            assert sorted([*inside, *model.outside]) == sorted(checkpoint.model.tensors)


def test_the_whole_model_is_that_of_transformers(tmp_path):
    for kind in ("qwen2", "mixtral", "gpt2"):
        whole = tiny.save(kind, tmp_path / kind)
        with open_checkpoint(tmp_path / kind) as checkpoint, torch.no_grad():
            mine = open_model(checkpoint, device="cpu").whole()
        for name, value in whole.state_dict().items():
            assert torch.equal(mine.state_dict()[name], value)
        window = tiny.windows(9)[0][None]
        torch.testing.assert_close(mine(window).logits, whole(window).logits)
        tied = whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
        assert (mine.get_output_embeddings().weight is mine.get_input_embeddings().weight) == tied


def test_bfloat16_arithmetic_is_that_of_transformers_in_bfloat16(tmp_path):
    from transformers import AutoModelForCausalLM

    tiny.save("llama", tmp_path)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    window = tiny.windows(9)[0]
    with open_checkpoint(tmp_path) as checkpoint, torch.no_grad():
        model = open_model(checkpoint, device="cpu", dtype="bfloat16")
        with model.begin([window]) as hidden:
            with model.block(0) as block:
                assert next(block.module.parameters()).dtype == torch.bfloat16
                assert {t.dtype for t in block.tensors.values()} == {torch.float32}
            run_through(model, hidden)
            assert hidden[0].dtype == torch.bfloat16
            expected = whole(window[None]).logits[0].float()
            torch.testing.assert_close(model.logits(hidden[0]), expected)


def test_one_and_two_threads_give_the_same_states(tmp_path):
    tiny.save("llama", tmp_path)
    before = torch.get_num_threads()
    states = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with open_checkpoint(tmp_path) as checkpoint:
                model = open_model(checkpoint, device="cpu")
                with model.begin(tiny.windows(48)) as hidden:
                    states.append(run_through(model, hidden)[0].clone())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(states[0], states[1])


def test_opening_draws_no_random_numbers(tmp_path):
    tiny.save("llama", tmp_path)
    state = torch.random.get_rng_state()
    with open_checkpoint(tmp_path) as checkpoint:
        open_model(checkpoint, device="cpu")
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_a_head_takes_what_is_made_of_its_input(kind, tmp_path):
    whole = tiny.save(kind, tmp_path)
    window = tiny.windows(9)[0]
    with open_checkpoint(tmp_path) as checkpoint, torch.no_grad():
        model = open_model(checkpoint, device="cpu")
        with model.begin([window]) as hidden:
            run_through(model, hidden)
            whole.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0] * 3,))
            expected = whole(window[None]).logits[0]
            with model.tail(before_head=lambda _, args: (args[0] * 3,)) as tail:
                torch.testing.assert_close(tail.logits(hidden[0]), expected)
            with model.tail() as tail:  # and it is for that context only
                assert not torch.allclose(tail.logits(hidden[0]), expected)
