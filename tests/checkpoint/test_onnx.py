"""ONNX graphs as sources: their weights are found without loading them, and nothing is believed."""

from __future__ import annotations

import contextlib
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qconv.checkpoint import open_checkpoint
from qconv.checkpoint._protobuf import encoded_bytes
from qconv.errors import UnreadableInput

RNG = np.random.default_rng(0)
MATRIX = RNG.standard_normal((12, 20)).astype(np.float32)
KERNEL = RNG.standard_normal((6, 4, 3, 3)).astype(np.float32)
HALVES = RNG.standard_normal((3, 5)).astype(np.float16)
LONG = np.arange(1 << 14, dtype=np.int64)


def model(*more: TensorProto) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "matrix"], ["y"])],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 20])],
        [
            numpy_helper.from_array(MATRIX, "matrix"),
            numpy_helper.from_array(KERNEL, "kernel"),
            numpy_helper.from_array(HALVES, "halves"),
            numpy_helper.from_array(LONG, "long"),
            numpy_helper.from_array(np.array([2, -1]), "shape"),
            numpy_helper.from_array(np.ones(8, np.float32), "scales"),
            helper.make_tensor("listed", TensorProto.FLOAT, [2, 40], MATRIX.reshape(-1)[:80]),
            *more,
        ],
    )
    return helper.make_model(graph)


def save(folder: Path, made: onnx.ModelProto, *, external: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save_model(
        made,
        folder / "model.onnx",
        save_as_external_data=external,
        location="weights.bin",
        size_threshold=0,
    )
    return folder / "model.onnx"


def refused(path: Path, match: str) -> None:
    with pytest.raises(UnreadableInput, match=match):
        open_checkpoint(path).close()


@pytest.mark.parametrize("external", [False, True])
def test_weights_are_read_in_place(tmp_path, external):
    path = save(tmp_path / "mine", model(), external=external)
    with open_checkpoint(path) as opened:
        info = opened.model
        assert (info.kind, info.name) == ("onnx", "mine")
        assert {name: each.dtype for name, each in info.tensors.items()} == {
            "matrix": "F32",
            "kernel": "F32",
            "halves": "F16",
            "long": "I64",
            "listed": "F32",
        }
        assert np.array_equal(opened.read_rows("matrix", 2, 9).numpy(), MATRIX[2:9])
        kernel = opened.read_rows("kernel", 0, 72).numpy()
        assert np.array_equal(kernel.reshape(KERNEL.shape), KERNEL)
        assert np.array_equal(opened.read_rows("halves", 0, 3).numpy(), HALVES)
        assert np.array_equal(opened.read_rows("long", 0, 1).numpy()[0], LONG)
        listed = opened.read_rows("listed", 0, 2).numpy()
        assert np.array_equal(listed.reshape(-1), MATRIX.reshape(-1)[:80])


@pytest.mark.parametrize("external", [False, True])
def test_the_graph_is_kept_without_its_weights_and_with_its_small_constants(tmp_path, external):
    with open_checkpoint(save(tmp_path, model(), external=external)) as opened:
        graph = opened.model.metadata["graph"]
    assert len(graph) < 1000
    kept = onnx.load_model_from_string(graph)
    stored = {each.name: each for each in kept.graph.initializer}
    assert list(stored["kernel"].dims) == [6, 4, 3, 3]
    assert stored["kernel"].data_location == TensorProto.EXTERNAL
    assert numpy_helper.to_array(stored["shape"]).tolist() == [2, -1]
    assert numpy_helper.to_array(stored["scales"]).tolist() == [1] * 8
    assert [node.op_type for node in kept.graph.node] == ["MatMul"]


def test_a_graph_with_a_name_of_its_own_gives_it_to_the_model(tmp_path):
    path = save(tmp_path, model())
    named = path.rename(tmp_path / "resnet.onnx")
    with open_checkpoint(named) as opened:
        assert opened.model.name == "resnet"
    with open_checkpoint(tmp_path) as opened:
        assert opened.model.name == "resnet"


def test_another_file_beside_changes_the_fingerprint(tmp_path):
    path = save(tmp_path, model(), external=True)
    with open_checkpoint(path) as opened:
        before = opened.fingerprint()
    (tmp_path / "weights.bin").write_bytes((tmp_path / "weights.bin").read_bytes() + b"\0")
    with open_checkpoint(path) as opened:
        assert opened.fingerprint() != before


def test_every_truncation_is_refused_or_leaves_a_sound_graph(tmp_path):
    path = save(tmp_path, model())
    data = path.read_bytes()
    for size in [*range(1, 200), *range(200, len(data) - 1, 997), len(data) - 1]:
        path.write_bytes(data[:size])
        refused(path, r"beyond|no graph|is empty")


def test_flipped_bytes_never_end_in_another_error(tmp_path):
    path = save(tmp_path, model(), external=True)
    data = path.read_bytes()
    for at in range(len(data)):
        for bit in (0x01, 0x80, 0xFF):
            changed = bytearray(data)
            changed[at] ^= bit
            path.write_bytes(changed)
            try:
                with open_checkpoint(path) as opened:
                    for name, info in opened.model.tensors.items():
                        opened.read_raw(name, 0, info.numel // info.shape[-1])
            except UnreadableInput:
                pass


def test_what_is_no_graph_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x07")
    refused(path, "holds no graph; check that it is an ONNX file")
    path.write_bytes(b"<!DOCTYPE html><html>Not found</html>")
    refused(path, "damaged or hostile")


def test_weights_that_are_missing_are_named(tmp_path):
    path = save(tmp_path, model(), external=True)
    (tmp_path / "weights.bin").unlink()
    refused(path, "weights.bin: cannot be found")


def test_weights_that_are_cut_off_are_named(tmp_path):
    path = save(tmp_path, model(), external=True)
    data = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(data[:-8])
    refused(path, "go beyond the .* bytes of 'weights.bin'; the download may be incomplete")


@pytest.mark.parametrize("where", ["../secret", "/etc/passwd", "a/b", "a\\b", "..", "c:x", ""])
def test_weights_elsewhere_are_refused(tmp_path, where):
    path = save(tmp_path / "in", model(), external=True)
    (tmp_path / "secret").write_bytes(bytes(1 << 20))
    changed = onnx.load(path, load_external_data=False)
    for each in changed.graph.initializer[0].external_data:
        if each.key == "location":
            each.value = where
    path.write_bytes(changed.SerializeToString())
    refused(path, "weights must lie in a file beside the graph")


def test_a_link_out_of_the_directory_is_refused(tmp_path):
    path = save(tmp_path / "in", model(), external=True)
    (tmp_path / "in" / "weights.bin").rename(tmp_path / "elsewhere.bin")
    (tmp_path / "in" / "weights.bin").symlink_to(tmp_path / "elsewhere.bin")
    refused(path, "outside its directory")


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("offset", "-8", "offset '-8' of its external data must be a whole number"),
        ("offset", "99999999999999999999", "must be a whole number"),
        ("offset", "1000000000", "go beyond the"),
        ("length", "8", "takes 960 bytes, not the 8 it is said to have"),
    ],
)
def test_places_that_cannot_be_are_refused(tmp_path, key, value, match):
    path = save(tmp_path, model(), external=True)
    changed = onnx.load(path, load_external_data=False)
    for each in changed.graph.initializer[0].external_data:
        if each.key == key:
            each.value = value
    path.write_bytes(changed.SerializeToString())
    refused(path, match)


def test_a_shape_that_its_bytes_do_not_fill_is_refused(tmp_path):
    made = model()
    made.graph.initializer[0].dims[0] = 13
    refused(save(tmp_path, made), r"tensor 'matrix': shape \(13, 20\) of F32 does not fill its 960")


def test_sizes_that_overflow_are_refused(tmp_path):
    made = model()
    made.graph.initializer[0].dims[:] = [1 << 40, 1 << 40]
    refused(save(tmp_path, made), "holds 2\\^63 values or more")
    made.graph.initializer[0].dims[:] = [-1, 20]
    refused(save(tmp_path, made), "is none")


def test_a_name_twice_is_refused(tmp_path):
    more = numpy_helper.from_array(MATRIX, "matrix")
    refused(save(tmp_path, model(more)), "initializer 'matrix' appears twice")


def test_a_name_that_garbles_a_terminal_is_refused(tmp_path):
    more = numpy_helper.from_array(MATRIX, "a\x1b[2J")
    refused(save(tmp_path, model(more)), "must be printable text")


def test_weights_in_a_type_of_quantized_models_are_refused(tmp_path):
    more = helper.make_tensor("packed", TensorProto.INT4, [4, 4], bytes(8), raw=True)
    refused(save(tmp_path, model(more), external=True), "the model is quantized already")


def test_weights_in_constant_nodes_are_read_in_place_as_well(tmp_path):
    made = model()
    for name, array in (("kernel", KERNEL), ("few", np.ones(200, np.int64))):
        value = numpy_helper.from_array(array, "unnamed")
        made.graph.node.insert(0, helper.make_node("Constant", [], [name + ".1"], value=value))
    with open_checkpoint(save(tmp_path, made)) as opened:
        read = opened.read_rows("kernel.1", 0, 72).numpy()
        assert np.array_equal(read.reshape(KERNEL.shape), KERNEL)
        assert "few.1" not in opened.model.tensors
        kept = onnx.load_model_from_string(opened.model.metadata["graph"])
    assert [node.op_type for node in kept.graph.node] == ["Constant", "MatMul"]
    assert "kernel.1" in {each.name for each in kept.graph.initializer}


def _with_bytes(kind: str, payload: bytes) -> bytes:
    """A graph that a message of a kind was added to, which holds any bytes."""
    graph = model().graph.SerializeToString()
    if kind == "graph":
        graph += payload
    elif kind == "initializer":
        graph += encoded_bytes(5, encoded_bytes(8, b"bomb") + payload)
    else:
        constant = encoded_bytes(2, b"bomb") + encoded_bytes(4, b"Constant")
        graph += encoded_bytes(1, constant + payload)
    return encoded_bytes(7, graph)


_MANY = 20_000


@pytest.mark.parametrize("kind", ["graph", "initializer", "node"])
@pytest.mark.parametrize(
    "payload",
    [
        b"\x58\x00" * _MANY,  # numbers of one field
        b"\x08\x01" * _MANY,  # sizes of a shape, one by one
        b"\x0a\x80\x80\x02" + bytes(1 << 15),  # the same, packed
        b"\x10\x01" * _MANY,  # types
        b"\x12\x00" * _MANY,  # outputs of a node
        b"\x2a\x00" * _MANY,  # attributes of a node
        b"\x6a\x00" * _MANY,  # places in other files
    ],
    ids=["uint64", "dims", "packed", "types", "outputs", "attributes", "external"],
)
def test_many_small_fields_take_no_more_memory_than_a_few_copies(tmp_path, kind, payload):
    path = tmp_path / "model.onnx"
    path.write_bytes(_with_bytes(kind, payload))
    open_checkpoint(save(tmp_path / "first", model())).close()  # imports
    tracemalloc.start()
    try:
        with contextlib.suppress(UnreadableInput):
            open_checkpoint(path).close()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * path.stat().st_size + (1 << 20)


def test_more_fields_than_a_tensor_has_are_refused(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(_with_bytes("initializer", b"\x10\x01" * 5000))
    refused(path, "an initializer: more than 4096 fields")


def test_more_dimensions_than_any_tensor_has_are_refused(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(_with_bytes("initializer", b"\x08\x01" * 65))
    refused(path, r"initializer 'bomb': a shape of more than 64 dimensions")


def test_weights_over_the_same_bytes_are_refused(tmp_path):
    path = save(tmp_path, model(), external=True)
    changed = onnx.load(path, load_external_data=False)
    changed.graph.initializer.add().CopyFrom(changed.graph.initializer[0])
    changed.graph.initializer[-1].name = "again"
    path.write_bytes(changed.SerializeToString())
    refused(path, "tensors 'matrix' and 'again' share bytes of 'weights.bin'; .* save it anew")
