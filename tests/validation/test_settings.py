"""What an artifact says beside its weights: every value is as planned, at depth bytes."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

from qconv.validation._planned import Companions
from qconv.validation._settings import settings_faults
from validation.damage import converted, model_at, replace_in, validated


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return model_at(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def sound(source, tmp_path_factory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("sound")
    targets = {"gguf": "gguf:q8_0", "folder": "safetensors:int4,group_size=64"}
    return {name: converted(source, target, out) for name, target in targets.items()}


@pytest.fixture
def gguf(sound, tmp_path) -> Path:
    return Path(shutil.copy(sound["gguf"], tmp_path))


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    return Path(shutil.copytree(sound["folder"], tmp_path / sound["folder"].name))


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_config_written_anew_with_more_in_it_is_sound(folder, source):
    edit_config(folder, transformers_version="99", attention_bias=False)
    result = validated(folder, source)
    assert (result.faults, result.status) == ((), "unmeasured")


def test_another_epsilon_in_the_config_is_found(folder, source):
    edit_config(folder, rms_norm_eps=10)
    (fault,) = validated(folder, source).faults
    assert fault.startswith("config.json: 'rms_norm_eps' is 10, but must be 1e-0")


def test_a_value_deep_in_the_config_is_found(tmp_path):
    def config(theta: float) -> bytes:
        return json.dumps({"rope_parameters": {"rope_theta": theta, "factors": [1, 2]}}).encode()

    (tmp_path / "config.json").write_bytes(config(3))
    planned = Companions(files={"config.json": config(10000.0)})
    assert list(settings_faults(tmp_path, planned)) == [
        "config.json: rope_parameters: 'rope_theta' is 3, but must be 10000.0"
    ]
    (tmp_path / "config.json").write_bytes(b"[]")
    assert list(settings_faults(tmp_path, planned)) == ["config.json: is no JSON object"]
    (tmp_path / "config.json").unlink()
    assert list(settings_faults(tmp_path, planned)) == ["config.json is missing"]


def test_a_config_that_lost_a_key_is_found(folder, source):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["num_key_value_heads"]
    path.write_text(json.dumps(config))
    (fault,) = validated(folder, source).faults
    assert fault.startswith("config.json: 'num_key_value_heads' is missing, but must be ")


def test_another_rope_base_in_the_metadata_is_found_without_running_it(gguf, source):
    key = b"llama.rope.freq_base" + struct.pack("<If", 6, 10000.0)
    replace_in(gguf, key, key[:-4] + struct.pack("<f", 3.0))
    assert validated(gguf, source).faults == (
        "metadata: 'llama.rope.freq_base' is 3.0, but must be 10000.0",
    )


def test_another_pre_tokenizer_is_found(gguf, source):
    key = b"tokenizer.ggml.pre" + struct.pack("<I", 8)
    start = gguf.read_bytes().index(key) + len(key)
    (nbytes,) = struct.unpack_from("<Q", gguf.read_bytes(), start)
    named = gguf.read_bytes()[start : start + 8 + nbytes]
    replace_in(gguf, key + named, key + named[:8] + b"x" * nbytes)
    (fault,) = validated(gguf, source).faults
    assert fault.startswith(f"metadata: 'tokenizer.ggml.pre' is {'x' * nbytes!r}, but must be '")


def test_another_kind_of_token_is_found(gguf, source):
    key = b"tokenizer.ggml.token_type" + struct.pack("<II", 9, 5)
    start = gguf.read_bytes().index(key) + len(key) + 8
    data = bytearray(gguf.read_bytes())
    assert struct.unpack_from("<i", data, start + 4 * 40) == (1,)
    struct.pack_into("<i", data, start + 4 * 40, 3)
    gguf.write_bytes(data)
    assert validated(gguf, source).faults == (
        "metadata: 'tokenizer.ggml.token_type' is 3 at 40, but must be 1",
    )


def test_metadata_that_is_missing_is_found(gguf, source):
    replace_in(gguf, b"tokenizer.ggml.eos_token_id", b"tokenizer.ggml.eos_token_ix")
    replace_in(gguf, b"llama.vocab_size", b"llama.vocab_sizf")
    found = validated(gguf, source).faults
    assert any(each.startswith("tokenizer: eos_token is token None, but the") for each in found)
    assert "metadata: 'llama.vocab_size' is missing, but must be 512" in found


def test_what_takes_options_that_nobody_gave_is_unmeasured_and_says_so(sound, source, monkeypatch):
    from qconv.errors import Unsupported
    from qconv_gguf._backend import GgufBackend

    def layout(self, request, plans):
        raise Unsupported("no pre-tokenizer splits so; give pre=NAME")

    monkeypatch.setattr(GgufBackend, "layout", layout)
    result = validated(sound["gguf"], source)
    gate = {each.name: each for each in result.gates}["settings"]
    assert (result.faults, gate.status) == ((), "unmeasured")
    assert gate.why == (
        "no pre-tokenizer splits so; give pre=NAME; name the target with the options it was made "
        "with (--target)"
    )
