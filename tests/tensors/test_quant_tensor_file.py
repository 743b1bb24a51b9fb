"""Facts about the file form: lossless, deterministic, lazy, and wary of what it reads."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qconv.errors import UnreadableInput
from qconv.grids import (
    ActivationGrid,
    BlockGrid,
    CodebookGrid,
    FloatGrid,
    SuperBlockGrid,
    UniformGrid,
)
from qconv.tensors import QuantTensor, load_quant_tensors, save_quant_tensors

GRIDS = [
    UniformGrid(bits=4, symmetric=True, group_size=16),
    UniformGrid(bits=3, symmetric=False, group_size=32, scale_dtype="bfloat16"),
    UniformGrid(bits=8, symmetric=True, narrow=True, group_size="channel", scale_dtype="float32"),
    UniformGrid(bits=8, symmetric=False, group_size="tensor", search="absmax"),
    FloatGrid(scope="tensor"),
    FloatGrid(scope="channel", scale_dtype="bfloat16"),
    FloatGrid(scope="block", block=(4, 24)),
    CodebookGrid(codebook="nf4", block_size=32, search="absmax"),
    CodebookGrid(codebook="fp4", block_size=32, double_quant=True),
    *(BlockGrid(type=kind, search="ggml") for kind in ("q4_0", "q5_1", "q8_0")),
    *(SuperBlockGrid(type=kind, search="ggml") for kind in ("q2_k", "q3_k", "q4_k", "q6_k")),
]


def quantized(grid=GRIDS[0], rows: int = 6, seed: int = 0) -> QuantTensor:
    columns = 256 if isinstance(grid, SuperBlockGrid) else 32
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    codes, parameters = grid.quantize(weight)
    return QuantTensor(grid=grid, codes=codes, parameters=parameters)


def saved(path, **tensors: QuantTensor):
    save_quant_tensors(path, tensors or {"w": quantized()})
    return path


def tampered(path, metadata=None, **changes: torch.Tensor | None):
    """A file whose metadata and tensors were changed behind our back; None removes a tensor."""
    return retold(saved(path), metadata, **changes)


def retold(path, metadata=None, **changes: torch.Tensor | None):
    """The file at ``path``, changed."""
    with safe_open(path, framework="pt") as file:
        spec = json.loads(file.metadata()["qconv"])
    text = metadata(spec) if metadata else None
    tensors = {name: value.clone() for name, value in load_file(path).items()} | changes
    kept = {name: value for name, value in tensors.items() if value is not None}
    save_file(kept, path, {"qconv": text if isinstance(text, str) else json.dumps(spec)})
    return path


@given(
    names=st.sets(st.text(min_size=1, max_size=12), min_size=0, max_size=4),
    grid=st.sampled_from(GRIDS),
    rows=st.integers(1, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_the_round_trip_is_lossless(tmp_path_factory, names, grid, rows, seed):
    path = tmp_path_factory.mktemp("round-trip") / "tensors.safetensors"
    tensors = {name: quantized(grid, rows, seed=seed + i) for i, name in enumerate(sorted(names))}
    save_quant_tensors(path, tensors)
    loaded = load_quant_tensors(path)
    assert list(loaded) == sorted(tensors)
    assert len(loaded) == len(tensors)
    assert all(loaded[name].same(tensor) for name, tensor in tensors.items())


def test_equal_tensors_give_equal_bytes_in_any_order(tmp_path):
    tensors = {f"layers.{i}.weight": quantized(grid) for i, grid in enumerate(GRIDS)}
    save_quant_tensors(tmp_path / "a", tensors)
    save_quant_tensors(tmp_path / "b", dict(reversed(tensors.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tensors_that_share_memory_are_stored_each(tmp_path):
    whole = quantized(rows=8)
    first, second = whole.split_rows([3, 5])
    path = saved(tmp_path / "t", whole=whole, first=first, second=second, again=whole)
    loaded = load_quant_tensors(path)
    assert QuantTensor.stack([loaded["first"], loaded["second"]]).same(loaded["again"])


def test_a_plain_safetensors_reader_sees_the_parts(tmp_path):
    path = saved(tmp_path / "t", w=quantized(GRIDS[1]))
    assert sorted(load_file(path)) == ["w:codes", "w:scale", "w:zero_point"]


def test_a_tensor_is_read_when_asked_for(tmp_path):
    path = saved(tmp_path / "t", a=quantized(seed=1), b=quantized(seed=2))
    loaded = load_quant_tensors(path)
    path.unlink()
    assert list(loaded) == ["a", "b"]
    with pytest.raises(UnreadableInput, match="cannot be read as safetensors"):
        loaded["a"]


def test_an_unknown_name_is_a_key_error(tmp_path):
    with pytest.raises(KeyError, match="nothing"):
        load_quant_tensors(saved(tmp_path / "t"))["nothing"]


def test_a_failed_save_leaves_the_old_file_and_no_debris(tmp_path, monkeypatch):
    path = saved(tmp_path / "t")
    before = path.read_bytes()

    def full_disk(*_):
        path.with_name(".t.partial").write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_quant_tensors(path, {"w": quantized(seed=5)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# --- hostile files --------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"\x08", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"{}x"])
def test_a_file_that_is_not_safetensors_is_refused(tmp_path, content):
    path = tmp_path / "t"
    path.write_bytes(content)
    with pytest.raises(UnreadableInput, match=r"cannot be read as safetensors|no metadata entry"):
        load_quant_tensors(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UnreadableInput, match="cannot be read as safetensors"):
        load_quant_tensors(tmp_path / "nothing")


def test_a_truncated_file_is_refused(tmp_path):
    path = saved(tmp_path / "t")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UnreadableInput, match="cannot be read as safetensors"):
        load_quant_tensors(path)


def test_plain_safetensors_are_refused(tmp_path):
    save_file({"w": torch.zeros(2, 2)}, tmp_path / "t")
    with pytest.raises(UnreadableInput, match="holds no quantized tensors of qconv; pass a file"):
        load_quant_tensors(tmp_path / "t")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda spec: spec.update(version=2), "version: Input should be 1"),
        (lambda spec: spec.update(extra=1), "extra: Extra inputs are not permitted"),
        (lambda spec: spec["tensors"]["w"].update(rows=-1), "w.rows: Input should be greater"),
        (lambda spec: spec["tensors"]["w"].update(rows="6"), "w.rows: Input should be a valid int"),
        (
            lambda spec: spec["tensors"]["w"].update(columns=2**60),
            "w.columns: Input should be less",
        ),
        (lambda spec: spec["tensors"]["w"].pop("grid"), "w.grid: Field required"),
        (lambda _: "[" * 10_000, "the document: Invalid JSON"),
        (lambda _: '{"version": 1', "the document: Invalid JSON"),
    ],
)
def test_metadata_off_the_schema_is_refused(tmp_path, change, text):
    path = tampered(tmp_path / "t", change)
    with pytest.raises(UnreadableInput, match=text):
        load_quant_tensors(path)


@pytest.mark.parametrize(
    "change",
    [{"family": "no such"}, {"bits": 99}, {"bits": {}}, {"group_size": 5}, {"more": 1}],
)
def test_a_grid_that_does_not_exist_or_fit_is_refused(tmp_path, change):
    def metadata(spec):
        spec["tensors"]["w"]["grid"].update(change)

    with pytest.raises(UnreadableInput, match="tensor 'w': "):
        load_quant_tensors(tampered(tmp_path / "t", metadata))


@given(
    spec=st.dictionaries(
        st.sampled_from(
            ["family", "bits", "group_size", "scale_dtype", "scope", "block", "codebook"]
        ),
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(-300, 300),
            st.floats(allow_nan=False, allow_infinity=False),
            st.sampled_from(["uniform", "float", "codebook", "float16", "channel", "block", "nf4"]),
            st.lists(st.integers(), max_size=2),
            st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
        ),
    )
)
@settings(max_examples=60, deadline=None)
def test_no_grid_spec_gets_past_as_anything_but_unreadable(tmp_path_factory, spec):
    path = tmp_path_factory.mktemp("spec") / "t"

    def metadata(document):
        document["tensors"]["w"]["grid"] = spec

    try:
        loaded = load_quant_tensors(tampered(path, metadata))
    except UnreadableInput:
        return
    assert loaded["w"].shape == (6, 32)


def test_a_missing_part_is_refused(tmp_path):
    path = tampered(tmp_path / "t", **{"w:scale": None})
    with pytest.raises(UnreadableInput, match="stored tensor 'w:scale' is not there"):
        load_quant_tensors(path)


def test_a_stray_tensor_is_refused(tmp_path):
    path = tampered(tmp_path / "t", **{"x:codes": torch.zeros(2)})
    with pytest.raises(UnreadableInput, match="'x:codes' belongs to no quantized tensor"):
        load_quant_tensors(path)


@pytest.mark.parametrize(
    "scale", [torch.ones(6, 1, dtype=torch.float16), torch.ones(6, 2), torch.ones(12).half()]
)
def test_a_part_of_another_shape_or_dtype_is_refused(tmp_path, scale):
    path = tampered(tmp_path / "t", **{"w:scale": scale})
    with pytest.raises(UnreadableInput, match=r"'w:scale' is .* needs \(6, 2\) F16"):
        load_quant_tensors(path)


def test_codes_beyond_the_grid_are_refused(tmp_path):
    path = tampered(tmp_path / "t", **{"w:codes": torch.full((6, 32), 8, dtype=torch.int8)})
    with pytest.raises(UnreadableInput, match="codes from 8 to 8, but grid int4_g16 has -8 to 7"):
        load_quant_tensors(path)["w"]


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_float_codes_that_are_no_number_are_refused(tmp_path, code):
    saved(tmp_path / "t", w=quantized(FloatGrid(scope="channel")))
    path = retold(tmp_path / "t", **{"w:codes": torch.full((6, 32), code, dtype=torch.uint8)})
    with pytest.raises(UnreadableInput, match="'w' has code(s from 255 to 255| 127, which is NaN)"):
        load_quant_tensors(path)["w"]


@pytest.mark.parametrize("part", ["nested_absmax", "nested_offset"])
def test_nested_scales_that_are_not_finite_are_refused(tmp_path, part):
    grid = CodebookGrid(codebook="nf4", block_size=32, double_quant=True)
    saved(tmp_path / "t", w=quantized(grid))
    path = retold(tmp_path / "t", **{f"w:{part}": torch.tensor([float("nan")])})
    with pytest.raises(UnreadableInput, match=f"'w' has a {part} that is not finite"):
        load_quant_tensors(path)["w"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scales_that_are_not_finite_are_refused(tmp_path, value):
    path = tampered(tmp_path / "t", **{"w:scale": torch.full((6, 2), value).half()})
    with pytest.raises(UnreadableInput, match="'w' has a scale that is not finite"):
        load_quant_tensors(path)["w"]


# --- the grid of the input ------------------------------------------------------------------------

STATIC = ActivationGrid(scope="tensor", dynamic=False)
STATIC_UINT4 = ActivationGrid(bits=4, symmetric=False, scope="tensor", dynamic=False)


def with_static(grid: ActivationGrid = STATIC_UINT4) -> QuantTensor:
    known = {"scale": torch.tensor([0.3]), "zero_point": torch.tensor([7], dtype=torch.uint8)}
    return quantized().with_activation(grid, {part: known[part] for part in grid.layout()})


def test_grids_of_inputs_come_back(tmp_path):
    tensors = {
        "plain": quantized(),
        "dynamic": with_static(ActivationGrid()),
        "static": with_static(STATIC),
        "uint4": with_static(),
        "fp8": with_static(ActivationGrid(kind="float", scope="tensor", dynamic=False)),
        "groups": with_static(ActivationGrid(kind="float", scope="group", group_size=16)),
    }
    loaded = load_quant_tensors(saved(tmp_path / "t", **tensors))
    assert all(loaded[name].same(tensor) for name, tensor in tensors.items())
    names = {key for key in load_file(tmp_path / "t") if ":activation_" in key}
    assert names == {
        "fp8:activation_scale",
        "static:activation_scale",
        "uint4:activation_scale",
        "uint4:activation_zero_point",
    }


def test_files_from_before_inputs_had_kinds_and_groups_are_read(tmp_path):
    def metadata(spec):
        for field in ("kind", "group_size"):
            del spec["tensors"]["w"]["activation"][field]

    saved(tmp_path / "t", w=with_static())
    assert load_quant_tensors(retold(tmp_path / "t", metadata))["w"].same(with_static())


def test_a_tensor_without_one_is_stored_as_ever(tmp_path):
    with safe_open(saved(tmp_path / "t"), framework="pt") as file:
        assert json.loads(file.metadata()["qconv"])["tensors"]["w"].keys() == {
            "grid",
            "rows",
            "columns",
        }


def test_parts_that_share_a_scale_are_stored_each(tmp_path):
    first, second = with_static().split_rows([2, 4])
    loaded = load_quant_tensors(saved(tmp_path / "t", first=first, second=second))
    assert QuantTensor.stack([loaded["first"], loaded["second"]]).same(with_static())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"family": "uniform"}, "its activation grid is of family 'uniform'"),
        ({"bits": 99}, "activation grid: bits is 99"),
        ({"bits": {}}, "activation grid: bits is {}"),
        ({"scope": []}, r"scope is \[\]; choose token or tensor or group"),
        ({"kind": "float"}, "a float has 8 bits and no zero-point, but bits is 4"),
        ({"group_size": 16}, "scope 'group' needs a group_size, the others take none"),
        ({"scope": "token"}, "a scale per token cannot be static"),
        ({"dynamic": "no"}, "dynamic is 'no'; choose true or false"),
        ({"more": 1}, "options are bits"),
        ({"dynamic": True}, "'w:activation_scale' belongs to no quantized tensor"),
        ({"symmetric": True}, "'w:activation_zero_point' belongs to no quantized tensor"),
    ],
)
def test_odd_grids_of_inputs_are_refused(tmp_path, change, text):
    def metadata(spec):
        spec["tensors"]["w"]["activation"].update(change)

    saved(tmp_path / "t", w=with_static())
    with pytest.raises(UnreadableInput, match=text):
        load_quant_tensors(retold(tmp_path / "t", metadata))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"w:activation_scale": None}, "'w:activation_scale' is not there"),
        ({"w:activation_scale": torch.ones(6)}, r"is \(6,\) F32, but its grid needs \(1,\) F32"),
        ({"w:activation_zero_point": torch.ones(1)}, r"is \(1,\) F32, .* needs \(1,\) U8"),
    ],
)
def test_static_parts_off_the_layout_are_refused(tmp_path, changes, text):
    saved(tmp_path / "t", w=with_static())
    with pytest.raises(UnreadableInput, match=text):
        load_quant_tensors(retold(tmp_path / "t", **changes))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_static_scales_that_are_no_scales_are_refused(tmp_path, scale):
    saved(tmp_path / "t", w=with_static())
    path = retold(tmp_path / "t", **{"w:activation_scale": torch.tensor([scale])})
    with pytest.raises(UnreadableInput, match=f"'w' has an activation scale of {scale}; it must"):
        load_quant_tensors(path)["w"]


def test_static_zero_points_beyond_the_codes_are_refused(tmp_path):
    saved(tmp_path / "t", w=with_static())
    beyond = torch.tensor([16], dtype=torch.uint8)
    path = retold(tmp_path / "t", **{"w:activation_zero_point": beyond})
    with pytest.raises(UnreadableInput, match="zero-point of 16, but .* uint4_.* has codes to 15"):
        load_quant_tensors(path)["w"]
