"""Facts about calibration files: what is written is what is read, and parts add up."""

from __future__ import annotations

import errno
import json
import struct
from pathlib import Path

import jsonschema
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import qconv
from calibration.tokenized import save_model, tokenizer, write_texts
from qconv.calibration import (
    Calibration,
    Seen,
    add_calibrations,
    build_windows,
    calibrate,
    check_tokens,
    collect_statistics,
    load_calibration,
    save_calibration,
)
from qconv.calibration import _writer as writer
from qconv.checkpoint import open_checkpoint
from qconv.errors import (
    GateFailed,
    NotEnoughResources,
    OutputExists,
    UnreadableInput,
    UsageError,
)
from qconv.model import open_model

SCHEMAS = Path(__file__).parents[2] / "schemas"
KEY = "qconv.calibration"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    source = write_texts(tmp_path_factory.mktemp("text") / "a.jsonl", 12)
    return Calibration(source=str(source), windows=6, window_length=32)


@pytest.fixture(scope="module")
def full(tiny_folder, settings, tmp_path_factory):
    """The file of one pass."""
    path = tmp_path_factory.mktemp("full") / "c.safetensors"
    calibrate(tiny_folder, path, settings)
    return path


# --- written and read -----------------------------------------------------------------------------


def test_what_is_written_is_what_one_pass_gives(checkpoint, settings, full):
    windows = build_windows(settings, checkpoint)
    file = load_calibration(full, checkpoint.model)
    assert file.windows.digest == windows.digest
    assert file.windows.report == windows.report
    assert file.windows.origins == windows.origins
    model = open_model(checkpoint)
    inputs = list(collect_statistics(model, windows, gram=True))
    assert file.linears == tuple(sorted(name for each in inputs for name in each.linears))
    for each in inputs:
        for name in each.linears:
            assert file.statistics(name).same(each.statistics)


def test_every_linear_is_there_and_shared_inputs_are_stored_once(full):
    file = load_calibration(full)
    groups = {seen.linears for seen in file.seen}
    attention = "model.layers.0.self_attn."
    assert tuple(f"{attention}{each}_proj.weight" for each in "kqv") in groups
    assert ("lm_head.weight",) in groups
    assert len(groups) == 3 * 4 + 1
    assert {seen.tokens for seen in file.seen} == {6 * 32}


def test_diagonals_are_the_same_without_the_matrix(tiny_folder, settings, full, tmp_path):
    path = tmp_path / "d.safetensors"
    calibrate(tiny_folder, path, settings, statistics="diagonal")
    diagonal, whole = load_calibration(path), load_calibration(full)
    for name in whole.linears:
        assert diagonal.statistics(name).same(whole.statistics(name).without_gram())
    assert path.stat().st_size < full.stat().st_size


def test_windows_alone_need_no_forward_pass(tiny_folder, settings, tmp_path, monkeypatch):
    monkeypatch.setattr("qconv.model.open_model", None)
    made = calibrate(tiny_folder, tmp_path / "w.safetensors", settings, statistics="none")
    file = load_calibration(tmp_path / "w.safetensors")
    assert (len(file.windows), file.linears, made.inputs) == (6, (), ())
    with pytest.raises(UsageError, match="no statistics of 'x'.*--statistics full"):
        file.statistics("x")


def test_equal_settings_give_equal_bytes(tiny_folder, settings, full, tmp_path):
    calibrate(tiny_folder, tmp_path / "c.safetensors", settings)
    assert (tmp_path / "c.safetensors").read_bytes() == full.read_bytes()


def test_a_file_is_a_source_of_the_windows_it_holds(checkpoint, settings, full):
    source = Calibration(source=str(full), windows=2, window_length=9999)
    assert build_windows(source, checkpoint).digest == build_windows(settings, checkpoint).digest


def test_a_file_cannot_be_mixed(checkpoint, full):
    with pytest.raises(UsageError, match="cannot be mixed with other sources.*--add"):
        build_windows(Calibration(source=(str(full), "builtin")), checkpoint)


def test_the_file_is_plain_safetensors_that_others_can_read(full):
    tensors = load_file(full)
    assert tensors["windows"].dtype == torch.int32
    assert tensors["lengths"].tolist() == [32] * 6


def test_the_metadata_satisfies_its_schema_and_tells_no_path(full, settings):
    with safe_open(full, framework="pt") as file:
        text = file.metadata()[KEY]
    schema = json.loads((SCHEMAS / "calibration-file.schema.json").read_text())
    jsonschema.validate(json.loads(text), schema)
    assert str(Path(settings.sources[0].name).parent) not in text


def test_the_result_satisfies_its_schema(tiny_folder, settings, tmp_path):
    made = qconv.calibrate(tiny_folder, tmp_path / "c.safetensors", settings)
    schema = json.loads((SCHEMAS / "calibration.schema.json").read_text())
    jsonschema.validate(made.to_json(), schema)
    assert made.nbytes == (tmp_path / "c.safetensors").stat().st_size
    assert made.to_json()["tokens"] == 192


# --- parts add up ---------------------------------------------------------------------------------


def test_two_halves_added_equal_one_pass(tiny_folder, settings, full, tmp_path):
    halves = [tmp_path / f"{number}.safetensors" for number in (1, 2)]
    for number, path in enumerate(halves, start=1):
        calibrate(tiny_folder, path, settings, shard=(number, 2))
    made = add_calibrations(tiny_folder, tmp_path / "sum.safetensors", halves)
    both, whole = load_calibration(tmp_path / "sum.safetensors"), load_calibration(full)
    assert made.digest == both.windows.digest == whole.windows.digest
    assert both.windows.report.sources == whole.windows.report.sources
    assert both.seen == whole.seen
    for name in whole.linears:
        one, two = both.statistics(name), whole.statistics(name)
        assert torch.equal(one.sample, two.sample)
        assert torch.equal(one.priority, two.priority)
        for part, tensor in two.tensors().items():
            torch.testing.assert_close(one.tensors()[part], tensor, rtol=1e-5, atol=1e-5)


def test_experts_that_saw_nothing_in_one_half_keep_what_they_saw_in_the_other(tmp_path):
    folder = save_model(tmp_path / "moe", "mixtral", num_local_experts=16)
    source = str(write_texts(tmp_path / "a.jsonl", 2))
    settings = Calibration(source=source, windows=2, window_length=4)
    calibrate(folder, tmp_path / "whole.safetensors", settings)
    halves = [tmp_path / f"{number}.safetensors" for number in (1, 2)]
    for number, path in enumerate(halves, start=1):
        calibrate(folder, path, settings, shard=(number, 2))
    add_calibrations(folder, tmp_path / "sum.safetensors", halves)
    whole, both = (load_calibration(tmp_path / f"{n}.safetensors") for n in ("whole", "sum"))
    grams = 0
    for name in whole.linears:
        one, two = whole.statistics(name), both.statistics(name)
        assert one.tokens == two.tokens
        assert (one.gram_sum is None) == (two.gram_sum is None)
        if one.gram_sum is not None:
            grams += ".experts." in name
            torch.testing.assert_close(two.gram_sum, one.gram_sum, rtol=1e-5, atol=1e-5)
    assert grams
    assert any(not each.tokens for half in halves for each in load_calibration(half).seen)
    assert {s.linears for s in whole.seen if s.tokens} == {s.linears for s in both.seen if s.tokens}


def test_equal_windows_do_not_count_twice(tiny_folder, full, tmp_path):
    with pytest.raises(UsageError, match="share a window of 32 tokens, which would count twice"):
        add_calibrations(tiny_folder, tmp_path / "sum.safetensors", [full, full])


def test_files_that_differ_do_not_add_up(tiny_folder, settings, full, tmp_path):
    calibrate(tiny_folder, tmp_path / "d.safetensors", settings, statistics="diagonal")
    with pytest.raises(UsageError, match=r"differ in their statistics \(full and diagonal\); only"):
        add_calibrations(
            tiny_folder, tmp_path / "s.safetensors", [full, tmp_path / "d.safetensors"]
        )
    with pytest.raises(UsageError, match="no calibration files to add"):
        add_calibrations(tiny_folder, tmp_path / "s.safetensors", [])


@pytest.mark.parametrize("shard", [(0, 2), (3, 2), (1, 0)])
def test_shards_are_numbered_from_one(tiny_folder, settings, tmp_path, shard):
    with pytest.raises(UsageError, match=f"shard {shard[0]}/{shard[1]} is not one of 1/"):
        calibrate(tiny_folder, tmp_path / "c.safetensors", settings, shard=shard)


# --- another model --------------------------------------------------------------------------------


def test_a_file_of_another_tokenizer_or_other_tensors_is_refused(full, tmp_path):
    other = save_model(tmp_path / "other")
    made = tokenizer()
    made.add_tokens(["<other>"])
    made.save_pretrained(other)
    with (
        open_checkpoint(other) as checkpoint,
        pytest.raises(UsageError, match="whose tokenizer differ from those of other"),
    ):
        load_calibration(full, checkpoint.model)
    narrow = save_model(tmp_path / "narrow", hidden_size=16)
    with (
        open_checkpoint(narrow) as checkpoint,
        pytest.raises(UsageError, match="whose tensors differ .*calibrate this model"),
    ):
        load_calibration(full, checkpoint.model)


def test_windows_alone_serve_every_model_of_the_tokenizer(checkpoint, settings, tmp_path):
    windows = build_windows(settings, checkpoint)
    save_calibration(tmp_path / "w.safetensors", windows, checkpoint.model, options=[settings])
    with open_checkpoint(save_model(tmp_path / "narrow", hidden_size=16)) as narrow:
        assert load_calibration(tmp_path / "w.safetensors", narrow.model).windows.digest


# --- too few tokens -------------------------------------------------------------------------------


def seen(tokens, features=10, name="w", *, gram=True):
    return Seen(linears=(name,), tokens=tokens, features=features, gram=gram)


def test_thin_statistics_are_told_with_numbers():
    (warning,) = check_tokens([seen(39), seen(40), seen(20, name="v"), seen(1, gram=False)])
    assert "2 of 4 Gram matrices rest on fewer than 4 tokens per column" in warning
    assert "that of 'v' on 20 tokens for 10 columns; more windows" in warning
    assert check_tokens([seen(40)]) == ()


def test_inputs_without_tokens_are_told():
    (warning,) = check_tokens([seen(40), seen(0, gram=False)])
    assert "no token came to 1 linear weights, the first 'w'" in warning


def test_too_few_tokens_for_an_expert_fail_and_leave_no_file(tiny_folder, settings, tmp_path):
    strict = Calibration(
        source=settings.source, windows=6, window_length=32, min_tokens_per_expert=193
    )
    with pytest.raises(
        GateFailed, match="saw 192 tokens, but --min-tokens-per-expert asks for 193"
    ):
        calibrate(tiny_folder, tmp_path / "c.safetensors", strict)
    assert not list(tmp_path.iterdir())


# --- where it goes --------------------------------------------------------------------------------


def test_files_are_replaced_only_by_force(tiny_folder, settings, tmp_path):
    path = tmp_path / "c.safetensors"
    path.write_text("mine")
    with pytest.raises(OutputExists, match="exists already; use --force"):
        calibrate(tiny_folder, path, settings)
    assert path.read_text() == "mine"
    calibrate(tiny_folder, path, settings, statistics="none", force=True)
    assert len(load_calibration(path).windows) == 6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("c.bin", "a calibration file's name ends in .safetensors"),
        ("missing/c.safetensors", "missing is not a folder; create it"),
    ],
)
def test_other_places_are_refused_before_any_work(tiny_folder, settings, tmp_path, name, message):
    with pytest.raises(UsageError, match=message):
        calibrate(tiny_folder, tmp_path / name, settings)


def test_unknown_kinds_of_statistics_are_refused(tiny_folder, settings, tmp_path):
    with pytest.raises(UsageError, match="statistics 'half' must be one of full, diagonal, none"):
        calibrate(tiny_folder, tmp_path / "c.safetensors", settings, statistics="half")


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.ENOSPC, NotEnoughResources, "the disk is full .*--statistics diagonal"),
        (errno.EIO, UsageError, "cannot be written"),
    ],
)
def test_a_failing_disk_leaves_nothing(
    tiny_folder, settings, tmp_path, monkeypatch, number, kind, message
):
    def full_disk(*_):
        raise OSError(number, "no")

    monkeypatch.setattr(writer.shutil, "copyfileobj", full_disk)
    with pytest.raises(kind, match=message):
        calibrate(tiny_folder, tmp_path / "c.safetensors", settings)
    assert not list(tmp_path.iterdir())


# --- damaged and hostile files --------------------------------------------------------------------


def rewritten(full, path, change):
    """The file with its metadata and tensors changed."""
    tensors = load_file(full)
    with safe_open(full, framework="pt") as file:
        metadata = json.loads(file.metadata()[KEY])
    change(metadata, tensors)
    save_file(tensors, path, {KEY: json.dumps(metadata)})
    return path


def _drop(metadata, tensors):
    del metadata, tensors["0:gram"]


def _add(metadata, tensors):
    del metadata
    tensors["odd"] = torch.zeros(1)


def _shape(metadata, tensors):
    del metadata
    tensors["0:high"] = torch.zeros(7)


def _token(metadata, tensors):
    del metadata
    tensors["windows"][3] = 100_000


def _other_token(metadata, tensors):
    del metadata
    tensors["windows"][3] += 1


def _length(metadata, tensors):
    del metadata
    tensors["lengths"][0] = -5


def _version(metadata, tensors):
    del tensors
    metadata["version"] = 1


def _newer(metadata, tensors):
    metadata["version"] = 3


def _no_version(metadata, tensors):
    del metadata["version"]


def _field(metadata, tensors):
    del tensors
    metadata["extra"] = 1


def _origin(metadata, tensors):
    del tensors
    metadata["origins"].pop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop, "stored tensor '0:gram' is not there"),
        (_add, "stored tensor 'odd' belongs to nothing"),
        (_shape, "stored tensor '0:high' is"),
        (_token, "a token id is not in the vocabulary"),
        (_other_token, "the windows are not those of its digest"),
        (_length, "lengths and windows do not belong together"),
        (_no_version, "metadata, version: Field required"),
        (_field, "metadata, extra: Extra inputs"),
        (_origin, "stored tensor 'lengths' is"),
    ],
)
def test_files_that_contradict_themselves_are_refused(full, tmp_path, change, message):
    path = rewritten(full, tmp_path / "bad.safetensors", change)
    with pytest.raises(UnreadableInput, match=f"{message}.*write the file again"):
        load_calibration(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_version, r"an older qconv \(version 1 .* reads 2\); calibrate again: qconv calibrate"),
        (_newer, r"a newer qconv \(version 3 .* reads 2\); upgrade it: pip install -U qconv"),
    ],
)
def test_files_of_another_version_are_told_as_such(full, tmp_path, change, message):
    path = rewritten(full, tmp_path / "other.safetensors", change)
    with pytest.raises(UnreadableInput, match=f"written by {message}"):
        load_calibration(path)


@pytest.mark.parametrize("part", ["square_sum", "low", "high", "gram"])
def test_statistics_that_are_not_finite_are_refused_when_read(full, tmp_path, part):
    def change(metadata, tensors):
        del metadata
        tensors[f"0:{part}"].view(-1)[0] = float("nan")

    file = load_calibration(rewritten(full, tmp_path / "bad.safetensors", change))
    with pytest.raises(UnreadableInput, match=f"{part} of .* is not sound"):
        file.statistics(file.seen[0].linears[0])


@pytest.mark.parametrize("name", ["missing", "text", "truncated", "other"])
def test_what_is_no_calibration_file_is_refused(full, tmp_path, name):
    path = tmp_path / "c.safetensors"
    if name == "text":
        path.write_text("hello")
    elif name == "truncated":
        path.write_bytes(full.read_bytes()[:-9])
    elif name == "other":
        save_file({"a": torch.zeros(1)}, path)
    message = "so it is no calibration file" if name == "other" else "cannot be read as safetensors"
    with pytest.raises(UnreadableInput, match=message):
        load_calibration(path)


def test_numbers_of_eight_bytes_lie_where_readers_want_them(full):
    data = full.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    starts = {
        entry["data_offsets"][0] % 8
        for name, entry in header.items()
        if name != "__metadata__" and entry["dtype"].endswith("64")
    }
    assert starts == {0}
