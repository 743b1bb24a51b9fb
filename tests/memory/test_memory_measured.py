"""Memory that is measured, in a process of its own, and the weights that stay packed in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hollow_gguf import attention_keys, attention_shapes, write_hollow

import qconv
from qconv._host import load_plugins
from qconv._sources import open_source
from qconv.checkpoint import DecodedCheckpoint
from qconv.errors import BrokenPlugin, NotEnoughResources, UnreadableInput, Unsupported, UsageError
from qconv.memory import Measurement, _worker, measure
from qconv.memory._driver import device_peak, driver_name, nvml_process, nvml_used
from qconv.memory._measure import device_memory
from qconv.memory._packed import _decoded, packed_linears
from qconv.memory._peaks import resident_peak
from qconv.model import open_model

MIB = 2**20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama of 2 blocks in float32, and beside it the same in 4 bits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=256,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "llama")
    qconv.convert(folder / "llama", to="safetensors:int4,group_size=64", out=folder)
    return folder


def packed(folder: Path) -> Path:
    return folder / "llama-INT4"


def test_packed_linears_compute_what_decoded_ones_do(tiny: Path) -> None:
    tokens = torch.arange(48)[None]
    with open_source(packed(tiny), load_plugins()) as source, torch.no_grad():
        assert isinstance(source, DecodedCheckpoint)
        model = open_model(source, device="cpu")
        expected = model.whole()(input_ids=tokens).logits
        held = model.whole(packed_linears(source, torch.device("cpu")))
        kinds = [type(module).__name__ for module in held.modules()]
        assert kinds.count("PackedLinear") == 2 * 7
        assert torch.equal(held(input_ids=tokens).logits, expected)


def test_packed_linears_hold_no_float_weight(tiny: Path) -> None:
    with open_source(packed(tiny), load_plugins()) as source:
        assert isinstance(source, DecodedCheckpoint)
        held = open_model(source, device="cpu").whole(packed_linears(source, torch.device("cpu")))
        floats = sum(parameter.numel() for parameter in held.parameters())
        assert floats == 2 * 512 * 256 + 5 * 256  # embeddings, head, norms
        stored = [m._parts for m in held.modules() if type(m).__name__ == "PackedLinear"]
        nbytes = sum(part.nbytes for parts in stored for part in parts.values())
        infos = source.stored.model.tensors.values()
        others = sum(info.nbytes for info in infos if info.name in source.model.tensors)
        assert nbytes == sum(info.nbytes for info in infos) - others


@pytest.mark.parametrize("name", ["llama", "llama-INT4"])
def test_a_tiny_model_takes_what_is_predicted(tiny: Path, name: str) -> None:
    made = measure(tiny / name, context=200, device="cpu", step=64)
    result = made.result
    assert made.result.by == "process memory"
    assert (result.device, result.runtime, result.cache_type) == ("cpu", "torch", "f32")
    assert result.parts["kv_cache"] == 2 * 2 * 2 * 32 * 4 * 200
    assert result.measured is not None
    assert result.measured > 0
    assert result.error is not None
    assert abs(result.error) < 16 * MIB, result


def test_a_gguf_is_measured_in_llama_cpp(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install 'qconv[llama-cpp]'")
    sizes = {"layers": 4, "hidden": 256, "inner": 512, "heads": 8, "kv_heads": 2}
    shapes = attention_shapes(**sizes, width=32, vocab=1000)
    path = write_hollow(tmp_path / "m-F16.gguf", "llama", attention_keys(**sizes), shapes)
    made = measure(path, context=256)
    assert made.result.by.startswith("process memory of llama.cpp")
    assert made.result.runtime == "llama.cpp"
    assert made.result.error is not None
    assert abs(made.result.error) < 64 * MIB, made.result


@pytest.mark.slow
def test_smollm2_in_4_bits_takes_what_is_predicted(smollm2: Path, tmp_path: Path) -> None:
    qconv.convert(smollm2, to="safetensors:int4,group_size=64", out=tmp_path)
    result = measure(tmp_path / "smollm2-135m-INT4", context=1024).result
    assert result.error == 0, result
    assert result.measured is not None
    assert result.measured < 300 * MIB  # 513 MiB of weights alone in float32


def test_what_the_process_raises_is_raised_here(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unknown"
    folder.mkdir()
    config = json.loads((tiny / "llama" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llamb"}))
    (folder / "model.safetensors").write_bytes((tiny / "llama" / "model.safetensors").read_bytes())
    with pytest.raises(Unsupported, match="does not know model_type 'llamb'"):
        measure(folder, context=16)
    with pytest.raises(UnreadableInput, match="cannot be opened"):
        measure(tmp_path / "nothing", context=16)


def test_a_process_that_is_ended_is_told_of(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*_: Any, **__: Any) -> Any:
        return subprocess.CompletedProcess([], -9, stdout="", stderr="Killed")

    monkeypatch.setattr("qconv.memory._measure.subprocess.run", ended)
    with pytest.raises(NotEnoughResources, match=r"16 tokens on cpu ended with -9 \(Killed\)"):
        measure(tiny / "llama", context=16)


@pytest.fixture
def small_gguf(tmp_path: Path) -> Path:
    sizes = {"layers": 1, "hidden": 64, "inner": 64, "heads": 2, "kv_heads": 2}
    shapes = attention_shapes(**sizes, width=32, vocab=100)
    return write_hollow(tmp_path / "m.gguf", "llama", attention_keys(**sizes), shapes)


def test_an_engine_is_run_one_sequence_at_a_time(small_gguf: Path) -> None:
    with pytest.raises(Unsupported, match="one sequence at a time, not 2"):
        measure(small_gguf, context=16, batch=2)


def driver(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a driver's tool in the path, which says what ``script`` does."""
    if sys.platform == "win32":
        pytest.skip("a shell script")
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")


def on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine takes any device for the CPU, as one that uses none, and in this process."""
    logits = _worker._logits
    monkeypatch.setattr("qconv.model.resolve_device", torch.device)
    monkeypatch.setattr(_worker, "_logits", lambda *asked: logits(*asked[:4]))
    monkeypatch.setattr(
        "qconv.memory._measure._run",
        lambda asked: _worker._runtime({**asked, "driver_name": driver_name(0)}),
    )


def test_an_engine_on_a_device_is_measured_by_the_driver(
    small_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install 'qconv[llama-cpp]'")
    on_a_device(monkeypatch)
    first, later = tmp_path / "first", tmp_path / "later"
    driver(
        tmp_path,
        f"if [ -e {later} ]; then echo 700; else echo 100; fi\n"
        f"if [ -e {first} ]; then : > {later}; fi; : > {first}",
        monkeypatch,
    )
    made = measure(small_gguf, context=16, device="cuda:0")
    assert made.result.measured == 600 * MIB
    assert made.result.by.startswith("the driver, while llama.cpp")
    assert any("difference of the whole device" in each for each in made.result.assumptions)
    assert made.result.parts["device_context"] > 0


def test_an_engine_whose_process_the_driver_lists_is_measured_alone(
    small_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install 'qconv[llama-cpp]'")
    on_a_device(monkeypatch)
    listed = 'case "$2" in *apps*) echo "7, 5000"; echo "$PPID, 450" ;; *) echo 9000 ;; esac'
    driver(tmp_path, listed, monkeypatch)
    made = measure(small_gguf, context=16, device="cuda:0")
    assert made.result.measured == 450 * MIB
    assert made.result.by.startswith("the driver, of its process, while llama.cpp")
    assert not any("whole device" in each for each in made.result.assumptions)


def test_an_engine_that_does_not_use_the_device_is_told_of(
    small_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install 'qconv[llama-cpp]'")
    on_a_device(monkeypatch)
    driver(tmp_path, "echo 100", monkeypatch)
    with pytest.raises(Unsupported, match="this build of llama.cpp computes on the CPU"):
        measure(small_gguf, context=16, device="cuda:0")


def test_without_the_drivers_tool_an_engine_is_not_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NotEnoughResources, match="nvidia-smi does not say"):
        device_peak("0")
    with pytest.raises(NotEnoughResources, match=r"a slice of a device \(MIG\); measure on a"):
        device_peak("MIG-a")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_absent_is_refused(tiny: Path) -> None:
    with pytest.raises(NotEnoughResources, match="--device cuda: 0 CUDA devices"):
        measure(tiny / "llama", context=16, device="cuda")


def test_fit_measures_what_is_on_disk(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    real = measure(packed(tiny), context=64)

    def instead(path: Path, **settings: Any) -> Measurement:
        asked.update(settings, path=path)
        return real

    monkeypatch.setattr("qconv.memory._fit.measure", instead)
    found = qconv.fit(packed(tiny), measure_on="cpu")
    assert asked == {"path": packed(tiny), "context": 256, "batch": 1, "device": "cpu"}
    assert [option.target for option in found.options] == ["as stored"]
    assert found.to_json()["measurement"] == real.to_json()
    assert found.vram > 2**30
    with pytest.raises(UsageError, match="leave --to out"):
        qconv.fit(packed(tiny), to="gguf:q8_0", measure_on="cpu")
    with pytest.raises(UsageError, match="leave --cache and --runtime out"):
        qconv.fit(packed(tiny), measure_on="cpu", cache_type="f16")
    with pytest.raises(UsageError, match="give the bytes of memory"):
        qconv.fit(packed(tiny))


def test_the_peak_is_seen_though_it_is_gone() -> None:
    with resident_peak(mapped=False) as peak:
        torch.ones(16 * MIB)  # 64 MiB
    assert 32 * MIB < peak.nbytes < 120 * MIB  # it is looked at now and then


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_driver_nothing_is_said_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert nvml_used("0") is None


def test_the_driver_is_asked_for_what_is_in_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    driver(tmp_path, '[ "$1" = --id=1 ] && echo 1234', monkeypatch)
    assert nvml_used("1") == 1234 * MIB
    assert nvml_used("0") is None


@pytest.mark.parametrize(
    ("visible", "asked"),
    [("", "1"), ("3,5", "5"), ("0", "1"), ("GPU-a, GPU-b", "GPU-b"), ("MIG-a,MIG-b", "MIG-b")],
)
def test_the_driver_is_asked_for_the_device_that_cuda_sees(
    visible: str, asked: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    driver(tmp_path, f'[ "$1" = --id={asked} ] && echo 7', monkeypatch)
    assert nvml_used(driver_name(1)) == 7 * MIB


@pytest.mark.parametrize(
    ("visible", "name"),
    [("", "GPU-0a-1"), ("5,3", "GPU-0a-1"), ("GPU-x,GPU-y", "GPU-0a-1"), ("MIG-a,MIG-b", "MIG-b")],
)
def test_where_torch_knows_its_uuid_the_driver_is_told_that(
    visible: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [SimpleNamespace(uuid="other"), SimpleNamespace(uuid="0a-1")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", found.__getitem__)
    assert driver_name(1) == name


@pytest.mark.parametrize(
    "said",
    ["exit 6", "echo '[Insufficient Permissions]'", "echo '[N/A]'", "true", "echo '12, [N/A]'"],
)
def test_what_the_driver_does_not_say_is_not_known(
    said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    driver(tmp_path, said, monkeypatch)
    assert nvml_used("0") is None
    assert nvml_process("0", 12) is None


def test_a_system_that_does_not_tell_its_memory_must_be_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert device_memory("cpu") > 2**30
    monkeypatch.delattr("os.sysconf")
    with pytest.raises(UsageError, match="give --vram"):
        device_memory("cpu")


class Elsewhere:
    """Stands for a tensor on a device that a source does not decode on."""

    def __init__(self, kind: str) -> None:
        self.device = torch.device(kind)

    def cpu(self) -> Elsewhere:
        return Elsewhere("cpu")

    def to(self, device: torch.device) -> Elsewhere:
        return Elsewhere(device.type)

    def dequantize(self) -> Elsewhere:
        return self


class OnTheCpuOnly:
    def from_parts(self, name: str, parts: dict[str, Elsewhere]) -> Elsewhere:
        if any(part.device.type != "cpu" for part in parts.values()) or name == "broken":
            raise BrokenPlugin(f"plugin author: decode() of tensor {name!r} failed")
        return Elsewhere("cpu")


def test_a_source_that_decodes_on_the_cpu_only_is_served_there() -> None:
    weight: Any = _decoded(OnTheCpuOnly(), "w", {"part": Elsewhere("cuda")})  # type: ignore[arg-type]
    assert weight.device.type == "cuda"
    with pytest.raises(BrokenPlugin, match="decode"):
        _decoded(OnTheCpuOnly(), "broken", {"part": Elsewhere("cpu")})  # type: ignore[arg-type]
