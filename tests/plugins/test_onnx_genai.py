"""What onnxruntime-genai is told of a decoder, and that it generates from it, where installed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf_driver import read_model
from onnx_driver import run, save_bert, save_llama, session, write

from qconv_onnx._backend import OnnxBackend
from qconv_onnx._genai import genai_config


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama") / "tiny", eos_token_id=2)


@pytest.fixture(scope="module")
def artifact(llama, tmp_path_factory) -> Path:
    folder, _ = write(OnnxBackend(), llama, tmp_path_factory.mktemp("onnx"), "w8")
    return folder


def test_the_config_says_what_the_graph_takes_and_gives(artifact):
    config = json.loads((artifact / "genai_config.json").read_text())
    model, decoder = config["model"], config["model"]["decoder"]
    assert (model["type"], model["vocab_size"], model["context_length"]) == ("decoder", 160, 64)
    assert (model["eos_token_id"], model["pad_token_id"]) == (2, 2)
    assert decoder["inputs"] == {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "position_ids": "position_ids",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    }
    sizes = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_size")
    assert [decoder[name] for name in sizes] == [2, 4, 2, 16]
    assert decoder["hidden_size"] == 64
    taken = {each.name for each in session(artifact).get_inputs()}
    assert decoder["inputs"]["past_value_names"] % 1 in taken


def test_a_config_without_an_end_of_text_gives_none(artifact, llama):
    model, _ = read_model(llama)
    graph = (artifact / "model.onnx").read_bytes()
    assert genai_config(model, graph, "model.onnx")
    endless = replace(model, config={**model.config, "eos_token_id": None}, files={})
    assert genai_config(endless, graph, "model.onnx") is None
    emptied = replace(model, config={**model.config, "eos_token_id": []}, files={})
    assert genai_config(emptied, graph, "model.onnx") is None
    boundless = {k: v for k, v in model.config.items() if k != "max_position_embeddings"}
    assert genai_config(replace(model, config=boundless), graph, "model.onnx") is None


def test_graphs_without_keys_and_values_get_none(llama, tmp_path):
    without, _ = write(OnnxBackend(), llama, tmp_path, "fp32", kv_cache="false")
    assert not (without / "genai_config.json").exists()
    encoder, _ = write(OnnxBackend(), save_bert(tmp_path / "bert"), tmp_path, "fp32")
    assert not (encoder / "genai_config.json").exists()


def test_a_config_of_the_sources_own_is_kept(llama, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in llama.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "genai_config.json").write_text('{"own": true}')
    kept, _ = write(OnnxBackend(), copy, tmp_path, "fp32")
    assert json.loads((kept / "genai_config.json").read_text()) == {"own": True}


def test_onnxruntime_genai_generates_what_the_graph_predicts(artifact):
    genai = pytest.importorskip("onnxruntime_genai", reason="pip install onnxruntime-genai")
    ids = np.random.default_rng(0).integers(3, 160, 7)
    model = genai.Model(str(artifact))
    options = genai.GeneratorParams(model)
    options.set_search_options(max_length=len(ids) + 8, do_sample=False)
    generator = genai.Generator(model, options)
    generator.append_tokens(ids.astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    found = [int(each) for each in generator.get_sequence(0)]
    opened, past, new, expected = session(artifact), None, ids[None], list(ids)
    while len(expected) < len(found):
        outputs = run(opened, new, past)
        expected.append(int(outputs.pop("logits")[0, -1].argmax()))
        past, new = outputs, np.array([expected[-1:]])
    assert len(found) > len(ids)
    assert found == expected
