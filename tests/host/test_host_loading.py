"""Sound plugins: the order they load in, switching them off, and getting what they offer."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qconv._host import load_plugins
from qconv.errors import BrokenPlugin, UsageError
from qconv.plugin import ConversionFinished

if TYPE_CHECKING:
    from host.conftest import Install

PLUGIN = """
from qconv.plugin import CheckSpec, MethodSpec, hookimpl

class Good:
    def quantize(self, weight, grid, importance=None): ...

class Bare: ...

class Short:
    def quantize(self, weight): ...

def fails(): raise ImportError("no accelerator library")
def leaves(): raise SystemExit(1)

@hookimpl
def qconv_methods():
    for name, load in dict(
        good=lambda: Good, bare=lambda: Bare, short=lambda: Short, fails=fails, leaves=leaves,
        nothing=lambda: None,
    ).items():
        yield MethodSpec(name=name, summary=name, api_version=1, load=load)

@hookimpl
def qconv_checks():
    yield CheckSpec(name="looks-right", summary="", api_version=1, load=lambda: Good)
"""


def test_ours_load_first_then_by_distribution_and_name(install: Install) -> None:
    observer = "from qconv.plugin import hookimpl\n@hookimpl\ndef qconv_event(event): ...\n"
    modules = {f"watch_{name}": observer for name in "abcd"}
    install("z-last", {"d": "watch_d"}, modules)
    install("A.first", {"c": "watch_c", "b": "watch_b"}, {})
    listed = [(item.distribution, item.entry_point) for item in load_plugins().listing()]
    assert listed == [("qconv", "ours"), ("A.first", "b"), ("A.first", "c"), ("z-last", "d")]


def test_a_distribution_found_twice_counts_once(install: Install) -> None:
    install("extra", {"extra": "extra_plugin"}, {"extra_plugin": PLUGIN})
    install("Extra", {"extra": "extra_plugin"}, {}, version="2.0")
    assert len([item for item in load_plugins().listing() if item.entry_point == "extra"]) == 1


def test_missing_metadata_leaves_the_folder_name(install: Install, tmp_path: Path) -> None:
    install("extra", {"extra": "extra_plugin"}, {"extra_plugin": PLUGIN}, version="1.2")
    (tmp_path / "site" / "extra-1.2.dist-info" / "METADATA").unlink()
    record = load_plugins().listing()[-1]
    assert (record.distribution, record.version, record.status) == ("extra", "1.2", "ok")


@pytest.mark.parametrize(
    ("value", "disabled"),
    [
        ("", []),
        ("extra", ["extra"]),
        ("extra-dist", ["extra"]),
        ("*", ["extra"]),
        ("ours", ["ours"]),
        (" ours , Extra ", ["ours", "extra"]),
        ("ours,*", ["ours", "extra"]),
    ],
)
def test_environment_disables_plugins(
    install: Install, monkeypatch: pytest.MonkeyPatch, value: str, disabled: list[str]
) -> None:
    install("extra-dist", {"extra": "extra_plugin"}, {"extra_plugin": PLUGIN})
    monkeypatch.setenv("QCONV_DISABLE_PLUGINS", value)
    records = load_plugins().listing()
    assert [item.entry_point for item in records if item.status == "disabled"] == disabled


def test_a_disabled_plugin_is_not_imported_and_says_so(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("extra", {"extra": "extra_plugin"}, {"extra_plugin": "raise KeyboardInterrupt"})
    monkeypatch.setenv("QCONV_DISABLE_PLUGINS", "*")
    with pytest.raises(BrokenPlugin, match="disabled by QCONV_DISABLE_PLUGINS"):
        load_plugins().method("extra")


def test_records_are_json(install: Install) -> None:
    install("extra", {"extra": "extra_plugin"}, {"extra_plugin": PLUGIN})
    ours, extra = json.loads(json.dumps([item.to_json() for item in load_plugins().listing()]))
    assert [item["name"] for item in ours["backends"][0]["formats"]] == ["q8_0", "q4_k_m", "q4_k_s"]
    assert extra["checks"] == [{"name": "looks-right", "summary": ""}]
    assert extra["status"] == "ok"


def test_methods_and_backends_load_by_any_spelling(install: Install) -> None:
    install("extra", {"extra": "extra_plugin"}, {"extra_plugin": PLUGIN})
    host = load_plugins()
    assert type(host.method("GOOD")).__name__ == "Good"
    assert type(host.backend("GGUF")).__name__ == "Gguf"
    assert host.method("good") is not host.method("good")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fails", r"loading method 'fails' failed: ImportError: no accelerator library"),
        ("leaves", r"loading method 'leaves' called sys.exit\(1\)"),
        ("nothing", r"'NoneType' object is not callable"),
        ("bare", r"plugin author: method 'bare': Bare lacks quantize\(\)"),
        ("short", r"Short.quantize\(\) must take \(weight, grid, statistics\)"),
    ],
)
def test_what_cannot_be_loaded_names_its_plugin(install: Install, name: str, reason: str) -> None:
    install("extra", {"extra": "extra_plugin"}, {"extra_plugin": PLUGIN})
    with pytest.raises(BrokenPlugin, match=r"^plugin 'extra' of extra 1\.0: .*" + reason):
        load_plugins().method(name)


@pytest.mark.usefixtures("install")
def test_unknown_names_suggest_and_list() -> None:
    host = load_plugins()
    with pytest.raises(
        UsageError, match=r"unknown method 'rnt'; did you mean rtn\? \(methods: rtn\)"
    ):
        host.method("rnt")
    with pytest.raises(UsageError, match=r"unknown backend 'onnx' \(backends: gguf\)"):
        host.backend("onnx")


OBSERVERS = """
from qconv.plugin import hookimpl

seen = []

class Raising:
    @hookimpl
    def qconv_event(self, event):
        seen.append("raising")
        raise {error}

class Blind:
    @hookimpl
    def qconv_event(self):
        seen.append("blind")

raising, blind = Raising(), Blind()
"""


@pytest.mark.parametrize("error", ["ValueError('disk on fire')", "SystemExit(3)"])
def test_a_raising_observer_is_logged_once_and_stops_nobody(
    install: Install, caplog: pytest.LogCaptureFixture, error: str
) -> None:
    points = {"a": "watchers:raising", "b": "watchers:blind"}
    install("watch", points, {"watchers": OBSERVERS.format(error=error)})
    host = load_plugins()
    with caplog.at_level(logging.WARNING, logger="qconv"):
        host.notify(ConversionFinished(seconds=1.0))
        host.notify(ConversionFinished(seconds=2.0))
    import watchers

    assert watchers.seen == ["raising", "blind"] * 2
    assert len(caplog.messages) == 1
    assert "plugin 'a' of watch 1.0: hook qconv_event failed" in caplog.messages[0]


def test_keyboard_interrupt_in_an_observer_stops_the_work(install: Install) -> None:
    source = OBSERVERS.format(error="KeyboardInterrupt")
    install("watch", {"a": "watchers:raising"}, {"watchers": source})
    with pytest.raises(KeyboardInterrupt):
        load_plugins().notify(ConversionFinished(seconds=1.0))
