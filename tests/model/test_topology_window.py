"""Probing a block that was read from a checkpoint, on what the model calls it with."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from test_topology import FOLDS, found, sorted_folds

from qconv.checkpoint import open_checkpoint
from qconv.model import LiveBlock, open_model, probe_block
from qconv.model._probe_window import _first_tokens


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "mixtral", "bert"])
@pytest.mark.parametrize("tokens", [8, 48])
def test_any_window_gives_the_folds(kind, tokens, tmp_path):
    tiny.save(kind, tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        model = open_model(checkpoint, device="cpu")
        with model.begin(tiny.windows(4, tokens)) as hidden, model.block(1) as live:
            assert sorted_folds(found(live.topology(hidden))) == sorted_folds(FOLDS[kind])


def test_a_window_as_long_as_something_else_is_wide(tmp_path):
    """64 tokens and rotary embeddings 64 wide: only the tokens are cut."""
    tiny.save("llama", tmp_path, head_dim=64)
    with open_checkpoint(tmp_path) as checkpoint:
        model = open_model(checkpoint, device="cpu")
        with model.begin(tiny.windows(64)) as hidden, model.block(0) as live:
            assert len(live.topology(hidden).folds) == 4


def test_arguments_are_cut_to_the_first_tokens():
    arguments = (
        (torch.zeros(1, 1, 64, 64, dtype=torch.bool), None),
        {"rotary": (torch.zeros(1, 64, 64),), "positions": torch.zeros(1, 64).long(), "flag": 64},
    )
    args, kwargs = _first_tokens(arguments, 64)
    assert args[0].shape == (1, 1, 32, 32)
    assert kwargs["rotary"][0].shape == (1, 32, 64)
    assert kwargs["positions"].shape == (1, 32)
    assert kwargs["flag"] == 64


class Counted:
    """Counts full probes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.probes = 0

        def probe(*args, **kwargs):
            self.probes += 1
            return probe_block(*args, **kwargs)

        monkeypatch.setattr("qconv.model._probe_window.probe_block", probe)


def test_what_is_known_is_verified_and_taken_over(tmp_path, monkeypatch):
    tiny.save("qwen3_moe", tmp_path)  # experts, dense, experts
    count = Counted(monkeypatch)
    known = []
    with open_checkpoint(tmp_path) as checkpoint:
        model = open_model(checkpoint, device="cpu")
        with model.begin(tiny.windows(16)) as hidden:
            for index in range(3):
                with model.block(index) as live:
                    known.append(live.topology(hidden, known))
    assert count.probes == 2
    assert known[2] is known[0]
    assert len(known[1].folds) == 4


def test_what_is_known_but_wrong_here_is_not_taken_over(tmp_path, monkeypatch):
    """A topology of ReLU, offered to a block that differs from it in nothing but its GELU."""
    count = Counted(monkeypatch)
    topologies = []
    for activation in ("relu", "gelu"):
        folder = Path(tmp_path / activation)
        tiny.save("opt", folder, activation_function=activation)
        with open_checkpoint(folder) as checkpoint:
            model = open_model(checkpoint, device="cpu")
            with model.begin(tiny.windows(16)) as hidden, model.block(0) as live:
                topologies.append(live.topology(hidden, topologies))
    assert count.probes == 2
    assert [len(each.folds) for each in topologies] == [4, 3]


def test_folds_reach_the_checkpoints_own_tensors(tmp_path):
    """Fused experts are separate tensors in the checkpoint; a fold changes those."""
    from qconv.model import apply_folds

    tiny.save("mixtral", tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        model = open_model(checkpoint, device="cpu")
        with model.begin(tiny.windows(16)) as hidden, model.block(0) as live:
            before = live.run(hidden, 0)
            changed_sources = _fold_all(live, hidden, apply_folds)
            live.load(changed_sources)
            after = live.run(hidden, 0)
    assert len(changed_sources) == 2 + 4 + 1 + 3 * 4  # norms, attention, router, experts
    assert float((after - before).abs().max()) < 1e-5 * float(before.abs().max())


def _fold_all(live: LiveBlock, hidden, apply_folds) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    folds = live.topology(hidden).folds
    pairs = [(fold, torch.rand(fold.channels, generator=generator) + 0.5) for fold in folds]
    changed = apply_folds(live.parameters(), pairs)
    return live.sources({**live.parameters(), **changed}, changed)
