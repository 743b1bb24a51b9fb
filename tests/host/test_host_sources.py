"""Sources of plugins: listed, named once, asked whether they recognize a checkpoint."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from qconv._host import load_plugins
from qconv.errors import BrokenPlugin, UsageError
from qconv.plugin import ModelInfo

if TYPE_CHECKING:
    from host.conftest import Install

PLUGIN = """
from qconv.plugin import SourceSpec, hookimpl

class Packed:
    def tensors(self, model, read): ...
    def decode(self, tensor, parts): ...

class Bare:
    def tensors(self, model, read): ...

def method(model):
    return model.config.get("quantization_config", {}).get("quant_method")

@hookimpl
def qconv_sources():
    for name, load in dict(packed=lambda: Packed, bare=lambda: Bare).items():
        yield SourceSpec(
            name=name,
            summary=f"{name} weights",
            recognizes=lambda model, name=name: method(model) == name,
            api_version=1,
            load=load,
        )
"""


def model(quant_method: object) -> ModelInfo:
    return ModelInfo(
        kind="safetensors",
        name="toy",
        config={"quantization_config": {"quant_method": quant_method}},
        tensors={},
        files={},
        metadata={},
    )


def broken(install: Install, source: str) -> str:
    install("stranger", {"strange": "stranger_plugin"}, {"stranger_plugin": source})
    record = load_plugins().listing()[-1]
    assert record.status == "broken"
    assert load_plugins().sources == ()
    return record.reason


def test_sources_are_listed_and_load_by_any_spelling(install: Install) -> None:
    install("extra", {"extra": "extra_plugin"}, {"extra_plugin": PLUGIN})
    host = load_plugins()
    assert [spec.name for spec in host.sources] == ["packed", "bare"]
    assert type(host.source("PACKED")).__name__ == "Packed"
    listed = json.loads(json.dumps(host.listing()[-1].to_json()))
    assert listed["sources"][0] == {"name": "packed", "summary": "packed weights"}


def test_the_source_that_recognizes_a_model_is_found(install: Install) -> None:
    install("extra", {"extra": "extra_plugin"}, {"extra_plugin": PLUGIN})
    host = load_plugins()
    assert [spec.name for spec in host.recognizing(model("packed"))] == ["packed"]
    assert host.recognizing(model("gptq")) == ()


def test_an_unknown_source_is_refused(install: Install) -> None:
    install("extra", {"extra": "extra_plugin"}, {"extra_plugin": PLUGIN})
    with pytest.raises(UsageError, match=r"unknown source 'packd'; did you mean packed\?"):
        load_plugins().source("packd")


def test_a_source_without_the_protocols_methods_names_its_plugin(install: Install) -> None:
    install("extra", {"extra": "extra_plugin"}, {"extra_plugin": PLUGIN})
    with pytest.raises(BrokenPlugin, match=r"source 'bare': Bare lacks decode\(\); see .*Source"):
        load_plugins().source("bare")


def test_a_source_that_cannot_tell_names_its_plugin_and_the_way_out(install: Install) -> None:
    source = PLUGIN.replace("method(model) == name", "1 / 0")
    install("extra", {"extra": "extra_plugin"}, {"extra_plugin": source})
    with pytest.raises(
        BrokenPlugin,
        match=r"plugin 'extra' of extra 1.0: plugin author: source 'packed': recognizes\(\) "
        "failed: ZeroDivisionError.*QCONV_DISABLE_PLUGINS=extra leaves the plugin out",
    ):
        load_plugins().recognizing(model("packed"))


def test_recognizes_must_be_a_function(install: Install) -> None:
    source = re.sub(r"recognizes=lambda.*", "recognizes='packed',", PLUGIN)
    assert "source 'packed': recognizes is a str; it must be a function" in broken(install, source)


def test_a_source_named_twice_breaks_its_plugin(install: Install) -> None:
    source = PLUGIN.replace("name=name,\n", "name='packed',\n")
    assert "source 'packed' is taken by this plugin itself" in broken(install, source)


def test_a_source_of_a_broken_plugin_is_named_when_asked_for(install: Install) -> None:
    broken(install, PLUGIN + "\n    1 / 0\n")
    with pytest.raises(BrokenPlugin, match=r"source 'packed' is not available: plugin 'strange'"):
        load_plugins().source("packed")
