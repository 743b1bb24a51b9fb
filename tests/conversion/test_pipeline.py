"""The pipeline writes what was planned, whatever the slabs, threads and interruptions."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch

from qconv.conversion import Steps, check_outputs, run
from qconv.errors import (
    BrokenPlugin,
    NotEnoughResources,
    OutputExists,
    UnreadableInput,
    UnsupportedGrid,
    UsageError,
)
from qconv.planning import Plan, build_plan
from qconv.plugin import (
    ArtifactFinished,
    ConversionFailed,
    ConversionFinished,
    ConversionStarted,
    RowOrder,
    TensorFinished,
)
from toy import MemoryCheckpoint, ToyBackend, reversed_rows

SCHEMAS = Path(__file__).parents[2] / "schemas"


class NoRounder:
    def quantize(self, weight, grid, statistics=None):
        raise AssertionError("nothing here is quantized")


def random_checkpoint() -> MemoryCheckpoint:
    generator = torch.Generator().manual_seed(0)
    return MemoryCheckpoint(
        {
            "a": torch.randn(64, 16, generator=generator).to(torch.bfloat16),
            "b": torch.randn(5, generator=generator),
            "c": torch.randn(3, 7, 4, generator=generator),
        }
    )


def plan_for(
    checkpoint, out: Path, *backends: ToyBackend, slab=None, threads=2, plugins=("toy 1",)
) -> Plan:
    plan = build_plan(
        source=Path("toy"),
        out=out,
        model=checkpoint.model,
        method="rtn",
        streams=True,
        targets=[
            (f"toy:{number}", backend, "plain", {}) for number, backend in enumerate(backends)
        ],
        allow_unused=False,
        threads=threads,
        max_ram=None,
        warnings=(),
        plugins=plugins,
    )
    return replace(plan, needs=replace(plan.needs, slab_weights=slab or plan.needs.slab_weights))


def convert(checkpoint, out: Path, *backends: ToyBackend, resume=True, events=None, **options):
    plan = plan_for(checkpoint, out, *backends, **options)
    observer = (lambda event: None) if events is None else events.append
    return run(plan, checkpoint, Steps(rounder=NoRounder()), resume=resume, observer=observer)


def expected(checkpoint: MemoryCheckpoint, gap: int = 0) -> bytes:
    parts = [tensor.float().numpy().tobytes() for tensor in checkpoint.tensors.values()]
    return b"TOYTOY!\n" + b"".join(part + bytes(gap) for part in parts)


@pytest.mark.parametrize("slab", [1, 40, 1 << 20])
@pytest.mark.parametrize("threads", [1, 3])
def test_bytes_do_not_depend_on_slabs_and_threads(tmp_path, slab, threads):
    checkpoint = random_checkpoint()
    convert(checkpoint, tmp_path, ToyBackend(gap=3), slab=slab, threads=threads)
    assert (tmp_path / "toy.bin").read_bytes() == expected(checkpoint, gap=3)
    assert os.listdir(tmp_path) == ["toy.bin"]


def test_the_digest_is_that_of_the_file(tmp_path):
    result = convert(random_checkpoint(), tmp_path, ToyBackend(gap=5), slab=40)
    digest = hashlib.sha256((tmp_path / "toy.bin").read_bytes()).hexdigest()
    assert result.artifacts[0].sha256 == (digest,)
    assert result.to_json()["artifacts"][0]["files"][0]["sha256"] == digest


def test_targets_share_one_read_of_the_weights(tmp_path):
    checkpoint = random_checkpoint()
    convert(checkpoint, tmp_path, ToyBackend(), ToyBackend(file="other.bin", gap=9))
    assert sorted(name for name, *_ in checkpoint.reads) == ["a", "b", "c"]
    assert (tmp_path / "other.bin").read_bytes() == expected(checkpoint, gap=9)


@pytest.mark.parametrize("slab", [1, 100, 1 << 20])
def test_rows_come_in_the_order_asked_for(tmp_path, slab):
    checkpoint = random_checkpoint()
    order = RowOrder(label="shuffled", index=torch.randperm(64).tolist())
    convert(checkpoint, tmp_path, ToyBackend(changes={"a": {"row_order": order}}), slab=slab)
    written = (tmp_path / "toy.bin").read_bytes()[8 : 8 + 64 * 16 * 4]
    shuffled = checkpoint.tensors["a"].float()[list(order.index)]
    assert written == shuffled.numpy().tobytes()


@pytest.mark.parametrize("slab", [1, 30, 1 << 20])
def test_sources_are_fused_row_after_row(tmp_path, slab):
    checkpoint = MemoryCheckpoint({name: torch.randn(3, 10) for name in "xyz"})
    fused = {"x": {"sources": ("x", "y", "z"), "shape": (9, 10), "row_order": reversed_rows(9)}}

    class Fusing(ToyBackend):
        def plan_tensors(self, request):
            plans = super().plan_tensors(request)
            return replace(plans, tensors=plans.tensors[:1])

    convert(checkpoint, tmp_path, Fusing(changes=fused), slab=slab)
    whole = torch.cat([checkpoint.tensors[name] for name in "xyz"]).flip(0)
    assert (tmp_path / "toy.bin").read_bytes()[8:] == whole.numpy().tobytes()


def test_generated_tensors_have_their_values(tmp_path):
    checkpoint = MemoryCheckpoint({"a": torch.ones(2)})
    change = {"sources": (), "values": (3.0, 4.0), "action": "generate"}
    backend = ToyBackend(changes={"a": change})

    class Dropping(ToyBackend):
        def plan_tensors(self, request):
            plans = backend.plan_tensors(request)
            drop = ToyBackend(drops=["a"]).plan_tensors(request).dropped
            return replace(plans, dropped=drop)

    convert(checkpoint, tmp_path, Dropping())
    assert (tmp_path / "toy.bin").read_bytes()[8:] == torch.tensor([3.0, 4.0]).numpy().tobytes()


def test_events_tell_the_whole_story(tmp_path):
    events = []
    convert(random_checkpoint(), tmp_path, ToyBackend(), slab=512, events=events)
    started, finished = events[0], [e for e in events if isinstance(e, TensorFinished)]
    assert isinstance(started, ConversionStarted)
    assert (started.tensors, started.weights, started.resumed_nbytes) == (3, 1024 + 5 + 84, 0)
    assert sum(event.weights for event in finished) == started.weights
    assert sum(event.nbytes for event in finished) == started.nbytes_out - 8
    assert [event.tensor for event in finished if event.last] == ["a", "b", "c"]
    assert isinstance(events[-2], ArtifactFinished)
    assert isinstance(events[-1], ConversionFinished)


class Stops(Exception):
    """Stands for any sudden end."""


def interrupt_after(count: int):
    seen = []

    def observer(event):
        if isinstance(event, TensorFinished):
            seen.append(event)
        if len(seen) == count:
            raise Stops

    return observer


def interrupted(checkpoint, out, backend, count, slab=64) -> None:
    plan = plan_for(checkpoint, out, backend, slab=slab, threads=1)
    with pytest.raises(Stops):
        run(
            plan,
            checkpoint,
            Steps(rounder=NoRounder()),
            resume=True,
            observer=interrupt_after(count),
        )


def test_an_interrupted_run_leaves_no_final_name_and_is_gone_on_with(tmp_path):
    checkpoint, events = random_checkpoint(), []
    interrupted(checkpoint, tmp_path, ToyBackend(gap=2), 7)
    assert os.listdir(tmp_path) == [".toy.bin.qconv-partial"]
    checkpoint.reads.clear()
    convert(checkpoint, tmp_path, ToyBackend(gap=2), slab=64, threads=1, events=events)
    assert events[0].resumed_nbytes == 7 * 64 * 4
    assert min(start for name, start, _ in checkpoint.reads if name == "a") == 28
    assert (tmp_path / "toy.bin").read_bytes() == expected(checkpoint, gap=2)
    assert os.listdir(tmp_path) == ["toy.bin"]


def test_damage_to_finished_slabs_is_found_and_mended(tmp_path):
    checkpoint, events = random_checkpoint(), []
    interrupted(checkpoint, tmp_path, ToyBackend(), 7)
    grown = tmp_path / ".toy.bin.qconv-partial" / "files" / "toy.bin"
    damaged = bytearray(grown.read_bytes())
    damaged[20] ^= 1
    grown.write_bytes(damaged)
    convert(checkpoint, tmp_path, ToyBackend(), slab=64, events=events)
    assert events[0].resumed_nbytes == 6 * 64 * 4
    assert (tmp_path / "toy.bin").read_bytes() == expected(checkpoint)


def test_a_torn_journal_line_is_passed_over(tmp_path):
    checkpoint = random_checkpoint()
    interrupted(checkpoint, tmp_path, ToyBackend(), 7)
    journal = tmp_path / ".toy.bin.qconv-partial" / "journal.jsonl"
    journal.write_text(journal.read_text()[:-20])
    convert(checkpoint, tmp_path, ToyBackend(), slab=64)
    assert (tmp_path / "toy.bin").read_bytes() == expected(checkpoint)


@pytest.mark.parametrize("change", ["source", "slab", "plugins", "no resume"])
def test_what_does_not_fit_is_not_resumed(tmp_path, change):
    checkpoint, events = random_checkpoint(), []
    interrupted(checkpoint, tmp_path, ToyBackend(), 7)
    if change == "source":
        checkpoint.tensors["a"] = checkpoint.tensors["a"] + 1
    convert(
        checkpoint,
        tmp_path,
        ToyBackend(),
        slab=48 if change == "slab" else 64,
        plugins=("toy 2",) if change == "plugins" else ("toy 1",),
        resume=change != "no resume",
        events=events,
    )
    assert (tmp_path / "toy.bin").read_bytes() == expected(checkpoint)
    assert events[0].resumed_nbytes == 0


def test_a_nan_names_tensor_row_and_column_and_leaves_nothing(tmp_path):
    checkpoint = random_checkpoint()
    checkpoint.tensors["a"][33, 5] = float("nan")
    events = []
    with pytest.raises(UnreadableInput, match=r"tensor 'a' .*row 33, column 5 is nan"):
        convert(checkpoint, tmp_path, ToyBackend(), slab=64, events=events)
    assert os.listdir(tmp_path) == []
    assert isinstance(events[-1], ConversionFailed)


def test_a_value_too_large_for_float16_is_refused(tmp_path):
    checkpoint = random_checkpoint()
    checkpoint.tensors["b"][2] = 1e6
    with pytest.raises(UnsupportedGrid, match="tensor 'b': its largest magnitude 1e\\+06"):
        convert(checkpoint, tmp_path, ToyBackend(changes={"b": {"dtype": "float16"}}))


def test_an_encoder_that_breaks_its_layout_is_the_plugins_fault(tmp_path):
    class Short(ToyBackend):
        def encode(self, plan, value):
            return [super().encode(plan, value)[0][:-1]]

    with pytest.raises(BrokenPlugin, match="plugin author: .*its layout says"):
        convert(random_checkpoint(), tmp_path, Short())
    assert os.listdir(tmp_path) == []


def test_a_full_disk_keeps_what_resume_needs(tmp_path, monkeypatch):
    checkpoint = random_checkpoint()
    real, budget = os.write, [2000]

    def limited(descriptor, data):
        if len(data) > 8 and budget[0] < len(data):
            raise OSError(28, "No space left on device")
        budget[0] -= len(data)
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", limited)
    with pytest.raises(NotEnoughResources, match="disk is full.*goes on where it stopped"):
        convert(checkpoint, tmp_path, ToyBackend(), slab=64)
    assert os.listdir(tmp_path) == [".toy.bin.qconv-partial"]
    monkeypatch.setattr(os, "write", real)
    events = []
    convert(checkpoint, tmp_path, ToyBackend(), slab=64, events=events)
    assert events[0].resumed_nbytes > 0
    assert (tmp_path / "toy.bin").read_bytes() == expected(checkpoint)


def test_two_runs_do_not_write_the_same_artifact(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    partial = tmp_path / ".toy.bin.qconv-partial"
    partial.mkdir()
    with (partial / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another qconv is writing"):
            convert(random_checkpoint(), tmp_path, ToyBackend())


def test_an_existing_output_needs_force(tmp_path):
    checkpoint = random_checkpoint()
    plan = plan_for(checkpoint, tmp_path, ToyBackend())
    (tmp_path / "toy.bin").write_bytes(b"precious")
    with pytest.raises(OutputExists, match="exists; pass --force"):
        check_outputs(tmp_path, plan.targets, Path("toy"), force=False)
    check_outputs(tmp_path, plan.targets, Path("toy"), force=True)
    run(plan, checkpoint, Steps(rounder=NoRounder()), resume=True, observer=lambda event: None)
    assert (tmp_path / "toy.bin").read_bytes() == expected(checkpoint)


def test_the_input_is_never_the_output(tmp_path):
    plan = plan_for(random_checkpoint(), tmp_path, ToyBackend())
    source = tmp_path / "toy.bin"
    source.write_bytes(b"precious")
    with pytest.raises(OutputExists, match="is the input itself"):
        check_outputs(tmp_path, plan.targets, source, force=True)


def test_targets_with_one_name_are_refused(tmp_path):
    plan = plan_for(random_checkpoint(), tmp_path, ToyBackend(), ToyBackend())
    with pytest.raises(UsageError, match="targets toy:0 and toy:1 both write"):
        check_outputs(tmp_path, plan.targets, Path("toy"), force=True)


def test_an_output_directory_that_is_a_file_is_refused(tmp_path):
    out = tmp_path / "file"
    out.write_bytes(b"")
    plan = plan_for(random_checkpoint(), out, ToyBackend())
    with pytest.raises(UsageError, match="is a file; choose a directory"):
        check_outputs(out, plan.targets, Path("toy"), force=True)


def test_a_directory_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    plan = plan_for(random_checkpoint(), tmp_path / "new", ToyBackend())
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UsageError, match="cannot write to output directory .*Permission denied"):
        run(
            plan,
            random_checkpoint(),
            Steps(rounder=NoRounder()),
            resume=True,
            observer=lambda event: None,
        )


def test_a_folder_artifact_is_replaced_as_a_whole(tmp_path):
    checkpoint = random_checkpoint()
    backend = ToyBackend(file="model/weights.bin")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old.bin").write_bytes(b"old")
    convert(checkpoint, tmp_path, backend)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["weights.bin"]


def test_new_files_have_the_users_file_mode(tmp_path):
    convert(random_checkpoint(), tmp_path, ToyBackend())
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "toy.bin").stat().st_mode & 0o777 == 0o666 & ~umask


def test_the_json_satisfies_its_schema(tmp_path):
    schema = json.loads((SCHEMAS / "conversion.schema.json").read_text())
    result = convert(random_checkpoint(), tmp_path, ToyBackend())
    jsonschema.validate(json.loads(json.dumps(result.to_json())), schema)
