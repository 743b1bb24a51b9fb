"""The example that strangers copy works, installed from its own pyproject.toml."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from qconv._host import Host, load_plugins
from qconv.plugin import ConversionFinished

EXAMPLE = Path(__file__).parent / "qconv-example"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dist-info folder as pip would make it, on sys.path."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    folder = tmp_path / f"qconv_example-{project['version']}.dist-info"
    folder.mkdir()
    name, version = project["name"], project["version"]
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    points = [f"{key} = {value}" for key, value in project["entry-points"]["qconv.plugins"].items()]
    (folder / "entry_points.txt").write_text("\n".join(["[qconv.plugins]", *points, ""]))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("QCONV_DISABLE_PLUGINS", raising=False)
    return tmp_path


@pytest.fixture
def host(installed: Path) -> Host:
    return load_plugins()


def test_the_example_is_found_and_sound(host: Host) -> None:
    (record,) = [item for item in host.listing() if item.distribution == "qconv-example"]
    assert (record.status, record.reason) == ("ok", "")
    assert [spec.name for spec in record.methods] == ["clip"]
    assert type(host.method("clip")).__name__ == "Clip"


def test_the_example_watches_conversions(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="qconv_example"):
        host.notify(ConversionFinished(seconds=2.0))
    assert caplog.messages == ["converted in 2.0 s"]


def test_listing_the_example_imports_no_torch(installed: Path) -> None:
    program = f"""
import sys
sys.path[:0] = {[str(installed), str(EXAMPLE / "src")]!r}
from qconv._host import load_plugins
assert "clip" in [spec.name for spec in load_plugins().methods]
sys.exit("torch" in sys.modules)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_our_own_plugins_are_sound(host: Host) -> None:
    ours = [item for item in host.listing() if item.distribution == "qconv"]
    names = ("awq", "gguf", "gptq", "onnx", "rtn", "safetensors", "signround", "smoothquant")
    assert {item.entry_point: item.reason for item in ours} == dict.fromkeys(names, "")
