"""What stands where an artifact goes is never lost, and two runs never mix."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qconv.conversion import Steps, check_outputs, run
from qconv.conversion._journal import read_journal
from qconv.conversion._partial import claimed, remove_claimed
from qconv.errors import OutputExists, UnreadableInput, UsageError
from qconv.planning import Plan, build_plan
from qconv.plugin import ArtifactFinished, ConversionStarted, TensorFinished
from toy import MemoryCheckpoint, ToyBackend, reversed_rows

SOURCE = Path("toy")


def checkpoint() -> MemoryCheckpoint:
    return MemoryCheckpoint({"a": torch.arange(640.0).reshape(64, 10), "b": torch.ones(5)})


def plan_for(out: Path, *backends: ToyBackend, source=None, slab: int = 64) -> Plan:
    plan = build_plan(
        source=SOURCE,
        out=out,
        model=(source or checkpoint()).model,
        method="rtn",
        streams=True,
        targets=[(f"toy:{number}", one, "plain", {}) for number, one in enumerate(backends)],
        allow_unused=False,
        threads=1,
        max_ram=None,
        warnings=(),
    )
    return replace(plan, needs=replace(plan.needs, slab_weights=slab))


def convert(plan: Plan, source=None, observer=lambda event: None, force=True):
    source = source or checkpoint()
    return run(plan, source, Steps(rounder=None), resume=True, observer=observer, force=force)


def whole() -> bytes:
    return b"TOYTOY!\n" + b"".join(t.numpy().tobytes() for t in checkpoint().tensors.values())


def stop_at(kind, exception=KeyboardInterrupt):
    def observer(event):
        if isinstance(event, kind):
            raise exception

    return observer


def test_force_does_not_replace_a_folder_by_a_file(tmp_path):
    (tmp_path / "toy.bin").mkdir()
    (tmp_path / "toy.bin" / "precious").touch()
    plan = plan_for(tmp_path, ToyBackend())
    with pytest.raises(OutputExists, match="is a directory, where a file is to be written"):
        check_outputs(tmp_path, plan.targets, SOURCE, force=True)


def test_force_does_not_replace_a_file_by_a_folder(tmp_path):
    (tmp_path / "model").write_bytes(b"precious")
    plan = plan_for(tmp_path, ToyBackend(file="model/toy.bin"))
    with pytest.raises(OutputExists, match="is a file, where a directory is to be written"):
        check_outputs(tmp_path, plan.targets, SOURCE, force=True)


def test_an_old_folder_comes_back_when_the_new_one_cannot_have_its_name(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old.bin").write_bytes(b"old")
    real = Path.rename

    def refuse(self, target):
        if self.parent.name == "files":
            raise OSError(errno.EIO, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(UsageError, match="cannot write to output directory .*Input/output error"):
        convert(plan_for(tmp_path, ToyBackend(file="model/toy.bin")))
    assert (tmp_path / "model" / "old.bin").read_bytes() == b"old"


def test_a_link_that_leads_nowhere_is_not_replaced_unasked(tmp_path):
    (tmp_path / "toy.bin").symlink_to("gone")
    plan = plan_for(tmp_path, ToyBackend())
    with pytest.raises(OutputExists, match="exists; pass --force"):
        check_outputs(tmp_path, plan.targets, SOURCE, force=False)


def test_the_input_is_known_by_any_of_its_names(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"precious")
    os.link(source, tmp_path / "toy.bin")
    plan = plan_for(tmp_path, ToyBackend())
    with pytest.raises(OutputExists, match="is the input itself"):
        check_outputs(tmp_path, plan.targets, source, force=True)


def test_a_name_too_long_for_the_file_system_is_told_before_any_work(tmp_path):
    plan = plan_for(tmp_path, ToyBackend(file="x" * 245))  # only the hidden folder's is too long
    with pytest.raises(UsageError, match="File name too long; give the model's .* a shorter name"):
        check_outputs(tmp_path, plan.targets, SOURCE, force=False)


def test_a_loop_of_links_is_no_output_directory(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    plan = plan_for(tmp_path / "loop", ToyBackend())
    with pytest.raises(UsageError, match="cannot write to output directory"):
        convert(plan)
    check_outputs(plan.out, plan.targets, SOURCE, force=False)


def test_an_output_that_appears_under_way_is_not_replaced_unasked(tmp_path):
    def appear(event):
        if isinstance(event, ConversionStarted):
            (tmp_path / "toy.bin").write_bytes(b"precious")

    with pytest.raises(OutputExists, match="exists; pass --force"):
        convert(plan_for(tmp_path, ToyBackend()), observer=appear, force=False)
    assert (tmp_path / "toy.bin").read_bytes() == b"precious"


def test_a_run_that_comes_after_another_finished_leaves_nothing_behind(tmp_path):
    (tmp_path / "toy.bin").write_bytes(b"finished since the outputs were checked")
    with pytest.raises(OutputExists, match="exists; pass --force"):
        convert(plan_for(tmp_path, ToyBackend()), force=False)
    assert os.listdir(tmp_path) == ["toy.bin"]


def test_no_other_run_gets_in_before_the_final_name_is_given(tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    plan, real, refused = plan_for(tmp_path, ToyBackend()), Path.replace, []

    def replace_late(self, target):
        with pytest.raises(UsageError, match="another qconv is writing") as error:
            convert(plan)
        refused.append(error)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace_late)
    convert(plan)
    assert refused
    assert (tmp_path / "toy.bin").read_bytes() == whole()


def test_a_folder_is_held_by_one_however_often_it_goes(tmp_path):
    pytest.importorskip("fcntl")
    partial, inside, most = tmp_path / ".x.partial", [], []

    def hold():
        with claimed(partial, tmp_path / "x"):
            inside.append(1)
            (partial / "journal.jsonl").touch()
            most.append(len(inside))
            inside.pop()
            remove_claimed(partial)

    def work():
        for _ in range(300):
            with contextlib.suppress(UsageError):
                hold()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert os.listdir(tmp_path) == []


def test_a_file_system_without_locks_is_written_to_all_the_same(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*args):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    convert(plan_for(tmp_path, ToyBackend()))
    assert (tmp_path / "toy.bin").read_bytes() == whole()


def test_no_artifact_has_its_name_before_all_are_durable(tmp_path, monkeypatch):
    real, named = os.fsync, []

    def fsync(descriptor):
        named.append(sorted(path.name for path in tmp_path.glob("[!.]*")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    convert(plan_for(tmp_path, ToyBackend(), ToyBackend(file="other.bin")))
    assert named[:2] == [[], []]


def test_a_partial_artifact_that_vanishes_is_told(tmp_path):
    def remove(event):
        if isinstance(event, TensorFinished) and event.last and event.tensor == "b":
            (tmp_path / ".toy.bin.qconv-partial" / "files" / "toy.bin").unlink()

    with pytest.raises(UsageError, match="toy.bin' vanished while qconv was writing"):
        convert(plan_for(tmp_path, ToyBackend()), observer=remove)


def test_a_machine_that_fails_costs_no_finished_work(tmp_path, monkeypatch):
    real, calls = os.write, []

    def write(descriptor, data):
        calls.append(data)
        if len(calls) == 8:
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(UsageError, match="Input/output error; choose another with --out"):
        convert(plan_for(tmp_path, ToyBackend()))
    events = []
    convert(plan_for(tmp_path, ToyBackend()), observer=events.append)
    assert events[0].resumed_nbytes > 0
    assert (tmp_path / "toy.bin").read_bytes() == whole()


def test_a_file_larger_than_allowed_is_told(tmp_path, monkeypatch):
    def refuse(descriptor, nbytes):
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(UsageError, match="File too large; the file system or a limit"):
        convert(plan_for(tmp_path, ToyBackend()))


def test_work_in_slabs_is_not_gone_on_with_in_whole_tensors(tmp_path):
    class Whole(ToyBackend):
        def layout(self, request, plans):
            laid = super().layout(request, plans)
            places = {
                name: tuple(replace(place, row_nbytes=None) for place in parts)
                for name, parts in laid.places.items()
            }
            return replace(laid, places=places)

    slabs = ToyBackend()
    with pytest.raises(KeyboardInterrupt):
        convert(plan_for(tmp_path, slabs), observer=stop_at(TensorFinished))
    convert(plan_for(tmp_path, slabs, Whole(file="other.bin")))
    assert (tmp_path / "toy.bin").read_bytes() == whole()
    assert (tmp_path / "other.bin").read_bytes() == whole()


def test_a_journal_of_something_else_is_passed_over(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('5\nnull\n["a", 0, 1]\n[["a"], 0, 1, 2]\n{}\n["a", 0, 1, 7]\n')
    assert [(slab.tensor, checksum) for slab, checksum in read_journal(path).items()] == [("a", 7)]


def test_a_nan_is_located_in_the_source(tmp_path):
    source = checkpoint()
    source.tensors["a"][3, 4] = float("nan")
    backend = ToyBackend(changes={"a": {"name": "blk.a", "row_order": reversed_rows(64)}})
    with pytest.raises(
        UnreadableInput, match=r"tensor 'a' \(for 'blk.a'\): row 3, column 4 is nan"
    ):
        convert(plan_for(tmp_path, backend, source=source), source)


def test_what_is_interrupted_between_two_names_leaves_whole_files(tmp_path):
    backends = ToyBackend(), ToyBackend(file="other.bin")
    with pytest.raises(KeyboardInterrupt):
        convert(plan_for(tmp_path, *backends), observer=stop_at(ArtifactFinished))
    assert (tmp_path / "toy.bin").read_bytes() == whole()
    convert(plan_for(tmp_path, *backends))
    assert (tmp_path / "other.bin").read_bytes() == whole()
    assert sorted(os.listdir(tmp_path)) == ["other.bin", "toy.bin"]
