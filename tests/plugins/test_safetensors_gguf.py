"""A GGUF file becomes a Hugging Face checkpoint that computes what llama.cpp computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from gguf_models import (
    TEMPLATE,
    byte_level_files,
    llama_config,
    llama_weights,
    save_model,
)
from gguf_view import (
    SMALL,
    described,
    hugging_face,
    qwen_config,
    qwen_weights,
    with_keys,
    write_qwen,
)
from safetensors.torch import load_file

from qconv.errors import UnreadableInput, Unsupported
from qconv_gguf._llama_cpp import LlamaCpp
from qconv_safetensors._gguf import as_hugging_face
from qconv_safetensors._gguf_keys import shortest

if TYPE_CHECKING:
    from qconv.plugin import ModelInfo

Write = Callable[..., Path]

IDS = [3 + 7 * n % 500 for n in range(64)]


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

MODELS: dict[str, dict[str, Any]] = {
    "grouped heads, untied": {},
    "tied": {"tie_word_embeddings": True},
    "one key-value head per head": {"num_key_value_heads": 4},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 96},
    "linear rope": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "yarn": {"rope_scaling": YARN},
    "yarn with its own attention factor": {"rope_scaling": {**YARN, "attention_factor": 1.5}},
    "another base": {"rope_theta": 777.0, "rms_norm_eps": 1e-6},
}


def logits(folder: Path) -> torch.Tensor:
    transformers = pytest.importorskip("transformers", reason="transformers is the judge")
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0]


@pytest.mark.parametrize("name", MODELS)
def test_llama_comes_back_as_it_was(name: str, tmp_path: Path, write_gguf: Write) -> None:
    config = llama_config(**MODELS[name])
    folder = save_model(tmp_path / "tiny", config, byte_level_files())
    back = hugging_face(write_gguf(folder, "f32"), tmp_path / "back")
    found, expected = load_file(back / "model.safetensors"), llama_weights(config)
    assert found.keys() == expected.keys()
    for tensor, value in expected.items():
        assert torch.equal(found[tensor], value), tensor
    # attention_factor goes through a float32
    torch.testing.assert_close(logits(back), logits(folder), rtol=0, atol=2e-6)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_qwen_computes_what_llama_cpp_computes(
    architecture: str, tied: bool, tmp_path: Path
) -> None:
    pytest.importorskip("transformers", reason="transformers is the judge")
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install 'qconv[llama-cpp]'")
    config = qwen_config(architecture, tie_word_embeddings=tied)
    weights = qwen_weights(config)
    path = write_qwen(tmp_path / "tiny.gguf", config, weights)
    back = hugging_face(path, tmp_path / "back")
    found = load_file(back / "model.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    with LlamaCpp(path) as llama:
        expected = llama.logits(IDS)
    # llama.cpp keeps keys and values as float16
    assert float((logits(back) - expected).abs().max()) < 4e-3 * float(expected.abs().max())


def test_the_config_says_what_the_metadata_says(tmp_path: Path, write_gguf: Write) -> None:
    folder = save_model(tmp_path / "tiny", SMALL, byte_level_files(template=True))
    config = dict(as_hugging_face(described(write_gguf(folder, "f32"))).config)
    assert config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }


@pytest.mark.parametrize(
    "value", [1e-5, 1e-6, 9.999999747378752e-06, 10000.0, 1.0, 0.1, 1 / 3, 3e38, 1e-45]
)
def test_decimals_are_the_shortest_of_their_float32(value: float) -> None:
    found = shortest(value)
    assert torch.tensor(found, dtype=torch.float32) == torch.tensor(value, dtype=torch.float32)
    assert len(repr(found)) <= len(repr(value))


@pytest.fixture
def model(tmp_path: Path, write_gguf: Write) -> ModelInfo:
    return described(write_gguf(save_model(tmp_path / "tiny", SMALL, byte_level_files()), "f32"))


def test_named_chat_templates_come_along(model: ModelInfo) -> None:
    changed = with_keys(model, tokenizer__chat_template__tools="{{ tools }}")
    files = as_hugging_face(changed).files
    assert "chat_template.jinja" not in files
    assert json.loads(files["tokenizer_config.json"])["chat_template"] == [
        {"name": "default", "template": TEMPLATE},
        {"name": "tools", "template": "{{ tools }}"},
    ]


def test_padding_at_the_end_is_no_token(model: ModelInfo) -> None:
    state = json.loads(as_hugging_face(model).files["tokenizer.json"])
    assert max(state["model"]["vocab"].values()) == 500
    assert as_hugging_face(model).config["vocab_size"] == 512


def test_an_id_of_no_token_is_left_out(model: ModelInfo) -> None:
    changed = with_keys(model, tokenizer__ggml__padding_token_id=2**32 - 1)
    assert "pad_token_id" not in as_hugging_face(changed).config


def test_an_end_may_be_added(model: ModelInfo) -> None:
    changed = with_keys(model, tokenizer__ggml__add_eos_token=True)
    state = json.loads(as_hugging_face(changed).files["tokenizer.json"])
    assert state["post_processor"]["single"][-1] == {
        "SpecialToken": {"id": "<|end|>", "type_id": 0}
    }


def test_a_linear_scale_of_older_files(model: ModelInfo) -> None:
    changed = with_keys(model, llama__rope__scale_linear=4.0)
    scaling = as_hugging_face(changed).config["rope_scaling"]
    assert scaling == {"rope_type": "linear", "factor": 4.0}


BAD: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "architecture": (
        Unsupported,
        r"architecture 'gemma3' is not translated .* only llama, qwen2, qwen3",
        {"general__architecture": "gemma3"},
    ),
    "no architecture": (
        UnreadableInput,
        r"general\.architecture is None, but must be a string",
        {"general__architecture": None},
    ),
    "experts": (Unsupported, r"a mixture of 8 experts", {"llama__expert_count": 8}),
    "unknown key": (
        Unsupported,
        r"llama\.logit_scale may change what the model computes",
        {"llama__logit_scale": 2.0},
    ),
    "layout": (
        UnreadableInput,
        r"llama\.tensor_data_layout is 'x', but must be",
        {"llama__tensor_data_layout": "x"},
    ),
    "heads": (
        UnreadableInput,
        r"head_count_kv is 3, but must be a divisor of the 2 heads",
        {"llama__attention__head_count_kv": 3},
    ),
    "heads per block": (
        UnreadableInput,
        r"head_count_kv is \(1, 2\), but must be a whole number",
        {"llama__attention__head_count_kv": (1, 2)},
    ),
    "values": (
        Unsupported,
        r"32 features as keys, 16 as values, 32 of them rotated",
        {"llama__attention__value_length": 16},
    ),
    "partial": (Unsupported, r"16 of them rotated", {"llama__rope__dimension_count": 16}),
    "hidden": (
        UnreadableInput,
        r"'token_embd\.weight': shape \(512, 64\), but .* demands shape \(512, 128\)",
        {"llama__embedding_length": 128},
    ),
    "layers": (UnreadableInput, r"'blk\.1\.attn_norm\.weight': missing", {"llama__block_count": 2}),
    "epsilon": (
        UnreadableInput,
        r"rms_epsilon is 0\.0, but must be a number above 0",
        {"llama__attention__layer_norm_rms_epsilon": 0.0},
    ),
    "rope": (
        Unsupported,
        r"rope\.scaling\.type 'longrope' is not translated",
        {"llama__rope__scaling__type": "longrope"},
    ),
    "tokenizer": (
        Unsupported,
        r"tokenizer\.ggml\.model 'rwkv' is not translated",
        {"tokenizer__ggml__model": "rwkv"},
    ),
    "pre-tokenizer": (
        Unsupported,
        r"tokenizer\.ggml\.pre 'default' is not translated",
        {"tokenizer__ggml__pre": "default"},
    ),
    "space": (
        Unsupported,
        r"add_space_prefix is true for byte-level BPE",
        {"tokenizer__ggml__add_space_prefix": True},
    ),
    "normalizer": (
        Unsupported,
        r"precompiled_charsmap changes text before it is split",
        {"tokenizer__ggml__precompiled_charsmap": (1, 2)},
    ),
    "no tokens": (UnreadableInput, r"has 0 tokens for 512 rows", {"tokenizer__ggml__tokens": None}),
    "tokens": (
        UnreadableInput,
        r"tokens is \(1, 2\), but must be an array of strings",
        {"tokenizer__ggml__tokens": (1, 2)},
    ),
    "twice": (
        UnreadableInput,
        r"tokens 0 and 1 are both 'a', which",
        {"tokenizer__ggml__tokens": ("a", "a")},
    ),
    "types": (
        UnreadableInput,
        r"has 1 entries in tokenizer\.ggml\.token_type for 512 tokens",
        {"tokenizer__ggml__token_type": (1,)},
    ),
    "merges": (
        UnreadableInput,
        r"merge 'a \u2603' does not join two of its tokens",
        {"tokenizer__ggml__merges": ("a \u2603",)},
    ),
    "no beginning": (
        UnreadableInput,
        r"has tokenizer\.ggml\.add_bos_token, but no valid tokenizer\.ggml\.bos_token_id",
        {"tokenizer__ggml__add_bos_token": True, "tokenizer__ggml__bos_token_id": None},
    ),
    "flag": (
        UnreadableInput,
        r"add_bos_token is 1, but must be true or false",
        {"tokenizer__ggml__add_bos_token": 1},
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_metadata_is_refused(case: str, model: ModelInfo) -> None:
    error, message, changes = BAD[case]
    with pytest.raises(error, match=message):
        as_hugging_face(with_keys(model, **changes))


def frequencies(tmp_path: Path, write_gguf: Write, **changes: Any) -> Path:
    config = llama_config(rope_theta=500000.0, rope_scaling={**LLAMA3, **changes})
    return write_gguf(save_model(tmp_path / "tiny", config, byte_level_files()), "f32")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"factor": 32.0, "original_max_position_embeddings": 8192},
        {"high_freq_factor": 8.0, "original_max_position_embeddings": 2048},
    ],
)
def test_stretched_frequencies_become_their_formula(
    changes: dict[str, Any], tmp_path: Path, write_gguf: Write
) -> None:
    path = frequencies(tmp_path, write_gguf, **changes)
    back = hugging_face(path, tmp_path / "back")
    config = json.loads((back / "config.json").read_bytes())
    assert config["rope_scaling"] == {**LLAMA3, **changes}
    torch.testing.assert_close(logits(back), logits(tmp_path / "tiny"), rtol=0, atol=0)
    dropped = as_hugging_face(described(path), lambda name: torch.ones(32)).dropped
    assert [each.name for each in dropped] == ["rope_freqs.weight"]


@pytest.mark.parametrize(
    "factors",
    [None, torch.linspace(1, 8, 32), torch.full((32,), 8.0), torch.rand(32), torch.ones(31) * 2],
)
def test_factors_of_another_formula_are_refused(
    factors: torch.Tensor | None, tmp_path: Path, write_gguf: Write
) -> None:
    model = described(frequencies(tmp_path, write_gguf))
    read = None if factors is None else lambda name: factors
    with pytest.raises(Unsupported, match=r"'rope_freqs\.weight' stretches .* no formula which"):
        as_hugging_face(model, read)


def test_factors_of_1_stretch_nothing(tmp_path: Path, write_gguf: Write) -> None:
    model = described(frequencies(tmp_path, write_gguf))
    view = as_hugging_face(model, lambda name: torch.ones(32))
    assert "rope_scaling" not in view.config


def test_a_file_without_embedding_is_refused(model: ModelInfo) -> None:
    tensors = {name: info for name, info in model.tensors.items() if name != "token_embd.weight"}
    with pytest.raises(UnreadableInput, match=r"has no matrix 'token_embd\.weight'"):
        as_hugging_face(replace(model, tensors=tensors))
