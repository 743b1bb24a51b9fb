"""The conformance kit tells sound sources from unsound ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from checkpoint.written import hf_directory
from qconv.testing import ConformanceError, check_source
from toy_packed import GRID, PackedPlugin, PackedSource, small_packed

if TYPE_CHECKING:
    from qconv.plugin import SourceSpec

(SPEC,) = PackedPlugin().qconv_sources()


class Scribbler(PackedSource):
    def decode(self, tensor, parts):
        value = super().decode(tensor, parts)
        for part in parts.values():
            part.zero_()
        return value


class Fickle(PackedSource):
    def __init__(self):
        self.calls = 0

    def decode(self, tensor, parts):
        self.calls += 1
        value = super().decode(tensor, parts)
        return replace(value, codes=value.codes.roll(self.calls, dims=1))


class Infinite(PackedSource):
    def decode(self, tensor, parts):
        value = super().decode(tensor, parts)
        scale = torch.full_like(value.parameters["scale"], float("inf"))
        return replace(value, parameters={"scale": scale})


class Other(PackedSource):
    def decode(self, tensor, parts):
        return replace(super().decode(tensor, parts), grid=replace(GRID, search="absmax"))


class Silent(PackedSource):
    def tensors(self, model, read):
        return []


class Greedy(PackedSource):
    def tensors(self, model, read):
        return super().tensors(model, read) * 2


def spec_of(source: type[PackedSource]) -> SourceSpec:
    return replace(SPEC, load=lambda: source)


def test_a_sound_source_passes(tmp_path: Path) -> None:
    small_packed(tmp_path)
    check_source(SPEC, tmp_path)


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (Scribbler, "source 'toy-packed': tensor 'up.weight': decode modified the parts"),
        (Fickle, "tensor 'up.weight': a second call gives other codes"),
        (Infinite, "tensor 'up.weight': decoded values that are not finite"),
        (Other, r"decode gives shape \(6, 64\) on int4_g32, but tensors\(\) said"),
        (Silent, "names no quantized tensor"),
        (Greedy, "plugin author: source 'toy-packed' names tensor 'up.weight' twice"),
    ],
)
def test_an_unsound_source_is_named(tmp_path: Path, source: type[PackedSource], match: str) -> None:
    small_packed(tmp_path)
    with pytest.raises(ConformanceError, match=match):
        check_source(spec_of(source), tmp_path)


def test_what_a_source_recognizes_is_checked(tmp_path: Path) -> None:
    small_packed(tmp_path / "packed")
    hf_directory(tmp_path / "plain")
    with pytest.raises(ConformanceError, match="does not recognize"):
        check_source(SPEC, tmp_path / "plain")
    with pytest.raises(ConformanceError, match="recognizes the model without its quantization_co"):
        check_source(replace(SPEC, recognizes=lambda model: True), tmp_path / "packed")
