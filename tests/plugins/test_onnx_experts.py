"""Mixtures of experts in onnxruntime: each expert is a weight that methods and grids see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_driver import run, save_mixture, session, write
from safetensors.torch import load_file, save_file

import qconv
import qconv_onnx
from calibration.tokenized import VOCABULARY, tokenizer, write_texts
from qconv.errors import Unsupported
from qconv_onnx._backend import OnnxBackend
from qconv_onnx._reader import OnnxReader

KINDS = ("Mixtral", "Qwen3Moe")


@pytest.fixture(scope="module")
def backend():
    """One for all tests of this file: it keeps the graphs it exported."""
    return OnnxBackend()


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    save_mixture(folder, request.param, vocab_size=VOCABULARY)
    tokenizer().save_pretrained(folder)
    return folder


def _decoded(source: Path, artifact: Path, folder: Path):
    """The model of ``source`` with the weights that the artifact holds."""
    from transformers import AutoModelForCausalLM

    folder.mkdir()
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    reader = OnnxReader(artifact)
    tensors = {name: reader.read(name).contiguous() for name in reader.tensors}
    assert tensors.keys() == load_file(source / "model.safetensors").keys()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("fp32", 1e-5),
        ("int4,accuracy_level=1", 1e-5),
        ("w8,accuracy_level=1", 1e-5),
        ("int4_qdq", 1e-5),
        ("w8a8", 0.05),
    ],
)
def test_experts_compute_what_their_decoded_weights_do(model, backend, tmp_path, target, error):
    name, _, option = target.partition(",")
    options = dict([option.split("=")]) if option else {}
    artifact, _ = write(backend, model, tmp_path, name, **options)
    reference = _decoded(model, artifact, tmp_path / "decoded")
    opened = session(artifact, fuse=False)
    ids = np.random.default_rng(0).integers(0, 160, (2, 9))
    mask = np.array([[1] * 9, [0] * 4 + [1] * 5])
    with torch.no_grad():
        for given, seen in ((ids, mask), (ids[:1, :1], np.ones((1, 1), dtype=np.int64))):
            wanted = reference(
                torch.tensor(given),
                attention_mask=torch.tensor(seen),
                position_ids=torch.tensor(np.clip(seen.cumsum(1) - 1, 0, None)),
            ).logits.numpy()
            found = run(opened, given, mask=seen)["logits"]
            off = (found - wanted)[seen == 1]
            assert np.linalg.norm(off) <= error * np.linalg.norm(wanted[seen == 1])


def test_a_token_goes_on_from_a_cache(model, backend, tmp_path):
    artifact, _ = write(backend, model, tmp_path, "int4", accuracy_level="1")
    opened = session(artifact)
    ids = np.random.default_rng(1).integers(0, 160, (1, 6))
    whole = run(opened, ids)
    past = run(opened, ids[:, :5])
    del past["logits"]
    last = run(opened, ids[:, 5:], past)["logits"]
    assert np.allclose(last[:, 0], whole["logits"][:, 5], atol=1e-4)


def test_every_expert_is_on_the_grid_and_routers_stay_float(model, backend, tmp_path):
    _, values = write(backend, model, tmp_path, "int4")
    experts = [name for name in values if ".experts." in name]
    assert len(experts) == 3 * 3
    assert {values[name].grid.spec()["bits"] for name in experts} == {4}
    (router,) = (name for name in values if name.endswith(".gate.weight"))
    assert isinstance(values[router], torch.Tensor)


def test_methods_see_the_inputs_of_each_expert(model, backend, tmp_path, monkeypatch):
    monkeypatch.setattr(qconv_onnx, "_load", lambda: lambda: backend)
    text = write_texts(tmp_path / "text.jsonl", 12)
    settings = qconv.Calibration(source=text, windows=4, window_length=32)
    found = {}
    for method, options in (("rtn", {}), ("gptq", {"calibration": settings})):
        made = qconv.convert(
            model, to="onnx:int4", method=method, out=tmp_path / method, threads=1, **options
        )
        found[method] = OnnxReader(made.artifacts[0].files[0].parent)
    names = [name for name in found["rtn"].tensors if ".experts." in name]
    assert len(names) == 3 * 3
    for name in names:
        assert not torch.equal(found["rtn"].read(name), found["gptq"].read(name)), name


def test_experts_that_the_checkpoint_has_joined_are_refused_with_the_way_out(backend, tmp_path):
    source = save_mixture(tmp_path, "GptOss")
    message = "GptOssExperts at 'model.layers.0.mlp.experts': .*; use gguf or safetensors"
    with pytest.raises(Unsupported, match=message):
        write(backend, source, tmp_path / "out", "int4")
