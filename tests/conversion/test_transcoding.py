"""A transcoding changes the format and no value, proves it, and refuses whatever would round."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors.torch import load_file

import qconv
import toy_packed
from checkpoint.written import hf_directory, quantized_gguf
from qconv.checkpoint import DecodedCheckpoint, open_checkpoint
from qconv.errors import BrokenPlugin, OutputExists, UnreadableInput, Unsupported, UsageError
from qconv.grids import ActivationGrid, UniformGrid
from qconv.plugin import (
    Comparing,
    ConversionFailed,
    ConversionStarted,
    Dropped,
    EncodedTensor,
    TensorFinished,
    TensorPlans,
)
from qconv.tensors import QuantTensor
from toy_packed import (
    GRID,
    PackedBackend,
    PackedReader,
    PackedSource,
    quantized,
    save_packed,
    small_packed,
)

SCHEMAS = Path(__file__).parents[2] / "schemas"

pytestmark = pytest.mark.usefixtures("toy_packed")


def decoded(folder: Path) -> dict[str, torch.Tensor]:
    with DecodedCheckpoint(open_checkpoint(folder), PackedSource(), "toy") as checkpoint:
        return {
            name: checkpoint.read_rows(name, 0, info.numel // info.shape[-1])
            for name, info in checkpoint.model.tensors.items()
        }


def assert_same(source: Path, artifact: Path) -> None:
    before, after = decoded(source), decoded(artifact)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("grid", "format_name", "recoded"),
    [
        (GRID, "same", 0),
        (GRID, "zeros", 2),
        (replace(GRID, symmetric=False), "zeros", 0),
        (replace(GRID, group_size="channel"), "fine", 2),
        (replace(GRID, group_size="tensor"), "same", 0),
        (replace(GRID, group_size="tensor"), "fine", 2),
        (replace(GRID, scale_dtype="bfloat16"), "half", 2),
    ],
)
def test_every_value_stays_what_it_was(tmp_path, grid, format_name, recoded):
    small_packed(tmp_path / "model", grid)
    done = qconv.transcode(tmp_path / "model", f"toypack:{format_name}", out=tmp_path / "out")
    assert_same(tmp_path / "model", tmp_path / "out" / f"model-{format_name}")
    assert (done.compared, done.recoded) == ((4,), (recoded,))
    assert done.family == "toy-packed"


def test_codes_are_not_decoded_and_rounded_again(tmp_path):
    wasteful = QuantTensor(  # no rounding of its values would choose these codes
        grid=GRID,
        codes=torch.ones(4, 32, dtype=torch.int8),
        parameters={"scale": torch.full((4, 1), 0.5, dtype=torch.float16)},
    )
    save_packed(tmp_path / "model", {"a.weight": wasteful}, {})
    qconv.transcode(tmp_path / "model", "toypack:same", out=tmp_path)
    written = load_file(tmp_path / "model-same" / "model.safetensors")
    assert torch.equal(written["a.codes"], wasteful.codes)


def test_there_and_back_gives_the_same_tensors(tmp_path):
    small_packed(tmp_path / "model")
    qconv.transcode(tmp_path / "model", "toypack:zeros", out=tmp_path)
    qconv.transcode(tmp_path / "model-zeros", "toypack:signed", out=tmp_path)
    first, last = (
        load_file(tmp_path / name / "model.safetensors") for name in ("model", "model-zeros-signed")
    )
    assert all(torch.equal(value, last[name]) for name, value in first.items())


def test_several_targets_and_slabs_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("qconv.planning._needs.SLAB_WEIGHTS", 100)
    small_packed(tmp_path / "model")
    targets = ["toypack:same", "toypack:zeros", "toypack:fine"]
    done = qconv.transcode(tmp_path / "model", targets, out=tmp_path / "out", threads=2)
    assert (done.compared, done.recoded) == ((4, 4, 4), (0, 2, 2))
    for name in ("same", "zeros", "fine"):
        assert_same(tmp_path / "model", tmp_path / "out" / f"model-{name}")


def test_the_json_satisfies_its_schema(tmp_path):
    small_packed(tmp_path / "model")
    done = qconv.transcode(tmp_path / "model", "toypack:zeros", out=tmp_path)
    document = json.loads(json.dumps(done.to_json()))
    jsonschema.validate(document, json.loads((SCHEMAS / "transcoding.schema.json").read_text()))
    (artifact,) = document["artifacts"]
    assert artifact["all_equal"] is True
    assert (artifact["tensors_compared"], artifact["tensors_recoded"]) == (4, 2)
    assert [len(file["sha256"]) for file in artifact["files"]] == [64, 64]
    assert document["warnings"] == []  # nothing is quantized twice here


def test_the_backend_is_told_what_is_held(tmp_path, monkeypatch):
    asked = []
    plan_tensors = PackedBackend.plan_tensors
    monkeypatch.setattr(
        PackedBackend,
        "plan_tensors",
        lambda self, request: asked.append(request) or plan_tensors(self, request),
    )
    small_packed(tmp_path / "model")
    qconv.transcode(tmp_path / "model", "toypack:same", out=tmp_path)
    assert asked[0].held == {"up.weight": GRID, "down.weight": GRID}
    assert asked[0].method == ()


# --- what is refused ------------------------------------------------------------------------------


def refused(tmp_path: Path, target: str, match: str, error: type[Exception] = Unsupported) -> None:
    before = left_in(tmp_path)
    with pytest.raises(error, match=match):
        qconv.transcode(tmp_path / "model", target, out=tmp_path)
    assert left_in(tmp_path) == before


def test_a_float_checkpoint_has_nothing_to_transcode(tmp_path):
    hf_directory(tmp_path / "model")
    match = r"nothing to transcode: .*decoded: .*toy-packed.*; use qconv convert"
    refused(tmp_path, "toypack:same", match, UsageError)
    save_packed(tmp_path / "model", {}, {"a.weight": torch.ones(2, 2)})
    refused(tmp_path, "toypack:same", match, UsageError)


def test_a_gguf_is_refused_with_what_to_do(tmp_path):
    quantized_gguf(tmp_path / "model.gguf")
    with pytest.raises(UsageError, match="codes of a GGUF are not carried over .*qconv convert"):
        qconv.transcode(tmp_path / "model.gguf", "toypack:same", out=tmp_path)


def test_a_target_that_would_round_is_refused(tmp_path):
    small_packed(tmp_path / "model")
    refused(
        tmp_path,
        "toypack:greedy",
        "toypack:greedy would round tensor 'embed.weight' to int4_g32, which the source holds as "
        "floats, and transcode never rounds; .*qconv convert",
    )


def test_a_target_that_would_decode_is_refused(tmp_path):
    small_packed(tmp_path / "model")
    refused(
        tmp_path,
        "toypack:float",
        "toypack:float would decode tensor '(up|down).weight' to BF16, .*: that is no transcoding; "
        "use qconv convert for a float artifact",
    )


def test_values_that_the_target_cannot_hold_name_their_tensor(tmp_path):
    grid = replace(GRID, scale_dtype="float32")
    held = {
        "a.weight": quantized(torch.randn(4, 32), grid),
        "b.weight": quantized(torch.randn(4, 32) * 1e-9, grid),
    }
    held["a.weight"].parameters["scale"].mul_(0).add_(0.25)
    save_packed(tmp_path / "model", held, {})
    refused(tmp_path, "toypack:half", "tensor 'b.weight': 4 of 4 scales do not fit float16 exact")


def test_zero_points_off_the_middle_cannot_become_symmetric(tmp_path):
    grid = replace(GRID, symmetric=False)
    held = {"a.weight": quantized(torch.rand(4, 32), grid)}
    save_packed(tmp_path / "model", held, {})
    refused(tmp_path, "toypack:signed", "tensor 'a.weight': 4 of 4 groups do not fit int4_g32")


def test_a_scale_that_is_no_number_is_damage(tmp_path):
    held = small_packed(tmp_path / "model")
    held["up.weight"].parameters["scale"][2, 1] = float("nan")
    save_packed(tmp_path / "model", held, {})
    refused(
        tmp_path,
        "toypack:same",
        "tensor 'up.weight': 1 of 12 values of its scale are NaN or infinite; .*damaged",
        UnreadableInput,
    )


def test_what_exists_is_kept_unless_forced(tmp_path):
    small_packed(tmp_path / "model")
    qconv.transcode(tmp_path / "model", "toypack:same", out=tmp_path)
    with pytest.raises(OutputExists, match="pass --force"):
        qconv.transcode(tmp_path / "model", "toypack:same", out=tmp_path)
    qconv.transcode(tmp_path / "model", "toypack:same", out=tmp_path, force=True)


def test_wrong_requests_are_told(tmp_path):
    small_packed(tmp_path / "model")
    for targets, threads, match in (
        ([], None, "no target given"),
        (["toypack:same", "toypack:SAME"], None, "a target is given twice"),
        ("toypack:sam", None, "did you mean toypack:same"),
        ("toypack:same", 0, "threads 0: at least one is needed"),
    ):
        with pytest.raises(UsageError, match=match):
            qconv.transcode(tmp_path / "model", targets, threads=threads)


def test_quantized_tensors_that_are_left_out_are_warned_about(tmp_path, monkeypatch):
    plan_tensors = PackedBackend.plan_tensors

    def dropping(self, request):
        plans = plan_tensors(self, request).tensors
        kept = tuple(plan for plan in plans if plan.name != "up.weight")
        return TensorPlans(tensors=kept, dropped=(Dropped(name="up.weight", reason="so"),))

    monkeypatch.setattr(PackedBackend, "plan_tensors", dropping)
    small_packed(tmp_path / "model")
    done = qconv.transcode(tmp_path / "model", "toypack:same", out=tmp_path)
    assert done.compared == (3,)
    assert done.to_json()["warnings"] == [
        "toypack:same: leaves quantized tensors of the source out: tensor up.weight"
    ]


# --- the proof ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "wrong", "match"),
    [
        ("read", lambda self, name: torch.zeros(1), "has shape .* in the artifact, not"),
        ("tensors", property(lambda self: {}), "the artifact lacks tensor"),
    ],
)
def test_an_artifact_that_reads_otherwise_gets_no_name(tmp_path, monkeypatch, method, wrong, match):
    small_packed(tmp_path / "model")
    monkeypatch.setattr(PackedReader, method, wrong)
    refused(tmp_path, "toypack:same", match, RuntimeError)


def test_a_value_that_changed_is_an_internal_error_and_leaves_nothing(tmp_path, monkeypatch):
    encode = PackedBackend.encode

    def wrong(self, plan, value):
        buffers = [bytearray(each) for each in encode(self, plan, value)]
        if plan.name == "up.weight":
            buffers[0][3] ^= 1
        return buffers

    monkeypatch.setattr(PackedBackend, "encode", wrong)
    small_packed(tmp_path / "model")
    events = []
    with pytest.raises(
        RuntimeError,
        match=r"toypack:same: tensor 'up.weight': row 0, column 3: .* becomes .* in the artifact",
    ):
        qconv.transcode(tmp_path / "model", "toypack:same", out=tmp_path, observer=events.append)
    assert left_in(tmp_path) == ["model"]
    assert isinstance(events[-1], ConversionFailed)


def test_a_reader_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fails(self, path):
        raise BrokenPlugin("no reader")

    monkeypatch.setattr(PackedBackend, "open", fails)
    small_packed(tmp_path / "model")
    refused(tmp_path, "toypack:same", "no reader", BrokenPlugin)


def test_a_cast_that_changes_a_float_is_refused(tmp_path, monkeypatch):
    def casting(info, grid):
        plan = plan_of(info, grid)
        return plan if grid else replace(plan, dtype="float16", storage="F16", action="cast")

    plan_of = toy_packed._plan
    monkeypatch.setattr(toy_packed, "_plan", casting)
    held = {"a.weight": quantized(torch.randn(4, 32))}
    norm = torch.tensor([1.0, 2.0, 1e-30], dtype=torch.float32)
    save_packed(tmp_path / "model", held, {"norm.weight": norm})
    refused(
        tmp_path,
        "toypack:same",
        r"tensor 'norm.weight': row 0, column 2: 1.0\d*e-30 "
        "becomes 0.0 as F16, and a transcoding changes no value",
    )
    save_packed(tmp_path / "model", held, {"norm.weight": norm[:2]})
    assert qconv.transcode(tmp_path / "model", "toypack:same", out=tmp_path).compared == (2,)


def test_numbers_that_are_none_stay_as_they_are(tmp_path):
    held = {"a.weight": quantized(torch.randn(4, 32))}
    mask = torch.tensor([float("nan"), float("-inf"), -0.0])
    save_packed(tmp_path / "model", held, {"mask.weight": mask})
    assert qconv.transcode(tmp_path / "model", "toypack:same", out=tmp_path).compared == (2,)


# --- how inputs are quantized ---------------------------------------------------------------------

DYNAMIC = ActivationGrid(bits=8)
STATIC = ActivationGrid(bits=8, scope="tensor", dynamic=False)


def with_inputs(monkeypatch, held: ActivationGrid | None, wanted: ActivationGrid | None) -> list:
    """Let source and target quantize inputs; returns what the backend is given to encode."""
    seen = []
    tensors, decode, encode, plan_of = (
        PackedSource.tensors,
        PackedSource.decode,
        PackedBackend.encode,
        toy_packed._plan,
    )

    def encoding(self, plan, value):
        if plan.grid is not None:
            seen.append(value)
        return encode(self, plan, value)

    def decoding(self, tensor: EncodedTensor, parts):
        static = {"scale": torch.tensor([0.5])} if held == STATIC else {}
        return decode(self, tensor, parts).with_activation(held, static)

    monkeypatch.setattr(
        PackedSource,
        "tensors",
        lambda self, model, read: [
            replace(each, activation=held) for each in tensors(self, model, read)
        ],
    )
    monkeypatch.setattr(PackedSource, "decode", decoding)
    monkeypatch.setattr(PackedBackend, "encode", encoding)
    monkeypatch.setattr(
        toy_packed,
        "_plan",
        lambda info, grid: replace(plan_of(info, grid), activation=wanted if grid else None),
    )
    return seen


def test_static_scales_of_inputs_are_carried_along(tmp_path, monkeypatch):
    seen = with_inputs(monkeypatch, STATIC, STATIC)
    small_packed(tmp_path / "model")
    done = qconv.transcode(tmp_path / "model", "toypack:same", out=tmp_path)
    assert [value.activation_parameters["scale"].tolist() for value in seen] == [[0.5], [0.5]]
    assert done.to_json()["warnings"] == []


@pytest.mark.parametrize(
    ("held", "wanted", "said"),
    [
        (STATIC, None, "not at all instead of int8_tensor_static"),
        (None, DYNAMIC, "int8_token instead of not at all"),
        (STATIC, DYNAMIC, "int8_token instead of int8_tensor_static"),
    ],
)
def test_inputs_that_are_treated_otherwise_are_warned_about(
    tmp_path, monkeypatch, held, wanted, said
):
    seen = with_inputs(monkeypatch, held, wanted)
    small_packed(tmp_path / "model")
    done = qconv.transcode(tmp_path / "model", "toypack:same", out=tmp_path)
    (warning,) = done.to_json()["warnings"]
    assert "inputs of 2 of them are quantized in another way at run time: " + said in warning
    assert [value.activation for value in seen] == [wanted, wanted]


def test_a_static_scale_that_nobody_holds_is_refused(tmp_path, monkeypatch):
    with_inputs(monkeypatch, DYNAMIC, STATIC)
    small_packed(tmp_path / "model")
    refused(
        tmp_path,
        "toypack:same",
        "tensor '(up|down).weight': the format states the scale of its input beforehand, which",
    )


# --- it fails whole and resumes -------------------------------------------------------------------


def test_an_interrupted_transcoding_goes_on_where_it_stopped(tmp_path):
    small_packed(tmp_path / "model")
    written = []

    def interrupt(event):
        if isinstance(event, TensorFinished):
            written.append(event.tensor)
            if len(written) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qconv.transcode(tmp_path / "model", "toypack:zeros", out=tmp_path, observer=interrupt)
    assert left_in(tmp_path) == [".model-zeros.qconv-partial", "model"]
    events = []
    qconv.transcode(tmp_path / "model", "toypack:zeros", out=tmp_path, observer=events.append)
    (started,) = [event for event in events if isinstance(event, ConversionStarted)]
    assert started.resumed_nbytes > 0
    compared = [event.done for event in events if isinstance(event, Comparing)]
    assert compared == [1, 2, 3, 4]
    assert_same(tmp_path / "model", tmp_path / "model-zeros")
    assert left_in(tmp_path) == ["model", "model-zeros"]


def test_an_interrupted_proof_is_taken_again(tmp_path):
    small_packed(tmp_path / "model")

    def interrupt(event):
        if isinstance(event, Comparing) and event.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qconv.transcode(tmp_path / "model", "toypack:zeros", out=tmp_path, observer=interrupt)
    assert left_in(tmp_path) == [".model-zeros.qconv-partial", "model"]
    events = []
    done = qconv.transcode(
        tmp_path / "model", "toypack:zeros", out=tmp_path, observer=events.append
    )
    assert done.compared == (4,)
    assert not any(isinstance(event, TensorFinished) for event in events)
    assert left_in(tmp_path) == ["model", "model-zeros"]


def test_the_bytes_do_not_depend_on_threads(tmp_path):
    small_packed(tmp_path / "model", UniformGrid(bits=4, symmetric=True, group_size=16))
    digests = []
    for threads in (1, 3):
        done = qconv.transcode(
            tmp_path / "model", "toypack:zeros", out=tmp_path / str(threads), threads=threads
        )
        digests.append(done.artifacts[0].sha256)
    assert digests[0] == digests[1]
