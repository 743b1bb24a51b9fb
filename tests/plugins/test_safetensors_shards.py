"""The files around the tensors: headers, alignment, shards and their index."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from safetensors_driver import files, llama, request, tensor

from qconv.errors import UnreadableInput, Unsupported
from qconv_safetensors._backend import SafetensorsBackend
from qconv_safetensors._part import DTYPE_NBYTES

if TYPE_CHECKING:
    from qconv.plugin import Layout, PlanRequest

TARGETS = ["int4", "int8", "fp8", "gptq", "gptq_v2", "awq", "nf4", "fp4", "bf16", "fp32"]


def lay_out(asked: PlanRequest) -> Layout:
    backend = SafetensorsBackend()
    return backend.layout(asked, backend.plan_tensors(asked))


def table(header: bytes) -> dict:
    length = int.from_bytes(header[:8], "little")
    return json.loads(header[8 : 8 + length])


@pytest.mark.parametrize("target", TARGETS)
def test_data_lies_without_gaps_aligned_for_its_dtype(target: str) -> None:
    layout = lay_out(request(llama(tensor("model.odd", 3, dtype="BF16")), target))
    file = next(each for each in layout.files if each.path.endswith(".safetensors"))
    length = int.from_bytes(file.header[:8], "little")
    entries = table(file.header)
    assert length % 8 == 0
    assert entries.pop("__metadata__") == {"format": "pt"}
    end = 0
    for entry in sorted(entries.values(), key=lambda entry: entry["data_offsets"]):
        start, stop = entry["data_offsets"]
        size = DTYPE_NBYTES[entry["dtype"]]
        assert start == end
        assert (8 + length + start) % size == 0
        count = 1
        for each in entry["shape"]:
            count *= each
        assert stop - start == count * size
        end = stop
    assert file.nbytes == 8 + length + end


@pytest.mark.parametrize("target", TARGETS)
def test_header_and_places_cover_every_byte_once(target: str) -> None:
    layout = lay_out(request(llama(), target))
    file = next(each for each in layout.files if each.path.endswith(".safetensors"))
    places = sorted(
        (place.offset, place.nbytes) for found in layout.places.values() for place in found
    )
    end = len(file.header)
    for offset, nbytes in places:
        assert offset == end
        end += nbytes
    assert end == file.nbytes


@pytest.mark.parametrize(
    ("target", "options", "slabs"),
    [
        ("int4", {"symmetric": "true"}, True),
        ("int4", {}, True),
        ("int4", {"group_size": "channel"}, False),  # a row's zero-point is half a byte
        ("int8", {}, True),
        ("int8", {"activations": "dynamic"}, True),
        ("fp8", {}, True),
        ("fp8", {"scope": "block"}, False),
        ("gptq", {}, False),
        ("awq", {}, False),
        ("nf4", {"double_quant": "true"}, False),
    ],
)
def test_layouts_by_rows_take_slabs_of_rows(target, options, slabs: bool) -> None:
    places = lay_out(request(llama(), target, **options)).places
    found = places["model.layers.0.mlp.up_proj.weight"]
    assert all(place.row_nbytes is not None for place in found) == slabs


def test_one_file_needs_no_index() -> None:
    assert sorted(files(request(llama(), "int4"))) == [
        "tiny-INT4/config.json",
        "tiny-INT4/model.safetensors",
    ]


def test_files_are_split_between_tensors_and_indexed() -> None:
    layout = lay_out(request(llama(), "int4", shard_size="400KB"))
    shards = [file for file in layout.files if file.path.endswith(".safetensors")]
    count = len(shards)
    assert count > 2
    assert [file.path for file in shards] == [
        f"tiny-INT4/model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)
    ]
    (index,) = (file for file in layout.files if file.path.endswith(".index.json"))
    found = json.loads(index.header)
    data, stored = 0, {}
    for file in shards:
        length = 8 + int.from_bytes(file.header[:8], "little")
        data += file.nbytes - length
        names = table(file.header).keys() - {"__metadata__"}
        stored |= dict.fromkeys(names, file.path.partition("/")[2])
    assert found == {"metadata": {"total_size": data}, "weight_map": stored}


def test_a_tensor_above_the_limit_has_a_file_of_its_own() -> None:
    layout = lay_out(request(llama(), "bf16", shard_size="300KB"))
    shards = [file for file in layout.files if file.path.endswith(".safetensors")]
    assert list(table(shards[0].header)) == ["__metadata__", "model.embed_tokens.weight"]


def test_parts_of_a_weight_stay_in_one_file() -> None:
    layout = lay_out(request(llama(), "gptq", shard_size="20KB"))
    for places in layout.places.values():
        assert len({place.file for place in places}) == 1


def test_the_same_request_is_laid_out_the_same() -> None:
    asked = request(llama(), "nf4", shard_size="200KB")
    assert lay_out(asked) == lay_out(asked)


def test_a_dtype_that_is_not_known_is_refused() -> None:
    odd = tensor("model.odd", 4)
    odd = type(odd)(name=odd.name, shape=odd.shape, dtype="C64", nbytes=32)
    with pytest.raises(Unsupported, match="tensor 'model.odd': dtype C64 is not one this backend"):
        lay_out(request(llama(odd), "int4"))


def test_an_empty_tensor_is_refused() -> None:
    with pytest.raises(UnreadableInput, match=r"tensor 'model.odd': shape \(0, 4\) holds no val"):
        lay_out(request(llama(tensor("model.odd", 0, 4)), "int4"))


def test_a_name_that_the_layout_needs_itself_is_refused() -> None:
    left = tensor("model.layers.0.mlp.up_proj.weight_scale", 512)
    with pytest.raises(
        UnreadableInput,
        match=r"up_proj.weight_scale': tensors '.*up_proj.weight' and '.*weight_scale' of the",
    ):
        lay_out(request(llama(left), "int4"))
    assert lay_out(request(llama(left), "awq"))
