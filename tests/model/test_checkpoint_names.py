"""Checkpoints name their tensors in several ways; each finds its parameter, or is an error."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from qconv.checkpoint import open_checkpoint
from qconv.errors import UnreadableInput, Unsupported
from qconv.model import open_model


def rewrite(folder, change):
    """Change the tensors of a saved model in place."""
    path = folder / "model.safetensors"
    tensors = change(load_file(path))
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, {"format": "pt"})


def opened(folder, **options):
    checkpoint = open_checkpoint(folder)
    return open_model(checkpoint, device="cpu", **options)


def last_state(model, window):
    with model.begin([window]) as hidden:
        for info in model.blocks:
            with model.block(info.index) as block:
                block.advance(hidden)
        return next(model.finish(hidden))


def test_gpt2_without_the_base_prefix_and_with_its_old_mask_buffers(tmp_path):
    tiny.save("gpt2", tmp_path)
    window = tiny.windows(6)[0]
    expected = last_state(opened(tmp_path), window)

    def strip(tensors):
        bare = {name.removeprefix("transformer."): t for name, t in tensors.items()}
        return {**bare, "h.0.attn.bias": torch.ones(1, 1, 64, 64)}

    rewrite(tmp_path, strip)
    model = opened(tmp_path)
    assert torch.equal(last_state(model, window), expected)
    assert "h.2.mlp.c_fc.weight" in model.blocks[2].sources
    assert model.head == "wte.weight"
    assert model.unused == ("h.0.attn.bias",)
    assert "h.0.attn.bias" in model.outside


def test_bert_with_the_base_prefix_and_tensorflow_norm_names(tmp_path):
    tiny.save("bert", tmp_path)
    window = tiny.windows(6)[0]
    expected = last_state(opened(tmp_path), window)

    def old(name):
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        return "bert." + name.replace("LayerNorm.bias", "LayerNorm.beta")

    rewrite(tmp_path, lambda tensors: {old(name): t for name, t in tensors.items()})
    model = opened(tmp_path)
    assert torch.equal(last_state(model, window), expected)
    assert "bert.encoder.layer.1.output.LayerNorm.gamma" in model.blocks[1].sources


def test_a_masked_language_model_runs_as_its_encoder(tmp_path):
    from transformers import AutoModelForMaskedLM, BertConfig

    config = BertConfig(**tiny.CONFIGS["bert"])
    whole = AutoModelForMaskedLM.from_config(config).eval()
    whole.save_pretrained(tmp_path)
    model = opened(tmp_path)
    assert not model.is_decoder
    assert model.head is None
    assert "cls.predictions.transform.dense.weight" in model.unused
    window = tiny.windows(6)[0]
    with torch.no_grad():
        expected = whole.bert(window[None]).last_hidden_state[0]
    torch.testing.assert_close(last_state(model, window), expected)


def test_layers_beyond_the_models_own_stay_outside(tmp_path):
    tiny.save("llama", tmp_path)
    extra = "model.layers.3.eh_proj.weight"  # as multi-token prediction heads are named
    rewrite(tmp_path, lambda tensors: {**tensors, extra: torch.zeros(2, 2)})
    model = opened(tmp_path)
    assert model.unused == (extra,)
    assert len(model.blocks) == 3


def test_a_tensor_of_a_block_without_a_place_is_an_error(tmp_path):
    tiny.save("llama", tmp_path)
    extra = "model.layers.1.self_attn.q_proj.lora_A.weight"
    rewrite(tmp_path, lambda tensors: {**tensors, extra: torch.zeros(2, 2)})
    with pytest.raises(Unsupported, match=r"q_proj.lora_A.weight' has no place in the LlamaDec"):
        opened(tmp_path)


def test_a_parameter_of_a_block_without_a_tensor_is_an_error(tmp_path):
    tiny.save("llama", tmp_path)
    gone = "model.layers.1.mlp.up_proj.weight"
    rewrite(tmp_path, lambda tensors: {n: t for n, t in tensors.items() if n != gone})
    with pytest.raises(UnreadableInput, match=r"layers.1.mlp.up_proj.weight.*\(0 of 1536 values\)"):
        opened(tmp_path)


def test_a_missing_expert_is_an_error(tmp_path):
    tiny.save("mixtral", tmp_path)
    gone = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    rewrite(tmp_path, lambda tensors: {n: t for n, t in tensors.items() if n != gone})
    with pytest.raises(UnreadableInput, match=r"layers.1.*experts.*(differ|filled by no tensor)"):
        opened(tmp_path)


def test_a_missing_head_is_an_error_when_it_is_needed(tmp_path):
    tiny.save("llama", tmp_path)
    rewrite(tmp_path, lambda tensors: {n: t for n, t in tensors.items() if n != "lm_head.weight"})
    model = opened(tmp_path)
    assert model.head is None
    assert last_state(model, tiny.windows(4)[0]).shape == (4, 32)
    with pytest.raises(UnreadableInput, match="parameter 'lm_head.weight' .* is filled by no"):
        model.logits(torch.zeros(4, 32))


def test_an_encoder_has_no_logits(tmp_path):
    tiny.save("bert", tmp_path)
    with pytest.raises(Unsupported, match="BertModel has no head that predicts tokens"):
        opened(tmp_path).logits(torch.zeros(4, 32))


def test_a_missing_embedding_is_an_error_when_it_is_needed(tmp_path):
    tiny.save("llama", tmp_path)
    gone = "model.embed_tokens.weight"
    rewrite(tmp_path, lambda tensors: {n: t for n, t in tensors.items() if n != gone})
    with pytest.raises(UnreadableInput, match=r"embed_tokens.weight' of shape \(96, 32\) is fil"):
        opened(tmp_path).begin(tiny.windows(4))


def test_a_tensor_of_another_shape_is_an_error(tmp_path):
    tiny.save("llama", tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(tmp_path, lambda tensors: {**tensors, name: torch.zeros(32, 48)})
    with pytest.raises(UnreadableInput, match=r"\(32, 48\) does not fill parameter .*\(48, 32\)"):
        opened(tmp_path)


def test_integer_weights_are_an_error(tmp_path):
    tiny.save("llama", tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(tmp_path, lambda tensors: {**tensors, name: torch.zeros(48, 32, dtype=torch.int8)})
    with pytest.raises(Unsupported, match="up_proj.weight' is stored as I8"):
        opened(tmp_path)


def configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_unknown_architecture_is_unsupported(tmp_path):
    tiny.save("llama", tmp_path)
    configure(tmp_path, model_type="nobody_knows")
    with pytest.raises(Unsupported, match="does not know model_type 'nobody_knows'"):
        opened(tmp_path)


def test_a_config_without_model_type_is_unsupported(tmp_path):
    tiny.save("llama", tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Unsupported, match="names no model_type"):
        opened(tmp_path)


def test_a_quantized_source_is_unsupported(tmp_path):
    tiny.save("llama", tmp_path)
    configure(tmp_path, quantization_config={"quant_method": "gptq"})
    with pytest.raises(Unsupported, match="has a quantization_config"):
        opened(tmp_path)


def test_an_encoder_decoder_is_unsupported(tmp_path):
    tiny.save("llama", tmp_path)
    configure(tmp_path, model_type="t5", architectures=["T5ForConditionalGeneration"])
    with pytest.raises(Unsupported, match="has an encoder and a decoder"):
        opened(tmp_path)


def test_more_layers_than_tensors_is_unreadable(tmp_path):
    tiny.save("llama", tmp_path)
    configure(tmp_path, num_hidden_layers=10**9)
    with pytest.raises(UnreadableInput, match="num_hidden_layers 1000000000"):
        opened(tmp_path)


def test_a_config_that_builds_no_model_is_unreadable(tmp_path):
    tiny.save("llama", tmp_path)
    configure(tmp_path, hidden_act="no_such_function")
    with pytest.raises(UnreadableInput, match="transformers cannot build the model"):
        opened(tmp_path)


def test_a_model_that_runs_a_block_twice_is_unsupported(tmp_path):
    from transformers import AlbertConfig, AutoModel

    config = AlbertConfig(**{**tiny.CONFIGS["bert"], "embedding_size": 16})
    AutoModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(Unsupported, match=r"albert_layer_groups.0: called again.*plain chain"):
        opened(tmp_path).begin(tiny.windows(4))
