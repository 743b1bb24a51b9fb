"""llama.cpp computes from the written file what transformers computes from the checkpoint."""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_models import byte_level_files, llama_config, save_model

from qconv.errors import BrokenPlugin, UnreadableInput, UsageError
from qconv_gguf import _llama_cpp
from qconv_gguf._backend import GgufBackend
from qconv_gguf._llama_cpp import LlamaCpp

Write = Callable[..., Path]

IDS = [3 + 7 * n % 500 for n in range(96)]

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}

MODELS: dict[str, dict[str, Any]] = {
    "grouped heads, untied": {},
    "tied": {"tie_word_embeddings": True},
    "one key-value head per head": {"num_key_value_heads": 4},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 96},
    "llama3 rope": {"rope_scaling": LLAMA3, "rope_theta": 500000.0},
    "linear rope": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "rope parameters": {"rope_theta": None, "rope_parameters": {"rope_theta": 777.0}},
    "yarn": {"rope_scaling": YARN},
    "yarn with its own attention factor": {"rope_scaling": {**YARN, "attention_factor": 1.5}},
    "yarn with weighted scales": {"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}},
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": None,
    },
}


@pytest.fixture(scope="module")
def tokenizer_files() -> dict[str, bytes]:
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install 'qconv[llama-cpp]'")
    return byte_level_files()


def expected_logits(folder: Path) -> torch.Tensor:
    transformers = pytest.importorskip("transformers", reason="transformers is the judge")
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0]


def divergence(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Mean KL divergence in nats."""
    p, q = torch.log_softmax(expected, -1), torch.log_softmax(found, -1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("name", MODELS)
def test_f32_gives_the_logits_of_transformers(
    name: str, tmp_path: Path, write_gguf: Write, tokenizer_files: dict[str, bytes]
) -> None:
    folder = save_model(tmp_path / "tiny", llama_config(**MODELS[name]), tokenizer_files)
    expected = expected_logits(folder)
    with LlamaCpp(write_gguf(folder, "f32")) as llama:
        found = llama.logits(IDS)
    assert found.shape == (len(IDS), 512)
    # llama.cpp keeps keys and values as float16, which bounds how close it can come
    assert float((found - expected).abs().max()) < 4e-3 * float(expected.abs().max())
    assert divergence(expected, found) < 1e-6


@pytest.mark.parametrize("target", ["f16", "bf16"])
def test_half_floats_give_nearly_the_logits_of_transformers(
    target: str, tmp_path: Path, write_gguf: Write, tokenizer_files: dict[str, bytes]
) -> None:
    folder = save_model(tmp_path / "tiny", llama_config(), tokenizer_files, torch.bfloat16)
    expected = expected_logits(folder)
    with LlamaCpp(write_gguf(folder, target)) as llama:
        found = llama.logits(IDS)
    assert divergence(expected, found) < 1e-4


def test_rotary_order_matters(
    tmp_path: Path,
    write_gguf: Write,
    tokenizer_files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = save_model(tmp_path / "tiny", llama_config(), tokenizer_files)
    monkeypatch.setattr("qconv_gguf._llama.rotary_order", lambda heads, head_dim: None)
    with LlamaCpp(write_gguf(folder, "f32")) as llama:
        found = llama.logits(IDS)
    assert divergence(expected_logits(folder), found) > 0.01


def test_generation_is_greedy_and_bounded(
    tmp_path: Path, write_gguf: Write, tokenizer_files: dict[str, bytes]
) -> None:
    folder = save_model(tmp_path / "tiny", llama_config(), tokenizer_files)
    with LlamaCpp(write_gguf(folder, "f16"), n_ctx=64, threads=1) as llama:
        ids = llama.tokenize("The quick brown")
        made: list[int] = []
        for _ in range(5):
            made.append(int(llama.logits(ids + made)[-1].argmax()))
        assert llama.generate(ids, 5) == made
        assert llama.generate(ids, 0) == []
        with pytest.raises(UsageError, match=r"exceed n_ctx=64; raise n_ctx"):
            llama.generate(ids, 64)


def test_more_tokens_than_llama_cpp_computes_at_once_give_the_same_logits(
    tmp_path: Path, write_gguf: Write, tokenizer_files: dict[str, bytes]
) -> None:
    folder = save_model(tmp_path / "tiny", llama_config(), tokenizer_files)
    path, ids = write_gguf(folder, "f32"), IDS * 7
    assert len(ids) > _llama_cpp._PORTION
    with LlamaCpp(path, n_ctx=1024) as llama:
        found = llama.logits(ids)
        made = llama.generate(ids, 2)
    with LlamaCpp(path, n_ctx=512) as llama:
        first = llama.logits(ids[:512])
    assert found.shape == (len(ids), 512)
    assert divergence(first, found[:512]) < 1e-6
    assert made[0] == int(found[-1].argmax())


def test_text_comes_back_as_it_went_in(
    tmp_path: Path, write_gguf: Write, tokenizer_files: dict[str, bytes]
) -> None:
    folder = save_model(tmp_path / "tiny", llama_config(), tokenizer_files)
    long = "<" + "long" * 40 + ">"
    state = json.loads(tokenizer_files["tokenizer.json"])
    token = {"id": 510, "content": long, "special": False, "single_word": False}
    state["added_tokens"].append({**token, "lstrip": False, "rstrip": False, "normalized": False})
    (folder / "tokenizer.json").write_text(json.dumps(state))
    with LlamaCpp(write_gguf(folder, "f16")) as llama:
        for text in ("a . b , c 's d !", "naïve 我 🚀\n\n  x", f"a {long} b"):
            assert llama.detokenize(llama.tokenize(text)) == text
        assert llama.detokenize(llama.tokenize("a<|end|>b")) == "ab"


def test_too_many_and_no_tokens_are_refused(
    tmp_path: Path, write_gguf: Write, tokenizer_files: dict[str, bytes]
) -> None:
    folder = save_model(tmp_path / "tiny", llama_config(), tokenizer_files)
    with LlamaCpp(write_gguf(folder, "f16"), n_ctx=64) as llama:
        assert llama.logits([1] * 64).shape == (64, 512)
        for ids in ([], [1] * 65):
            with pytest.raises(UsageError, match=r"between 1 and n_ctx=64"):
                llama.logits(ids)


def test_logits_depend_on_nothing_before(
    tmp_path: Path, write_gguf: Write, tokenizer_files: dict[str, bytes]
) -> None:
    folder = save_model(tmp_path / "tiny", llama_config(), tokenizer_files)
    with GgufBackend().runtime(write_gguf(folder, "f16")) as llama:
        first = llama.logits(IDS[:10])
        llama.logits(IDS[10:30])
        assert torch.equal(llama.logits(IDS[:10]), first)


def test_a_file_that_llama_cpp_refuses_is_named_with_its_reason(
    tmp_path: Path, tokenizer_files: dict[str, bytes]
) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(UnreadableInput, match=r"damaged\.gguf: llama\.cpp refuses it: .*version"):
        LlamaCpp(path)


def test_ids_beyond_the_vocabulary_are_refused(
    tmp_path: Path, write_gguf: Write, tokenizer_files: dict[str, bytes]
) -> None:
    folder = save_model(tmp_path / "tiny", llama_config(), tokenizer_files)
    with (
        LlamaCpp(write_gguf(folder, "f16")) as llama,
        pytest.raises(UnreadableInput, match=r"could not compute 1 tokens: .*invalid token"),
    ):
        llama.logits([99999])


def test_another_library_is_not_taken_for_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install 'qconv[llama-cpp]'")
    monkeypatch.setitem(_llama_cpp._SIGNATURES, "llama_of_tomorrow", (None, ()))
    with pytest.raises(BrokenPlugin, match=r"not llama\.cpp as this version knows it"):
        _llama_cpp._library.__wrapped__()


def test_all_that_llama_cpp_says_is_shown_on_request(
    tmp_path: Path,
    write_gguf: Write,
    tokenizer_files: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_gguf(save_model(tmp_path / "tiny", llama_config(), tokenizer_files), "f16")
    LlamaCpp(path).close()
    assert capsys.readouterr().err == ""
    LlamaCpp(path, verbose=True).close()
    assert "general.architecture" in capsys.readouterr().err


def test_a_missing_llama_cpp_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BrokenPlugin, match=r"pip install 'qconv\[llama-cpp\]'"):
        _llama_cpp._library.__wrapped__()


def test_mean_divergence_of_equal_logits_is_zero() -> None:
    assert math.isclose(divergence(torch.eye(4), torch.eye(4)), 0.0, abs_tol=1e-7)


class Devices:
    """A llama.cpp of these devices; an address is the place in their list, from 1 on."""

    def __init__(self, *names: str) -> None:
        self.ggml_backend_dev_count = lambda: len(names)
        self.ggml_backend_dev_get = lambda index: index + 1
        self.ggml_backend_dev_name = lambda address: names[address - 1].encode()
        self.llama_supports_gpu_offload = lambda: True


def placed(library: Any, device: str) -> tuple[Any, list[int | None], str]:
    """Parameters of a model, the devices that they list, and where the client says it computes."""
    client: Any = object.__new__(LlamaCpp)
    client._library, params = library, _llama_cpp._Blob()
    where = client._placed(params, device)
    assert ctypes.c_void_p.from_buffer(params).value == ctypes.addressof(client._devices)
    return params, list(client._devices), where


def test_on_the_cpu_no_device_is_left_that_large_products_could_go_to() -> None:
    params, devices, where = placed(Devices("CUDA0", "CPU"), "cpu")
    assert (devices, where, params.bytes[_llama_cpp._LAYERS]) == ([None], "cpu", 0)


def test_a_device_of_cuda_is_the_one_of_that_name() -> None:
    params, devices, where = placed(Devices("Vulkan0", "CUDA0", "CUDA1", "CPU"), "cuda:1")
    assert (devices, where) == ([3, None], "cuda:1")
    assert (params.bytes[_llama_cpp._SPLIT], params.bytes[_llama_cpp._MAIN]) == (0, 0)


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_gpu_of_another_kind_is_not_taken_for_cuda(device: str) -> None:
    told = r"no device CUDA0 for device cuda:0, but Vulkan0, CPU; choose one that it has, install"
    with pytest.raises(BrokenPlugin, match=told):
        placed(Devices("Vulkan0", "CPU"), device)


def test_a_list_of_no_devices_changes_nothing_without_a_gpu(
    tmp_path: Path,
    write_gguf: Write,
    tokenizer_files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_gguf(save_model(tmp_path / "tiny", llama_config(), tokenizer_files), "q8_0")
    with LlamaCpp(path, device="cpu") as llama:
        assert list(llama._devices) == [None]
        found = llama.logits(IDS)
    monkeypatch.setattr(_llama_cpp, "use_devices", lambda *_: None)
    with LlamaCpp(path, device="cpu") as llama:
        assert torch.equal(found, llama.logits(IDS))
