"""transformers and onnxruntime behind the runtime protocol; llama.cpp has a file of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_models import byte_level_files, llama_config, save_model

from qconv._host import host_of, load_plugins
from qconv.errors import (
    BrokenPlugin,
    NotEnoughResources,
    UnreadableInput,
    Unsupported,
    UsageError,
)
from qconv.plugin import BackendSpec, FormatSpec, hookimpl
from qconv_gguf._chat import rendered
from qconv_safetensors import _transformers

IDS = [3 + 7 * n % 500 for n in range(24)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers", reason="pip install 'qconv[calibration]'")
    return save_model(tmp_path_factory.mktemp("m") / "tiny", llama_config(), byte_level_files())


@pytest.fixture(scope="module")
def graph(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """The checkpoint as an ONNX folder in float32, with or without keys and values kept."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="pip install 'qconv[onnx]'")
    import qconv

    def write(kv_cache: bool) -> Path:
        out = tmp_path_factory.mktemp("onnx")
        target = f"onnx:fp32,kv_cache={str(kv_cache).lower()}"
        return qconv.convert(checkpoint, to=target, out=out, threads=1).artifacts[0].files[0].parent

    return write


def expected(checkpoint: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0]


def greedy(runtime: Any, ids: list[int], count: int) -> list[int]:
    made: list[int] = []
    while len(made) < count:
        made.append(int(runtime.logits(ids + made)[-1].argmax()))
    return made


def test_transformers_runs_what_it_loads(checkpoint: Path) -> None:
    with load_plugins().runtime(checkpoint, 64) as runtime:
        assert runtime.engine == "transformers"
        assert torch.allclose(runtime.logits(IDS), expected(checkpoint), atol=1e-5)
        ids = runtime.tokenize("The quick brown fox")
        assert runtime.detokenize(ids) == "The quick brown fox"
        assert runtime.generate(ids, 6) == greedy(runtime, ids, 6)
        assert runtime.generate(ids, 0) == []


@pytest.mark.parametrize("kv_cache", [True, False])
def test_onnxruntime_runs_what_it_loads(
    checkpoint: Path, graph: Callable[[bool], Path], kv_cache: bool
) -> None:
    with load_plugins().runtime(graph(kv_cache), 64) as runtime:
        assert runtime.engine == "onnxruntime"
        assert torch.allclose(runtime.logits(IDS), expected(checkpoint), atol=1e-4)
        ids = runtime.tokenize("The quick brown fox")
        assert runtime.detokenize(ids) == "The quick brown fox"
        assert runtime.generate(ids, 6) == greedy(runtime, ids, 6)
        assert runtime.generate(ids, 0) == []
        for wrong in ([], [1] * 65):
            with pytest.raises(UsageError, match=r"between 1 and 64 can be computed; raise the"):
                runtime.logits(wrong)


@pytest.fixture(scope="module")
def conversing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tokenizer begins texts, which a chat template must not have twice."""
    pytest.importorskip("transformers", reason="pip install 'qconv[calibration]'")
    files = byte_level_files(template=True)
    return save_model(tmp_path_factory.mktemp("m") / "chat", llama_config(), files)


def test_every_engine_writes_a_users_message_as_the_template_does(
    conversing: Path, tmp_path: Path
) -> None:
    for name in ("xllamacpp", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="pip install 'qconv[llama-cpp,onnx]'")
    import qconv

    targets = ["gguf:f16", "onnx:fp32"]
    made = qconv.convert(conversing, to=targets, out=tmp_path, threads=1).artifacts
    paths = [conversing, made[0].files[0], made[1].files[0].parent]
    written = []
    for path in paths:
        with load_plugins().runtime(path, 128) as runtime:
            ids = runtime.converse("Hello <|end|>, fox!")
            written.append(ids)
    text = "<|start|>user\nHello <|end|>, fox!<|end|>\n<|start|>assistant\n"
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(conversing)
    assert written == [tokenizer(text, add_special_tokens=False)["input_ids"]] * 3


def test_without_a_template_there_is_no_conversation(tmp_path: Path) -> None:
    for name in ("xllamacpp", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="pip install 'qconv[llama-cpp,onnx]'")
    import qconv

    files = byte_level_files()
    del files["chat_template.jinja"]
    folder = save_model(tmp_path / "silent", llama_config(), files)
    made = qconv.convert(folder, to=["gguf:f16", "onnx:fp32"], out=tmp_path, threads=1).artifacts
    for path in (folder, made[0].files[0], made[1].files[0].parent):
        with (
            load_plugins().runtime(path, 64) as runtime,
            pytest.raises(Unsupported, match=r"no chat template; give the prompt as plain text"),
        ):
            runtime.converse("Hello")


def test_a_template_may_refuse_a_message(conversing: Path, tmp_path: Path) -> None:
    for path in conversing.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    template = "{{ raise_exception('system first') }}"
    (tmp_path / "chat_template.jinja").write_text(template)
    refusal = r"refuses a user's message \(system first\); give the prompt as plain text"
    with (
        load_plugins().runtime(tmp_path, 64) as runtime,
        pytest.raises(Unsupported, match=refusal),
    ):
        runtime.converse("Hello")
    with pytest.raises(Unsupported, match=refusal):
        rendered(template, "Hello", bos_token="", eos_token="")
    with pytest.raises(Unsupported, match=r"refuses a user's message \(.*\); give the prompt as"):
        rendered("{{ unfinished", "Hello", bos_token="", eos_token="")


def test_templates_know_the_tokens_that_begin_and_end_a_text() -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}"
    assert rendered(template, "Hi", bos_token="<s>", eos_token="</s>") == "<s>Hi</s>"


def test_templates_write_json_as_in_transformers() -> None:
    asked = "ensure_ascii=true, separators=(',', ':'), sort_keys=true"
    template = "{% set x = {'b': '<\u00e9>', 'a': 1} %}{{ x | tojson }} {{ x | tojson(ASKED) }}"
    told = rendered(template.replace("ASKED", asked), "Hi", bos_token="", eos_token="")
    assert told == '{"b": "<\u00e9>", "a": 1} {"a":1,"b":"<\\u00e9>"}'


def test_a_missing_jinja2_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2.exceptions", None)
    with pytest.raises(BrokenPlugin, match=r"jinja2, which is missing: pip install 'qconv\[calib"):
        rendered("", "Hi", bos_token="", eos_token="")


def test_a_text_ends_where_the_checkpoint_says(checkpoint: Path, tmp_path: Path) -> None:
    with load_plugins().runtime(checkpoint, 64) as runtime:
        ids = runtime.tokenize("The quick brown fox")
        made = runtime.generate(ids, 6)
    end = next(token for token in made if token != made[0])
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [end], "do_sample": True, "temperature": 9.0})
    )
    with load_plugins().runtime(tmp_path, 64) as runtime:
        assert runtime.generate(ids, 6) == made[: made.index(end)]
        with pytest.raises(UsageError, match=r"24 tokens and 41 more, but between 1 and 64"):
            runtime.generate(IDS, 41)


def test_a_damaged_checkpoint_is_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\x08" + bytes(20))
    with pytest.raises(UnreadableInput, match=r"transformers [\d.]+ refuses it: .*run it in an"):
        load_plugins().runtime(tmp_path, 64)


def test_a_damaged_graph_is_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'qconv[onnx]'")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    (tmp_path / "model.onnx").write_bytes(b"\x08" + bytes(20))
    with pytest.raises(UnreadableInput, match=r"onnxruntime [\d.]+ refuses it: .*write it again"):
        load_plugins().runtime(tmp_path, 64)


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("transformers", r"missing: pip install 'qconv\[calibration\]'"),
        ("onnxruntime", r"onnxruntime is missing: pip install 'qconv\[onnx\]'"),
    ],
)
def test_a_missing_engine_names_the_extra(
    missing: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    path = tmp_path / {"transformers": "model.safetensors", "onnxruntime": "model.onnx"}[missing]
    path.touch()
    with pytest.raises(BrokenPlugin, match=says):
        load_plugins().runtime(path, 64)


def test_what_no_backend_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableInput, match=r"nothing: no such file or folder; check the path"):
        load_plugins().backend_of(tmp_path / "nothing")
    with pytest.raises(UnreadableInput, match=r"no artifact of a known format .*gguf, onnx, safe"):
        load_plugins().backend_of(tmp_path)


def test_engines_say_where_they_compute_and_refuse_a_device_they_cannot_use(
    checkpoint: Path, graph: Callable[[bool], Path]
) -> None:
    host = load_plugins()
    for path in (checkpoint, graph(True)):
        with host.runtime(path, 64, "cpu") as runtime:
            assert runtime.device == "cpu"
    if torch.cuda.is_available():
        pytest.skip("there is a device that they can use")
    with pytest.raises(NotEnoughResources, match=r"--device cuda: 0 CUDA devices are usable"):
        host.runtime(checkpoint, 64, "cuda")
    told = r"cannot load its CUDA provider for device cuda:1: .*; or compute on the CPU"
    with pytest.raises(BrokenPlugin, match=told):
        host.runtime(graph(True), 64, "cuda:1")


def test_llama_cpp_without_cuda_refuses_it(conversing: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="pip install 'qconv[llama-cpp]'")
    import qconv

    path = qconv.convert(conversing, to="gguf:f16", out=tmp_path, threads=1).artifacts[0].files[0]
    with load_plugins().runtime(path, 64, "cpu") as runtime:
        assert runtime.device == "cpu"
        offloads = runtime._library.llama_supports_gpu_offload()
    if offloads:
        pytest.skip("this llama.cpp has a GPU backend")
    with pytest.raises(BrokenPlugin, match=r"no GPU support for device cuda; install one"):
        load_plugins().runtime(path, 64, "cuda")


def test_a_folder_of_two_backends_is_ambiguous(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "model.onnx"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"several backends \(onnx, safetensors\); name the one"):
        load_plugins().backend_of(tmp_path)
    assert load_plugins().backend_of(tmp_path / "model.onnx").name == "onnx"


class Bare:
    def plan_tensors(self, request: Any) -> None: ...
    def layout(self, request: Any, plans: Any) -> None: ...
    def encode(self, plan: Any, value: Any) -> None: ...
    def open(self, path: Any) -> None: ...


class Failing(Bare):
    def runtime(self, path: Any, context: Any, device: Any) -> None:
        raise RuntimeError("no luck")


class Old(Bare):
    """As written when engines were told no device and said none."""

    def runtime(self, path: Any, context: Any) -> Any:
        return OldRuntime()


class OldRuntime:
    engine = "old"

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine = "closed"


class Plugin:
    def __init__(self, made: type, recognizes: Any) -> None:
        self.made, self.recognizes = made, recognizes

    @hookimpl
    def qconv_backends(self) -> Any:
        yield BackendSpec(
            name="bare",
            summary="",
            formats=(FormatSpec(name="f", summary=""),),
            recognizes=self.recognizes,
            load=lambda: self.made,
            api_version=1,
        )


def test_a_backend_without_an_engine_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"backend 'bare' runs no artifacts; run it where"):
        host_of(Plugin(Bare, lambda path: True), "p").runtime(tmp_path, 64)


def test_what_a_backend_raises_becomes_a_sentence_about_it(tmp_path: Path) -> None:
    with pytest.raises(BrokenPlugin, match=r"backend 'bare': runtime\(\) failed: .*no luck"):
        host_of(Plugin(Failing, lambda path: True), "p").runtime(tmp_path, 64)
    with pytest.raises(BrokenPlugin, match=r"backend 'bare': recognizes\(\) failed: ZeroDivision"):
        host_of(Plugin(Bare, lambda path: 1 // 0), "p").backend_of(tmp_path)
    record = host_of(Plugin(Bare, "yes"), "p").listing()[0]
    assert "recognizes is a str; it must be a function of a path" in record.reason


def test_an_engine_that_knows_no_devices_runs_on_its_own_alone(tmp_path: Path) -> None:
    host = host_of(Plugin(Old, lambda path: True), "p")
    for device in ("auto", "cpu"):
        with host.runtime(tmp_path, 64, device) as runtime:
            assert (runtime.engine, runtime.device) == ("old", "cpu")
        assert runtime.engine == "closed"
    told = r"backend 'bare' takes no device .* compute on cuda:1; leave --device out, or upgrade"
    with pytest.raises(Unsupported, match=told):
        host.runtime(tmp_path, 64, "cuda:1")


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("place", ["cpu", "cuda:1"])
def test_quantized_weights_are_loaded_where_their_kernels_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, quantized: bool
) -> None:
    import transformers

    pytest.importorskip("accelerate", reason="needs accelerate")
    given: dict[str, Any] = {}
    moved: list[Any] = []

    class Model:
        generation_config = transformers.GenerationConfig()

        def to(self, device: Any) -> Any:
            moved.append(device)
            return self

        def eval(self) -> Any:
            return self

    def load(_folder: Path, **kwargs: Any) -> Any:
        given.update(kwargs)
        return Model()

    config = {"quantization_config": {"quant_method": "gptq"}} if quantized else {}
    (tmp_path / "config.json").write_text(json.dumps(config))
    device = torch.device(place)
    monkeypatch.setattr(_transformers, "resolve_device", lambda _: device)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_a, **_k: None)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)
    assert _transformers.Transformers(tmp_path, device=place).device == place
    there = quantized and place != "cpu"
    assert given.get("device_map") == ({"": device} if there else None)
    assert moved == ([] if there else [device])
