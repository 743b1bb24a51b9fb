"""A quantized checkpoint is read as the plain one it stands for."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from checkpoint.written import hf_directory
from qconv._recent import Recent
from qconv.checkpoint import Checkpoint, DecodedCheckpoint, open_checkpoint
from qconv.errors import BrokenPlugin, UnreadableInput, UnsupportedGrid
from qconv.grids import UniformGrid
from qconv.plugin import EncodedTensor, ModelInfo
from qconv.tensors import QuantTensor
from toy_packed import GRID, PackedSource, quantized, save_packed, small_packed


class Counting(PackedSource):
    def __init__(self) -> None:
        self.decoded: list[str] = []

    def decode(self, tensor: EncodedTensor, parts: Mapping[str, torch.Tensor]) -> QuantTensor:
        self.decoded.append(tensor.name)
        return super().decode(tensor, parts)


def opened(directory: Path, source: PackedSource | None = None) -> DecodedCheckpoint:
    return DecodedCheckpoint(open_checkpoint(directory), source or PackedSource(), "toy-packed")


def test_the_model_is_that_of_the_float_checkpoint(tmp_path):
    small_packed(tmp_path)
    with opened(tmp_path) as checkpoint:
        infos = checkpoint.model.tensors.values()
        assert {(info.name, info.shape, info.dtype, info.nbytes) for info in infos} == {
            ("up.weight", (6, 64), "BF16", 768),
            ("down.weight", (6, 64), "BF16", 768),
            ("embed.weight", (10, 64), "BF16", 1280),
            ("norm.weight", (64,), "BF16", 128),
        }


def test_the_config_and_its_file_say_nothing_of_quantization(tmp_path):
    held = {"a.weight": quantized(torch.randn(4, 32))}
    nested = {"dtype": "float16", "quantization_config": {"bits": 4}}
    save_packed(tmp_path, held, {}, {"text_config": nested, "compression_config": {}})
    (tmp_path / "quantize_config.json").write_text("{}")
    (tmp_path / "generation_config.json").write_text("{}")
    with opened(tmp_path) as checkpoint:
        model = checkpoint.model
        assert model.config == {"text_config": {"dtype": "float16"}}
        assert json.loads(model.files["config.json"]) == model.config
        assert sorted(model.files) == ["config.json", "generation_config.json"]
        assert model.tensors["a.weight"].dtype == "F16"
        assert "quantize_config.json" in checkpoint.stored.model.files


def test_a_config_nested_too_deep_is_refused(tmp_path):
    small_packed(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    deep = json.dumps(config)[:-1] + ', "deep": ' + '{"a": ' * 600 + "1" + "}" * 601
    (tmp_path / "config.json").write_text(deep)
    with pytest.raises(UnreadableInput, match="config.json.* nested too deep"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("config", "dtype"),
    [({}, "F32"), ({"torch_dtype": "torch.float16"}, "F16"), ({"dtype": "float64"}, "F32")],
)
def test_the_dtype_is_what_the_config_names(tmp_path, config, dtype):
    save_packed(tmp_path, {"a.weight": quantized(torch.randn(4, 32))}, {}, {"x": 1, **config})
    with opened(tmp_path) as checkpoint:
        assert checkpoint.model.tensors["a.weight"].dtype == dtype


@pytest.mark.parametrize("group_size", [32, "channel", "tensor"])
def test_rows_are_the_decoded_values(tmp_path, group_size):
    held = small_packed(tmp_path, replace(GRID, group_size=group_size))
    with opened(tmp_path) as checkpoint:
        values = held["up.weight"].dequantize()
        assert torch.equal(checkpoint.read_rows("up.weight", 0, 6), values)
        assert torch.equal(checkpoint.read_rows("up.weight", 2, 5), values[2:5])
        assert checkpoint.read_rows("up.weight", 3, 3).shape == (0, 64)
        assert torch.equal(checkpoint.read_part("up.weight", 1, 5, 40), values[1, 5:40])
        raw = checkpoint.read_raw("up.weight", 2, 5).view(torch.bfloat16)
        assert torch.equal(raw, values[2:5].to(torch.bfloat16))


def test_other_tensors_are_read_as_stored(tmp_path):
    small_packed(tmp_path)
    with opened(tmp_path) as checkpoint:
        stored = checkpoint.stored
        assert checkpoint.read_rows("norm.weight", 0, 1).dtype == torch.bfloat16
        for read in ("read_rows", "read_raw"):
            ours, theirs = (
                getattr(each, read)("embed.weight", 2, 9) for each in (checkpoint, stored)
            )
            assert torch.equal(ours, theirs)
        assert torch.equal(
            checkpoint.read_part("embed.weight", 1, 0, 8), stored.read_part("embed.weight", 1, 0, 8)
        )
        assert checkpoint.fingerprint() == stored.fingerprint()
        assert checkpoint.nbytes == stored.nbytes


def test_parts_are_no_tensors_of_the_model(tmp_path):
    small_packed(tmp_path)
    with opened(tmp_path) as checkpoint:
        for read in (checkpoint.read_rows, checkpoint.read_raw):
            with pytest.raises(KeyError, match="no tensor 'up.codes'"):
                read("up.codes", 0, 1)
        with pytest.raises(ValueError, match="rows 2:7 are not within its 6 rows"):
            checkpoint.read_rows("up.weight", 2, 7)


def test_a_quantized_tensor_may_have_the_name_of_its_part(tmp_path):
    held = quantized(torch.randn(4, 32))

    class Same(PackedSource):
        def tensors(self, model, read):
            parts = ("a.weight", "a.scale")
            return [EncodedTensor(name="a.weight", shape=(4, 32), parts=parts, grid=GRID)]

        def decode(self, tensor, parts):
            parameters = {"scale": parts["a.scale"]}
            return QuantTensor(grid=GRID, codes=parts["a.weight"], parameters=parameters)

    hf_directory(tmp_path, {"a.weight": held.codes, "a.scale": held.parameters["scale"]})
    with opened(tmp_path, Same()) as checkpoint:
        assert list(checkpoint.model.tensors) == ["a.weight"]
        assert checkpoint.stored_nbytes("a.weight") == 4 * 32 + 4 * 2
        assert torch.equal(checkpoint.read_rows("a.weight", 0, 4), held.dequantize())


def test_codes_and_parameters_are_there_as_they_are(tmp_path):
    held = small_packed(tmp_path)
    with opened(tmp_path) as checkpoint:
        assert checkpoint.held_grids == {"up.weight": GRID, "down.weight": GRID}
        assert checkpoint.held("up.weight").same(held["up.weight"])
        with pytest.raises(KeyError, match="'norm.weight' is not quantized"):
            checkpoint.held("norm.weight")


def test_slabs_of_a_tensor_decode_it_once(tmp_path):
    small_packed(tmp_path)
    source = Counting()
    with opened(tmp_path, source) as checkpoint:
        for row in range(6):
            checkpoint.read_rows("up.weight", row, row + 1)
        checkpoint.read_rows("down.weight", 0, 6)
        checkpoint.held("up.weight")
    assert source.decoded == ["up.weight", "down.weight"]


def test_the_user_is_told_that_quantizing_twice_loses_twice(tmp_path):
    small_packed(tmp_path)
    with opened(tmp_path) as checkpoint:
        (warning,) = checkpoint.warnings
        assert "quantized already (2 int4_g32 tensors, toy-packed)" in warning
        assert "quantizing twice loses twice" in warning
        assert "qconv transcode" in warning


def test_it_is_a_checkpoint_and_its_memory_is_stated(tmp_path):
    small_packed(tmp_path)
    with opened(tmp_path) as checkpoint:
        as_declared: Checkpoint = checkpoint
        assert as_declared.model.name == tmp_path.name
        codes, scales = 6 * 64, 6 * 2 * 2
        assert checkpoint.working_nbytes(2) == 4 * (codes + scales) + 2 * 4 * codes


# --- the border to the source ---------------------------------------------------------------------

WHOLE = EncodedTensor(name="up.weight", shape=(6, 64), parts=("up.codes", "up.scale"), grid=GRID)


def refused(tmp_path: Path, *tensors: object, match: str, error: type[Exception] = BrokenPlugin):
    class Claiming(PackedSource):
        def tensors(self, model: ModelInfo, read):
            return tensors

    small_packed(tmp_path)
    with pytest.raises(error, match=match):
        opened(tmp_path, Claiming())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"parts": ()}, "plugin author: source 'toy-packed' tensor 'up.weight' has no parts"),
        ({"parts": ("up.codes", "up.zeros")}, "names part 'up.zeros', which the checkpoint does"),
        ({"shape": (6, 0)}, r"has shape \(6, 0\), which must be \(out, in\), both positive"),
        ({"shape": (384,)}, r"has shape \(384,\), which must be \(out, in\)"),
        ({"name": "embed.weight"}, "decodes a tensor 'embed.weight', but the checkpoint stores"),
    ],
)
def test_an_unsound_account_is_the_plugins_fault(tmp_path, change, match):
    refused(tmp_path, replace(WHOLE, **change), match=match)


def test_two_tensors_of_one_name_or_part_are_the_plugins_fault(tmp_path):
    refused(tmp_path, WHOLE, WHOLE, match="names tensor 'up.weight' twice")
    other = replace(WHOLE, name="down.weight")
    refused(tmp_path, WHOLE, other, match="'up.weight' and 'down.weight' both name part 'up.codes'")


def test_a_source_may_read_what_says_what_others_hold(tmp_path):
    seen = []

    class Reading(PackedSource):
        def tensors(self, model, read):
            seen.append(read("norm.weight"))
            return super().tensors(model, read)

    small_packed(tmp_path)
    with opened(tmp_path, Reading()) as checkpoint:
        assert (seen[0].shape, seen[0].dtype) == ((64,), torch.bfloat16)
        assert len(checkpoint.encoded) == 2


def test_what_is_no_tensor_is_the_plugins_fault(tmp_path):
    refused(tmp_path, "up.weight", match="gave a str, no EncodedTensor")


def test_a_shape_that_does_not_suit_the_grid_is_unsupported(tmp_path):
    grid = replace(GRID, group_size=48)
    refused(
        tmp_path,
        replace(WHOLE, grid=grid),
        match="source 'toy-packed': tensor 'up.weight': 64 columns are not a multiple of group",
        error=UnsupportedGrid,
    )


@pytest.mark.parametrize(
    ("result", "error", "match"),
    [
        ("nonsense", BrokenPlugin, r"decode\(\) of tensor 'up.weight' gave a str, no QuantTensor"),
        (ZeroDivisionError("oh"), BrokenPlugin, r"'up.weight' failed: ZeroDivisionError: oh"),
        (UnreadableInput("bad zeros"), UnreadableInput, "^bad zeros$"),
        (
            quantized(torch.ones(6, 64), UniformGrid(bits=8, symmetric=True, group_size=32)),
            BrokenPlugin,
            r"gave shape \(6, 64\) on grid int8_g32, but tensors\(\) said \(6, 64\) on int4_g32",
        ),
    ],
)
def test_what_decode_gives_is_checked(tmp_path, result, error, match):
    class Wrong(PackedSource):
        def decode(self, tensor, parts):
            if isinstance(result, Exception):
                raise result
            return result

    small_packed(tmp_path)
    with opened(tmp_path, Wrong()) as checkpoint, pytest.raises(error, match=match):
        checkpoint.read_rows("up.weight", 0, 1)


def test_a_source_that_fails_in_tensors_is_named(tmp_path):
    class Failing(PackedSource):
        def tensors(self, model, read):
            raise KeyError("bits")

    small_packed(tmp_path)
    with pytest.raises(BrokenPlugin, match=r"'toy-packed': tensors\(\) failed: KeyError: 'bits'"):
        opened(tmp_path, Failing())


# --- what is kept ---------------------------------------------------------------------------------


def test_the_values_asked_for_last_are_kept():
    made = []
    recent = Recent(lambda key: made.append(key) or key, keep=2)
    assert [recent[key] for key in "abacab"] == list("abacab")
    assert made == list("abcb")


def test_threads_wait_for_what_another_makes():
    made, gate = [], threading.Event()

    def slowly(key: str) -> str:
        made.append(key)
        gate.wait(10)
        return key

    recent = Recent(slowly, keep=1)
    threads = [threading.Thread(target=recent.__getitem__, args=("a",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert made == ["a"]


def test_what_failed_is_made_again():
    attempts = iter([ValueError("once"), "there"])

    def make(key: str) -> str:
        attempt = next(attempts)
        if isinstance(attempt, Exception):
            raise attempt
        return attempt

    recent = Recent(make, keep=1)
    with pytest.raises(ValueError, match="once"):
        recent["a"]
    assert recent["a"] == "there"
