"""Facts about inspections: what they count, which damage they find, and how little they hold."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from checkpoint.written import (
    beside_config,
    gguf_bytes,
    hf_directory,
    listed,
    quantized_gguf,
    safetensors_bytes,
)
from qconv import inspection
from qconv.errors import UnreadableInput
from qconv.inspection import Inspection, ValueSummary, inspect


def values_of(found: Inspection, name: str = "w") -> ValueSummary:
    values = next(row.values for row in found.tensors if row.name == name)
    assert values is not None
    return values


def inspected(directory: Path, value: torch.Tensor) -> ValueSummary:
    save_file({"w": value}, directory / "x.safetensors")
    return values_of(inspect(directory / "x.safetensors"))


def test_a_directory_is_summed_up(tmp_path: Path) -> None:
    found = inspect(hf_directory(tmp_path / "tiny", {"a": torch.ones(4, 8), "b": torch.ones(3)}))
    assert found.kind == "safetensors"
    assert found.name == "tiny"
    assert found.architecture == "LlamaForCausalLM"
    assert found.parameters == 35
    assert found.nbytes == (tmp_path / "tiny" / "model.safetensors").stat().st_size
    assert found.bits_per_weight == 32
    assert found.types["F32"].tensors == 2
    assert found.types["F32"].nbytes == 140
    assert found.tokenizer is None
    assert found.problems == ()


def test_a_bare_safetensors_file_needs_no_config(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2, 2)}, tmp_path / "model-00001-of-00002.safetensors")
    found = inspect(tmp_path / "model-00001-of-00002.safetensors")
    assert found.architecture is None
    assert found.parameters == 4


def test_a_gguf_is_summed_up(tmp_path: Path) -> None:
    expected = quantized_gguf(tmp_path / "tiny.gguf", **{"tokenizer.chat_template": "{{ x }}"})
    found = inspect(tmp_path / "tiny.gguf")
    assert found.kind == "gguf"
    assert found.architecture == "llama"
    assert {row.dtype: row.bits_per_weight for row in found.tensors} == {
        "F32": 32,
        "F16": 16,
        "BF16": 16,
        "Q8_0": 8.5,
        "Q4_0": 4.5,
    }
    assert found.bits_per_weight == pytest.approx((32 + 16 + 16 + 8.5 + 4.5) / 5)
    for name, decoded in expected.items():
        values = values_of(found, name)
        assert values.minimum == decoded.min()
        assert values.maximum == decoded.max()
        assert values.abs_max == np.abs(decoded).max()
    assert found.tokenizer is not None
    assert found.tokenizer.model == "gpt2"
    assert found.tokenizer.vocab_size == 3
    assert found.tokenizer.special_tokens == {"bos": "<s>"}
    assert found.tokenizer.chat_template
    assert "quantized already" in found.warnings[0]


def test_damage_is_counted_per_value_and_row(tmp_path: Path) -> None:
    rows = torch.tensor(
        [
            [0.0, -0.0, 0.0],
            [2.5, 2.5, 2.5],
            [1.0, math.nan, -3.0],
            [math.inf, -math.inf, 2.0],
            [math.nan, math.nan, math.nan],
            [4.0, 4.0, math.inf],
        ]
    )
    assert inspected(tmp_path, rows) == ValueSummary(
        nans=4,
        infs=3,
        zero_rows=1,
        constant_rows=1,
        minimum=-3.0,
        maximum=4.0,
        abs_max=4.0,
    )


def test_problems_name_damaged_and_empty_tensors(tmp_path: Path) -> None:
    broken = torch.tensor([[1.0, math.nan], [math.inf, 1.0]])
    values = {"fine": torch.ones(2), "broken": broken, "nothing": torch.zeros(3, 3)}
    problems = inspect(hf_directory(tmp_path, values)).problems
    assert len(problems) == 2
    assert any("'broken': 1 NaN and 1 infinite" in problem for problem in problems)
    assert any("'nothing': all values are zero" in problem for problem in problems)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.int8,
        torch.uint8,
        torch.int16,
        torch.uint16,
        torch.int32,
        torch.uint32,
        torch.int64,
        torch.uint64,
    ],
    ids=str,
)
def test_every_type_is_counted(tmp_path: Path, dtype: torch.dtype) -> None:
    values = inspected(tmp_path, torch.tensor([[0.0, 0.0], [3.0, 96.0]]).to(dtype))
    assert (values.minimum, values.maximum, values.zero_rows) == (0.0, 96.0, 1)


def test_bools_count_as_zero_and_one(tmp_path: Path) -> None:
    values = inspected(tmp_path, torch.tensor([[False, True]]))
    assert (values.minimum, values.maximum) == (0.0, 1.0)


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (2, 0, 3)])
def test_an_empty_tensor_has_no_extremes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = inspected(tmp_path, torch.zeros(shape))
    assert (values.minimum, values.abs_max, values.zero_rows) == (None, None, 0)


def test_an_empty_tensor_has_no_bits_per_weight(tmp_path: Path) -> None:
    found = inspect(hf_directory(tmp_path, {"w": torch.zeros(0, 3)}))
    assert found.bits_per_weight is None
    assert found.tensors[0].bits_per_weight is None
    assert found.problems == ()


def test_a_single_number_is_not_a_constant_row(tmp_path: Path) -> None:
    assert inspected(tmp_path, torch.full((3, 1), 2.0)).constant_rows == 0


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    slab=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_slabs_of_any_size_count_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    columns: int,
    slab: int,
    seed: int,
) -> None:
    pool = torch.tensor([0.0, 1.0, 1.0, -2.0, math.nan, math.inf])
    picks = np.random.default_rng(seed).integers(0, [1, 3, 6][seed % 3], (rows, columns))
    value = pool[torch.from_numpy(picks)]
    whole = inspected(tmp_path, value)
    with monkeypatch.context() as patch:
        patch.setattr(inspection._values, "_SLAB", slab)
        assert inspected(tmp_path, value) == whole
    assert whole.nans == int(value.isnan().sum())
    assert whole.infs == int(value.isinf().sum())
    assert whole.zero_rows == int((value == 0).all(dim=1).sum())
    finite = value[value.isfinite()]
    assert whole.maximum == (finite.max().item() if len(finite) else None)


def test_a_long_quantized_row_is_read_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = quantized_gguf(tmp_path / "tiny.gguf")["e.weight"]
    monkeypatch.setattr(inspection._values, "_SLAB", 40)
    values = values_of(inspect(tmp_path / "tiny.gguf"), "e.weight")
    assert (values.minimum, values.maximum) == (expected.min(), expected.max())


def test_one_row_of_any_length_is_streamed(tmp_path: Path) -> None:
    size = 400_000_000
    header = {"w": {"dtype": "I8", "shape": [size], "data_offsets": [0, size]}}
    path = beside_config(tmp_path, safetensors_bytes(header))
    os.truncate(path, path.stat().st_size + size)
    process = psutil.Process()
    start, most, seen = process.memory_info().rss, 0, 0

    def watch(_name: str, _done: int, _total: int) -> None:
        nonlocal most, seen
        seen += 1
        most = max(most, process.memory_info().rss - start)

    values = values_of(inspect(path, progress=watch))
    assert seen > 50
    assert values.zero_rows == 1
    assert most < 128 * 2**20


def test_headers_alone_read_no_values(tmp_path: Path) -> None:
    directory = hf_directory(tmp_path)
    seen: list[str] = []
    found = inspect(directory, values=False, progress=lambda name, *_: seen.append(name))
    assert all(row.values is None for row in found.tensors)
    assert not seen
    assert found.problems == ()


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    directory = hf_directory(tmp_path, {"a": torch.ones(4, 8), "b": torch.ones(3)})
    inspect(directory, progress=lambda *call: seen.append(call))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1][1:] == (140, 140)


def test_the_json_form_is_plain_json(tmp_path: Path) -> None:
    directory = hf_directory(tmp_path, {"w": torch.tensor([[math.nan, math.inf]])})
    found = inspect(directory).to_json()
    assert json.loads(json.dumps(found, allow_nan=False))["path"] == str(directory)
    assert found["tensors"][0]["values"]["abs_max"] is None


def with_files(directory: Path, **files: object) -> Path:
    hf_directory(directory, {"w": torch.ones(2, 2)})
    for name, content in files.items():
        path = directory / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return directory


def test_a_tokenizer_json_is_summed_up(tmp_path: Path) -> None:
    tokenizer = {
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "<s>": 2}},
        "added_tokens": [{"content": "<s>"}, {"content": "</s>"}],
    }
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None}
    directory = with_files(
        tmp_path,
        tokenizer__json=tokenizer,
        tokenizer_config__json=config,
        special_tokens_map__json={"unk_token": "?", "bos_token": "old"},
        chat_template__jinja="{{ x }}",
    )
    found = inspect(directory).tokenizer
    assert found is not None
    assert (found.model, found.vocab_size, found.chat_template) == ("BPE", 4, True)
    assert found.special_tokens == {"bos": "<s>", "eos": "</s>", "unk": "?"}


def test_a_unigram_vocabulary_is_counted(tmp_path: Path) -> None:
    tokenizer = {"model": {"type": "Unigram", "vocab": [["a", 0.0], ["b", -1.0]]}}
    found = inspect(with_files(tmp_path, tokenizer__json=tokenizer)).tokenizer
    assert found is not None
    assert (found.model, found.vocab_size, found.chat_template) == ("Unigram", 2, False)


def test_older_tokenizer_files_are_known(tmp_path: Path) -> None:
    files = {"vocab__json": {"a": 0, "b": 1}, "added_tokens__json": {"c": 2}}
    found = inspect(with_files(tmp_path / "a", **files)).tokenizer
    assert found is not None
    assert (found.model, found.vocab_size) == ("BPE", 3)
    found = inspect(with_files(tmp_path / "b", tokenizer__model="binary")).tokenizer
    assert found is not None
    assert (found.model, found.vocab_size) == ("SentencePiece", None)


def test_an_unsound_tokenizer_is_a_problem_not_an_end(tmp_path: Path) -> None:
    found = inspect(with_files(tmp_path, tokenizer__json="{", tokenizer_config__json="[]"))
    assert len(found.problems) == 2
    assert found.problems[0].startswith("tokenizer.json: not valid JSON")
    assert found.problems[1].startswith("tokenizer_config.json: holds a JSON list")


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(model=ODD, vocab=ODD, added=ODD, config=st.dictionaries(st.text(max_size=3), ODD))
def test_no_tokenizer_file_stops_an_inspection(
    tmp_path: Path, model: object, vocab: object, added: object, config: dict[str, object]
) -> None:
    tokenizer = {"model": model, "added_tokens": added}
    if isinstance(model, dict):
        tokenizer["model"] = {**model, "vocab": vocab, "type": added}
    directory = with_files(tmp_path, tokenizer__json=tokenizer, vocab__json={"a": 0})
    (directory / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": vocab}))
    assert inspect(directory).tokenizer is not None


def test_a_model_type_stands_in_for_the_architecture(tmp_path: Path) -> None:
    directory = hf_directory(tmp_path, {"w": torch.ones(2, 2)})
    (directory / "config.json").write_text('{"architectures": [], "model_type": "llama"}')
    assert inspect(directory).architecture == "llama"
    (directory / "config.json").write_text('{"architectures": "x", "model_type": 3}')
    assert inspect(directory).architecture is None


def test_a_gguf_without_metadata_is_summed_up(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(gguf_bytes(tensor_list=[listed()]))
    found = inspect(tmp_path / "x.gguf")
    assert (found.architecture, found.tokenizer, found.name) == (None, None, "x")
    assert len(found.problems) == 1
    assert found.problems[0].startswith("tensor 'w': all values are zero")


def test_a_hostile_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnreadableInput, match="version .4 bytes. goes beyond"):
        inspect(tmp_path / "x.gguf")
