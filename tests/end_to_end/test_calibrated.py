"""The whole command with calibration, on a tiny model with a tokenizer of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import qconv
from calibration.tokenized import save_model, write_texts
from qconv.errors import UsageError

SIZES = {"hidden_size": 64, "intermediate_size": 128, "tie_word_embeddings": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny", **SIZES)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("text") / "text.jsonl", 12)


@pytest.fixture
def settings(text: Path) -> qconv.Calibration:
    return qconv.Calibration(source=text, windows=8, window_length=48)


def converted(model: Path, out: Path, method: str, **options) -> bytes:
    made = qconv.convert(
        model, "gguf:q4_0,pre=gpt-2", out=out, method=method, **{"device": "cpu", **options}
    )
    return made.artifacts[0].files[0].read_bytes()


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "smoothquant", "awq,gptq"])
def test_a_chain_gives_the_same_bytes_again_and_others_than_plain_rounding(
    model, settings, tmp_path, method
):
    plain = converted(model, tmp_path / "plain", "rtn")
    first, second = (
        converted(model, tmp_path / place, method, calibration=settings, threads=threads)
        for place, threads in (("first", 1), ("second", 2))
    )
    assert first == second
    assert first != plain
    assert len(first) == len(plain)


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
def test_saved_statistics_give_the_bytes_of_a_pass_of_its_own(model, settings, tmp_path, method):
    from qconv.calibration import calibrate

    saved = tmp_path / "saved.safetensors"
    calibrate(model, saved, settings, device="cpu")
    own = converted(model, tmp_path / "own", method, calibration=settings)
    reused = converted(model, tmp_path / "reused", method, calibration=saved)
    assert own == reused


def test_saved_statistics_need_no_transformers_where_no_scales_are_folded(
    model, settings, tmp_path, monkeypatch
):
    import qconv.model
    from qconv.calibration import calibrate

    saved = tmp_path / "saved.safetensors"
    calibrate(model, saved, settings, device="cpu")

    def refuse(*_args, **_options):
        raise AssertionError("the model must not be opened")

    monkeypatch.setattr(qconv.model, "open_model", refuse)
    assert converted(model, tmp_path / "out", "gptq", calibration=saved)


def test_saved_diagonals_do_for_rounding_and_are_refused_where_the_matrix_is_needed(
    model, settings, tmp_path
):
    from qconv.calibration import calibrate

    saved = tmp_path / "saved.safetensors"
    calibrate(model, saved, settings, statistics="diagonal", device="cpu")
    own = converted(model, tmp_path / "own", "rtn", calibration=settings)
    assert converted(model, tmp_path / "out", "rtn", calibration=saved) == own
    with pytest.raises(UsageError, match="diagonals of Gram matrices only, and gptq needs them"):
        converted(model, tmp_path / "gptq", "gptq", calibration=saved)


def test_the_result_says_what_was_calibrated_on(model, settings, tmp_path):
    made = qconv.convert(
        model,
        "gguf:q8_0,pre=gpt-2",
        out=tmp_path,
        method="gptq",
        calibration=settings,
        device="cpu",
    )
    said = json.loads(json.dumps(made.to_json()))
    assert said["calibration"]["windows"] == 8
    assert said["calibration"]["tokens"] == 8 * 48 == said["calibration"]["least_tokens"]
    assert said["calibration"]["device"] == "cpu"
    assert any(
        "Gram matrices rest on fewer than 4 tokens" in warning for warning in said["warnings"]
    )


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("rtn", {"statistics": "sequential"}, "no use of statistics here; give --calibration too"),
        ("gtpq", {}, "unknown method 'gtpq'; did you mean gptq"),
        ("gptq,rtn", {}, "2 rounders, 'gptq' and 'rtn'"),
        ("gptq,dampp=1", {}, "gptq has no option 'dampp'"),
        ("gptq,damp=much", {}, "damp"),
        ("awq", {}, "windows of 512 tokens, but the context of tiny is 64"),
        ("awq", {"calibration": qconv.Calibration(source="no.txt", window_length=9)}, "no.txt"),
        ("awq", {"device": "tpu"}, "tpu"),
    ],
)
def test_what_does_not_go_together_is_one_clear_error(model, tmp_path, method, options, message):
    with pytest.raises(qconv.errors.QconvError, match=message):
        converted(model, tmp_path, method, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_gguf_source_cannot_be_run(model, settings, tmp_path):
    converted(model, tmp_path, "rtn")
    (file,) = tmp_path.glob("*.gguf")
    with pytest.raises(qconv.errors.Unsupported, match="names no model_type"):
        converted(file, tmp_path / "again", "gptq", calibration=settings)
