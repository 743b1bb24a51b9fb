"""Whole validations of a tiny model: model runs, the engine, verdicts, the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import qconv
from qconv.cli._run import run
from qconv.errors import UnreadableInput, UsageError
from validation.damage import converted, edit_gguf, edit_safetensors, model_at, validated

SMALL = {"windows": 2, "window_length": 32, "device": "cpu"}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return model_at(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def out(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    targets = ["gguf:f32", "gguf:q4_0", "gguf:q8_0", "safetensors:fp32", "safetensors:int4"]
    qconv.convert(source, targets, out=out)
    return out


def test_a_float_copy_predicts_what_the_source_does(source, out):
    for name in ("tiny-F32.gguf", "tiny-FP32"):
        result = validated(out / name, source, depth="model", **SMALL)
        assert result.grid_class == "float"
        assert result.logits.kl.max < 1e-6
        assert result.logits.same_top1 == 1
        assert [each.relative_error for each in result.blocks] == pytest.approx([0, 0], abs=1e-6)
        assert result.status == "pass"


def test_blocks_and_predictions_are_those_of_the_decoded_weights(source, out):
    """Beside a model of transformers that holds what the artifact decodes to."""
    transformers = pytest.importorskip("transformers")
    result = validated(out / "tiny-INT4", source, depth="model", **SMALL)
    reader = __import__("qconv_safetensors._reader", fromlist=["x"]).SafetensorsReader(
        out / "tiny-INT4"
    )
    given = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    mine = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    mine.load_state_dict({name: reader.read(name) for name in reader.tensors})
    windows = _windows(source)
    total, error, size = [], 0.0, 0.0
    with torch.no_grad():
        for window in windows:
            theirs = given(window[None], output_hidden_states=True)
            ours = mine(window[None], output_hidden_states=True)
            p, q = theirs.logits[0].log_softmax(-1), ours.logits[0].log_softmax(-1)
            total.append((p.exp() * (p - q)).sum(-1))
            change = ours.hidden_states[1] - theirs.hidden_states[1]
            error += float((change**2).sum())
            size += float((theirs.hidden_states[1] ** 2).sum())
    assert result.logits.kl.mean == pytest.approx(float(torch.cat(total).mean()), rel=1e-3)
    assert result.blocks[0].relative_error == pytest.approx((error / size) ** 0.5, rel=1e-3)


def _windows(source: Path):
    from qconv.calibration import Calibration, evaluation_windows
    from qconv.checkpoint import open_checkpoint

    settings = Calibration(windows=2, window_length=32, chat_template=False)
    with open_checkpoint(source) as checkpoint:
        return evaluation_windows(settings, checkpoint).tokens


def test_swapped_norms_are_found_by_the_bytes_and_seen_by_the_model(source, out, tmp_path):
    import shutil

    path = Path(shutil.copytree(out / "tiny-FP32", tmp_path / "tiny-FP32"))

    def damage(tensors):
        tensors["model.layers.1.input_layernorm.weight"] *= -1

    edit_safetensors(path, damage)
    result = validated(path, source, depth="model", **SMALL)
    first, second = (each.relative_error for each in result.blocks)
    assert first < 1e-6 < second
    assert result.status == "fail"


def test_weights_that_overflow_are_a_fault_that_names_the_block(source, out, tmp_path):
    import shutil

    path = Path(shutil.copy(out / "tiny-Q8_0.gguf", tmp_path))

    def spoil(rows):
        rows[0, :2] = (0x00, 0x7E)

    edit_gguf(path, "blk.1.ffn_up.weight", spoil)
    result = validated(path, source, depth="model", **SMALL)
    assert any("model.layers.1: window 0: NaN" in fault for fault in result.faults)
    assert [each.name for each in result.blocks] == ["model.layers.0"]
    assert result.logits is None
    assert result.status == "fail"


def test_the_engine_is_compared_with_the_decoded_weights(source, out):
    pytest.importorskip("xllamacpp", reason="pip install 'qconv[llama-cpp]'")
    result = validated(out / "tiny-F32.gguf", source, depth="runtime", **SMALL)
    (runtime,) = result.runtimes
    assert runtime.engine == "llama.cpp"
    assert runtime.against_decoded.kl.max < 1e-5
    assert {each.name: each.status for each in result.gates}["engine"] == "pass"


def test_another_rope_base_in_the_metadata_is_seen_by_the_engine(source, out, tmp_path):
    """The tensors are right, and of what runs only the engine reads the metadata."""
    import shutil
    import struct

    pytest.importorskip("xllamacpp", reason="pip install 'qconv[llama-cpp]'")
    path = Path(shutil.copy(out / "tiny-F32.gguf", tmp_path))
    data = path.read_bytes()
    key = b"llama.rope.freq_base" + struct.pack("<If", 6, 10000.0)
    assert key in data
    path.write_bytes(data.replace(key, key[:-4] + struct.pack("<f", 10.0)))
    result = validated(path, source, depth="runtime", **SMALL)
    assert result.logits.kl.max < 1e-6
    assert {each.name: each.status for each in result.gates}["engine"] == "fail"
    assert result.status == "fail"


def test_windows_are_clear_of_what_was_calibrated_on(source, out, tmp_path):
    calibration = tmp_path / "c.safetensors"
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 99, encoding="utf-8")
    qconv.calibrate(
        source,
        calibration,
        qconv.Calibration(source=text, windows=2, window_length=32),
    )
    with pytest.raises(UsageError, match="1 documents that overlap were dropped"):
        validated(
            out / "tiny-Q4_0.gguf",
            source,
            depth="model",
            text=str(text),
            calibrated_on=calibration,
            **SMALL,
        )


def test_an_artifact_that_is_not_there_is_an_error(source, tmp_path):
    with pytest.raises(UnreadableInput, match="no such file or folder; give an artifact"):
        qconv.validate(tmp_path / "nothing", source)


def test_the_result_says_how_to_repeat_it(source, out):
    found = qconv.validate(
        out / "tiny-Q4_0.gguf", source, depth="bytes", command="qconv validate x"
    )
    assert (found.source, found.command) == ("tiny", "qconv validate x")
    assert found.settings["depth"] == "bytes"
    assert found.environment["torch"]
    assert len(found.source_digest) == 64


def test_progress_comes_to_its_end(source, out):
    seen: list[tuple[str, int, int]] = []
    qconv.validate(
        out / "tiny-Q4_0.gguf",
        source,
        progress=lambda stage, done, total: seen.append((stage, done, total)),
        **SMALL,
    )
    assert seen[-1] == ("predictions", 4, 4)
    assert all(done <= total for _, done, total in seen)


# --- the command line -----------------------------------------------------------------------------


def command(*words: object, source: Path) -> int:
    return run(["validate", *map(str, words), "--against", str(source)])


def test_the_command_prints_gates_and_passes(source, out, capsys):
    few = ("--windows", 2, "--window-length", 32)
    assert command(out / "tiny-F32.gguf", *few, source=source) == 0
    printed = capsys.readouterr().out
    assert "tiny-F32.gguf against tiny: PASS" in printed
    assert "KL divergence  mean" in printed
    assert "blk.0." in printed


def test_a_gate_that_fails_is_exit_code_6(source, out, capsys):
    few = ("--windows", 2, "--window-length", 32, "--gate", "kl=0.000001")
    assert command(out / "tiny-Q4_0.gguf", *few, source=source) == 6
    assert "validation: fail" in capsys.readouterr().err


def test_a_gate_that_cannot_be_measured_is_exit_code_6(source, out, capsys):
    words = (out / "tiny-Q4_0.gguf", "--depth", "bytes")
    assert command(*words, source=source) == 0
    assert command(*words, "--gate", "kl=0.5", source=source) == 6
    assert "validation: unmeasured" in capsys.readouterr().err


def test_json_is_the_result(source, out, capsys):
    words = (out / "tiny-Q4_0.gguf", "--depth", "bytes", "--json")
    assert command(*words, source=source) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "unmeasured"
    assert found["artifacts"][0]["target"] == "gguf:q4_0"
    assert found["command"].startswith("qconv validate tiny-Q4_0.gguf --against tiny --depth bytes")


def test_the_command_that_repeats_it_has_every_option(source, out, tmp_path, capsys):
    text = tmp_path / "held out.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 99, encoding="utf-8")
    words = ("--depth", "bytes", "--windows", "2", "--target", "gguf:q4_0")
    more = ("--device", "cpu", "--dtype", "float32", "--max-ram", "8GiB", "--gate", "kl=0.5")
    ran = (out / "tiny-Q4_0.gguf", *words, "--text", text, *more, "--json")
    assert command(*ran, source=source) == 6
    assert json.loads(capsys.readouterr().out)["command"] == (
        "qconv validate tiny-Q4_0.gguf --against tiny --target gguf:q4_0 --depth bytes "
        "--windows 2 --window-length 512 --text 'held out.txt' --gate kl=0.5 --device cpu "
        "--dtype float32 --max-ram 8GiB"
    )


def test_an_engine_that_was_not_run_says_which_depth_runs_it(source, out):
    result = validated(out / "tiny-Q4_0.gguf", source, gates={"engine": 0.1})
    (gate,) = (each for each in result.gates if each.name == "engine")
    assert gate.why == "depth bytes runs no engine; --depth runtime does"


def test_memory_that_cannot_be_predicted_says_why(source, out, monkeypatch):
    from qconv.errors import Unsupported
    from qconv.validation import _vram

    def unknown(path, *, context):
        raise Unsupported("layers of a kind whose memory is not known")

    monkeypatch.setattr(_vram, "predict_artifact", unknown)
    result = validated(out / "tiny-Q4_0.gguf", source, gates={"vram": 1e9})
    (gate,) = (each for each in result.gates if each.name == "vram")
    assert (gate.status, gate.why) == (
        "unmeasured",
        "memory on the device cannot be predicted: layers of a kind whose memory is not known",
    )


def test_a_prompt_that_an_artifact_cannot_answer_is_exit_code_6(source, out, monkeypatch, capsys):
    from types import SimpleNamespace

    import qconv.comparison
    import qconv.reports

    silent = SimpleNamespace(name="tiny-F32.gguf", reason="no engine: pip install it")
    made = SimpleNamespace(unmeasured=(silent,))
    monkeypatch.setattr(qconv.comparison, "compare", lambda paths, **_: made)
    monkeypatch.setattr(qconv.reports, "with_texts", lambda validation, comparison: validation)
    words = (out / "tiny-F32.gguf", "--depth", "bytes")
    assert command(*words, source=source) == 0
    assert command(*words, "--prompt", "The capital", source=source) == 6
    assert "tiny-F32.gguf wrote nothing: no engine: pip install it" in capsys.readouterr().err


def test_what_is_not_nothing_where_the_source_is_nothing_is_infinitely_off():
    from qconv.validation._model import _relative

    assert _relative(4.0, 16.0) == 0.5
    assert _relative(0.0, 0.0) == 0.0
    assert _relative(1e-9, 0.0) == float("inf")


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("kl", "--gate 'kl' is not NAME=LIMIT; write e.g. kl=0.05"),
        ("kl=x", "--gate kl 'x' is not a number; write e.g. kl=0.05"),
        ("vram=8 apples", "--gate vram '8 apples' is not a size"),
        ("top1=120%", "--gate top1 '120%' is not a share"),
        ("nothing=1", "there is no gate 'nothing'; choose from"),
    ],
)
def test_a_gate_that_means_nothing_is_refused(gate, message, source, out, capsys):
    assert command(out / "tiny-Q4_0.gguf", "--gate", gate, source=source) == 2
    assert message in capsys.readouterr().err


def test_a_gate_given_twice_is_refused(source, out, capsys):
    gates = ("--gate", "kl=1", "--gate", "kl=2")
    assert command(out / "tiny-Q4_0.gguf", *gates, source=source) == 2
    assert "--gate kl is given twice" in capsys.readouterr().err


def test_a_conversion_tells_what_it_looked_at(source, tmp_path, capsys):
    words = ["convert", str(source), "--to", "gguf:q4_0", "-o", str(tmp_path)]
    assert run(words) == 0
    assert "gguf:q4_0: read back, 21 tensors accounted for, rows of 21 (6" in (
        capsys.readouterr().out
    )
    assert run([*words, "--force", "--no-validate"]) == 0
    assert "read back" not in capsys.readouterr().out


def test_a_model_without_a_head_is_judged_by_its_weights_and_its_last_block(tmp_path):
    from model.tiny import save

    source = tmp_path / "bert"
    save("bert", source, hidden_size=64, intermediate_size=128)
    for name, data in _wordpiece().items():
        (source / name).write_bytes(data)
    result = validated(
        converted(source, "safetensors:int8", tmp_path / "out"), source, depth="model", **SMALL
    )
    assert [(each.name, each.status) for each in result.gates] == [
        ("weights", "pass"),
        ("block", "pass"),
    ]
    assert 0 < result.blocks[-1].relative_error < result.gates[1].limit
    assert len(result.blocks) == 3
    assert result.logits is None
    assert result.status == "pass"


def _wordpiece() -> dict[str, bytes]:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = ["[PAD]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz.,"]
    words += [f"##{each}" for each in "abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }


def test_memory_is_predicted_and_can_be_gated(source, out, capsys):
    words = (out / "tiny-Q4_0.gguf", "--depth", "bytes", "--context", 512)
    assert command(*words, "--gate", "vram=8GiB", source=source) == 0
    assert "memory on the device, predicted: " in capsys.readouterr().out
    result = validated(out / "tiny-Q4_0.gguf", source, gates={"vram": 8 * 2**30}, context=512)
    assert result.vram.context == 512
    assert {each.name: each.status for each in result.gates}["vram"] == "pass"
    result = validated(out / "tiny-Q4_0.gguf", source, gates={"vram": 1000})
    assert {each.name: each.status for each in result.gates}["vram"] == "fail"
