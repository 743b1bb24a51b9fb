"""Facts about text that the model itself writes."""

from __future__ import annotations

import pytest
import torch

from calibration.tokenized import VOCABULARY, save_model
from qconv.calibration import Calibration, build_windows
from qconv.calibration._self_text import draw, sample_windows
from qconv.checkpoint import open_checkpoint
from qconv.errors import NotEnoughResources, Unsupported, UsageError
from qconv.model import open_model


def settings(**changes):
    return Calibration(**{"source": "self", "windows": 5, "window_length": 24, **changes})


def test_equal_seeds_give_equal_text_and_another_seed_another(checkpoint):
    one, same, other = (build_windows(settings(seed=seed), checkpoint) for seed in (3, 3, 4))
    assert one.digest == same.digest != other.digest
    assert {len(window) for window in one.tokens} == {24}
    assert all(int(window[0]) == 1 for window in one.tokens)
    assert len({tuple(window.tolist()) for window in one.tokens}) == 5
    assert one.report.sources[0].counts is None


def test_sampling_leaves_random_generators_alone(checkpoint):
    before = torch.get_rng_state()
    build_windows(settings(), checkpoint)
    assert torch.equal(torch.get_rng_state(), before)


def test_text_may_be_mixed_with_the_models_own(checkpoint):
    mixed = settings(source=("self=0.4", "builtin"), windows=10)
    report = build_windows(mixed, checkpoint).report
    assert [source.windows for source in report.sources] == [4, 6]


def test_what_is_sampled_is_what_the_model_finds_likely(checkpoint):
    """With keys and values kept, every token is drawn from what a whole run would give."""
    module = open_model(checkpoint, device="cpu").whole()
    (window,) = sample_windows(module, 1, 24, begin=1, first_tokens=range(3, VOCABULARY), seed=0)
    with torch.no_grad():
        logits = module(input_ids=window[None]).logits[0]
    likely, order = logits.double().softmax(-1).sort(descending=True)
    nucleus = likely.cumsum(-1) - likely < 0.95 + 1e-6
    for position in range(2, 24):
        allowed = order[position - 1][nucleus[position - 1]]
        assert int(window[position]) in allowed


def test_drawing_keeps_to_the_nucleus_and_its_shares():
    logits = torch.tensor([0.6, 0.36, 0.03, 0.01]).log().expand(20_000, 4)
    drawn = draw(logits, torch.Generator().manual_seed(0)).bincount(minlength=4)
    assert drawn[2:].sum() == 0
    assert abs(int(drawn[0]) / 20_000 - 0.6 / 0.96) < 0.02


def test_windows_without_number_have_no_end(checkpoint):
    with pytest.raises(UsageError, match="'self' has no end; give a number of windows"):
        build_windows(settings(windows=None), checkpoint)


def test_a_model_that_does_not_fit_is_refused_with_the_next_step(checkpoint):
    model = open_model(checkpoint, device="cpu", max_ram=100_000)
    with pytest.raises(NotEnoughResources, match="the whole model takes .* calibrate on a text"):
        build_windows(settings(), checkpoint, model=model)


def test_encoders_write_no_text(tmp_path):
    folder = save_model(tmp_path / "bert", "bert")
    with (
        open_checkpoint(folder) as checkpoint,
        pytest.raises(Unsupported, match="'self' needs a model that predicts the next token"),
    ):
        build_windows(settings(), checkpoint)
