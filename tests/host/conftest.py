"""Real dist-info folders on a temporary sys.path: plugins as a package manager leaves them."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Install = Callable[..., None]

OURS = """
from qconv.plugin import BackendSpec, FormatSpec, MethodSpec, OptionSpec, hookimpl

class Rtn:
    def quantize(self, weight, grid, statistics=None): ...

class Gguf:
    def plan_tensors(self, request): ...
    def layout(self, request, plans): ...
    def encode(self, plan, value): ...
    def open(self, path): ...

@hookimpl
def qconv_methods():
    yield MethodSpec(name="rtn", summary="round to nearest", api_version=1, load=lambda: Rtn)

@hookimpl
def qconv_backends():
    yield BackendSpec(
        name="gguf",
        summary="llama.cpp",
        formats=tuple(FormatSpec(name=name, summary="") for name in ("q8_0", "q4_k_m", "q4_k_s")),
        options=(OptionSpec(name="search", summary="", choices=("default", "ggml")),
                 OptionSpec(name="name", summary="")),
        api_version=1,
        load=lambda: Gguf,
    )
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a distribution: its name, its entry points, its modules by name, its version."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delenv("QCONV_DISABLE_PLUGINS", raising=False)
    before = set(sys.modules)

    def install(
        distribution: str,
        entry_points: dict[str, str] | str,
        modules: dict[str, str],
        version: str = "1.0",
    ) -> None:
        folder = site / f"{distribution}-{version}.dist-info"
        folder.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        (folder / "METADATA").write_text(metadata)
        if isinstance(entry_points, dict):
            lines = [f"{name} = {value}" for name, value in entry_points.items()]
            entry_points = "\n".join(["[qconv.plugins]", *lines, ""])
        (folder / "entry_points.txt").write_text(entry_points)
        for name, source in modules.items():
            (site / f"{name}.py").write_text(textwrap.dedent(source))
        importlib.invalidate_caches()

    # Found first, it stands in for the installed qconv, so that these tests know what is there.
    install("qconv", {"ours": "fake_ours"}, {"fake_ours": OURS}, version="9.9")
    yield install
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(site)):
            del sys.modules[name]
