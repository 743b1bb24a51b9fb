"""Hidden states between blocks: windows, streams, spilling to a file, and wrong windows."""

from __future__ import annotations

import gc

import psutil
import pytest
import tiny
import torch

from qconv.checkpoint import open_checkpoint
from qconv.errors import BrokenPlugin, NotEnoughResources, UsageError
from qconv.model import open_model


@pytest.fixture
def llama(tmp_path):
    tiny.save("llama", tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        yield checkpoint


def advanced(model, windows):
    with model.begin(windows) as hidden, model.block(0) as block:
        block.advance(hidden)
        return hidden.in_memory, [hidden[n].clone() for n in range(len(hidden))]


def test_spilled_states_are_those_in_memory(llama, tmp_path):
    windows = tiny.windows(12, 7, 30)
    inside, kept = advanced(open_model(llama, device="cpu"), windows)
    spill = tmp_path / "spill"
    spill.mkdir()
    model = open_model(llama, device="cpu", max_ram=40_000, spill=spill)  # fits one block
    outside, spilled = advanced(model, windows)
    assert (inside, outside) == (True, False)
    assert all(torch.equal(a, b) for a, b in zip(kept, spilled, strict=True))
    assert not list(spill.iterdir())


def test_states_that_fit_stay_in_memory_and_give_their_room_back(llama):
    model = open_model(llama, device="cpu", max_ram=10_000_000)
    windows = tiny.windows(*[60] * 8)
    for _ in range(200):  # 8 windows take 61 kB: together they would not fit
        with model.begin(windows[:8]) as hidden:
            assert hidden.in_memory


def test_a_missing_spill_directory_is_named(llama, tmp_path):
    model = open_model(llama, device="cpu", max_ram=40_000, spill=tmp_path / "nowhere")
    with pytest.raises(NotEnoughResources, match=r"nowhere: \d+ bytes of hidden states"):
        model.begin(tiny.windows(5))


def test_a_fork_is_a_stream_of_its_own(llama):
    model = open_model(llama, device="cpu")
    with model.begin(tiny.windows(5, 6)) as hidden, hidden.fork() as copy:
        before = hidden[1].clone()
        copy[1] = torch.zeros(6, 32)
        assert torch.equal(hidden[1], before)
        assert not copy[1].any()
        assert torch.equal(copy[0], hidden[0])


def test_states_of_another_shape_are_refused(llama):
    model = open_model(llama, device="cpu")
    with model.begin(tiny.windows(5, 6)) as hidden:
        with pytest.raises(UsageError, match=r"window 1: hidden states of shape \(5, 32\)"):
            hidden[1] = torch.zeros(5, 32)
        with (
            hidden.empty_like() as empty,
            pytest.raises(UsageError, match="window 0 has no hidden states yet"),
        ):
            empty[0]


def test_windows_of_equal_length_share_their_arguments(tmp_path):
    tiny.save("mistral", tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        model = open_model(checkpoint, device="cpu")
        with model.begin(tiny.windows(12, 7, 12)) as hidden:
            first, other, third = (hidden.arguments(n, 0)[1] for n in range(3))
    assert first["position_embeddings"][0] is third["position_embeddings"][0]
    assert first["position_embeddings"][0] is not other["position_embeddings"][0]
    assert first["attention_mask"] is third["attention_mask"]


def test_blocks_of_alternating_attention_have_masks_of_their_own(tmp_path):
    tiny.save("gemma3_text", tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        model = open_model(checkpoint, device="cpu")
        with model.begin(tiny.windows(12)) as hidden:
            masks = [hidden.arguments(0, n)[1]["attention_mask"] for n in range(3)]
    assert masks[0] is masks[2]  # both sliding
    assert masks[1] is None or not torch.equal(masks[0], masks[1])


@pytest.mark.parametrize(
    ("windows", "match"),
    [
        ([], "there are no windows to run on"),
        ([torch.zeros(0, dtype=torch.int64)], "window 0: must be token ids"),
        ([torch.zeros(2, 2, dtype=torch.int64)], r"window 0: must be token ids.*\(2, 2\)"),
        ([torch.zeros(3)], r"window 0: must be token ids.*float32"),
        (tiny.windows(64, 65), "window 1: 65 tokens, but the model's context is 64"),
        ([torch.tensor([1, 96])], "token id 96 is not in the model's vocabulary of 96"),
        ([torch.tensor([1, -1])], "token id -1 is not in the model's vocabulary"),
    ],
)
def test_wrong_windows_are_usage_errors(llama, windows, match):
    with pytest.raises(UsageError, match=match):
        open_model(llama, device="cpu").begin(windows)


def test_roberta_counts_positions_from_after_the_padding(tmp_path):
    from transformers import AutoModel, RobertaConfig

    model = AutoModel.from_config(RobertaConfig(**{**tiny.CONFIGS["bert"], "pad_token_id": 1}))
    model.save_pretrained(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        opened = open_model(checkpoint, device="cpu")
        assert opened.context_length == 62
        opened.begin(tiny.windows(62)).close()


def test_an_unknown_device_or_dtype_is_a_usage_error(llama):
    with pytest.raises(UsageError, match="--device tpu: must be auto, cpu, cuda"):
        open_model(llama, device="tpu")
    with pytest.raises(UsageError, match="--dtype int8: must be auto, float32, bfloat16"):
        open_model(llama, device="cpu", dtype="int8")


def test_absent_cuda_is_named(llama, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert open_model(llama, device="auto").device.type == "cpu"
    for device in ("cuda", "cuda:1"):
        with pytest.raises(NotEnoughResources, match=f"--device {device}: 0 CUDA devices"):
            open_model(llama, device=device)


def test_a_block_that_does_not_fit_is_named(llama):
    with pytest.raises(NotEnoughResources, match=r"block 'model.layers.\d' takes \d+ bytes"):
        open_model(llama, device="cpu", max_ram=1000)


def test_a_whole_model_that_does_not_fit_is_refused(llama, monkeypatch):
    model = open_model(llama, device="cpu", max_ram=50_000)
    with pytest.raises(NotEnoughResources, match="but --max-ram is 50000"):
        model.whole()
    monkeypatch.setattr("qconv.model._whole._free", lambda device: 1000)
    with pytest.raises(NotEnoughResources, match="but 1000 are free on cpu"):
        open_model(llama, device="cpu").whole()


def test_missing_transformers_names_the_extra(llama, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(BrokenPlugin, match=r"pip install 'qconv\[calibration\]'"):
        open_model(llama, device="cpu")


def test_a_transformers_too_old_is_named(llama, monkeypatch):
    monkeypatch.setattr("transformers.__version__", "4.45.0")
    with pytest.raises(BrokenPlugin, match=r"transformers 4.45.0 is too old.*at least 4.57"):
        open_model(llama, device="cpu")


def test_resident_memory_stays_near_one_block(tmp_path):
    """Peak: one block, its statistics and the hidden states, for a model of 16 blocks."""
    width, inner, layers = 256, 4096, 16
    tiny.save(
        "llama", tmp_path, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers
    )
    gc.collect()
    with open_checkpoint(tmp_path) as checkpoint:
        model = open_model(checkpoint, device="cpu")
        block = model.blocks[0].nbytes
        total = block * layers
        assert total > 200_000_000
        process = psutil.Process()
        with model.begin(tiny.windows(*[64] * 4)) as hidden:
            with model.block(0) as live:  # what torch allocates once
                live.advance(hidden)
            start, peak = process.memory_info().rss, 0
            for info in model.blocks:
                with model.block(info.index) as live:
                    live.collect(hidden, gram=False)
                    peak = max(peak, process.memory_info().rss - start)
    assert peak < 2 * block  # the allocator may keep what it was given back
