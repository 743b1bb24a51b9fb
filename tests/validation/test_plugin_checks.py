"""Checks that plugins bring: run with every validation, and held to their contract."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import qconv._host
from qconv.errors import BrokenPlugin
from qconv.plugin import CheckSpec, hookimpl
from qconv.testing import ConformanceError, check_plugin, check_validator_check
from toy_packed import host_with
from validation.damage import converted, model_at, validated


class NoNegativeNorms:
    """A house rule: norms are positive, and like the source's."""

    def faults(self, model, artifact, source):
        assert model.config["model_type"] == "llama" or not model.config
        for name, info in artifact.tensors.items():
            if len(info.shape) == 1 and not torch.equal(artifact.read(name), source.read(name)):
                yield f"tensor {name!r} is not the source's"
            if info.shape == (512, 256) and float(artifact.read(name)[0, 0]) != 0:
                change = float((artifact.read(name) - source.read(name)).norm())
                yield f"tensor {name!r} changed" if change > 0 else f"tensor {name!r} did not"


class Plugin:
    def __init__(self, check):
        self._check = check

    @hookimpl
    def qconv_checks(self):
        check = self._check
        yield CheckSpec(name="house", summary="a house rule", load=lambda: check, api_version=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return model_at(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def artifact(source, tmp_path_factory) -> Path:
    return converted(source, "gguf:q8_0", tmp_path_factory.mktemp("out"))


def install(monkeypatch, check) -> None:
    host = host_with(Plugin(check))
    monkeypatch.setattr(qconv._host, "load_plugins", lambda: host)


def test_what_a_check_finds_is_a_fault_of_the_artifact(source, artifact, monkeypatch):
    install(monkeypatch, NoNegativeNorms)
    result = validated(artifact, source)
    assert "house: tensor 'blk.0.ffn_up.weight' changed" in result.faults
    assert not [each for each in result.faults if "norm" in each]
    assert result.status == "fail"


def test_a_check_that_fails_names_its_author_and_the_way_out(source, artifact, monkeypatch):
    class Broken:
        def faults(self, model, artifact, source):
            raise ZeroDivisionError("oh")

    install(monkeypatch, Broken)
    with pytest.raises(
        BrokenPlugin, match=r"plugin author: check 'house' fails: ZeroDivisionError: oh; QCONV_DIS"
    ):
        validated(artifact, source)


def test_the_kit_loads_checks_and_tells_sound_ones_from_unsound_ones():
    class Sound:
        def faults(self, model, artifact, source):
            for name in artifact.tensors:
                if not torch.equal(artifact.read(name), source.read(name)):
                    yield f"tensor {name!r} differs"

    class Scribbler:
        def faults(self, model, artifact, source):
            for name in artifact.tensors:
                artifact.read(name).zero_()
            return []

    class Complainer:
        def faults(self, model, artifact, source):
            return ["nothing is ever good enough"]

    check_plugin(Plugin(Sound))
    check_validator_check(Sound)
    with pytest.raises(ConformanceError, match=r"modified tensor 'model.layers.0"):
        check_validator_check(Scribbler)
    with pytest.raises(ConformanceError, match="finds fault with an artifact that equals"):
        check_validator_check(Complainer)
    with pytest.raises(ConformanceError, match="faults"):
        check_plugin(Plugin(object))
