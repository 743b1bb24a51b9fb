"""Fixtures for all tests: the real models, and tiny ones built on the spot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

MODELS = Path(os.environ.get("QCONV_TEST_MODELS", Path(__file__).parents[1] / ".models"))


def _real(name: str) -> Path:
    folder = MODELS / name
    if not (folder / "config.json").is_file():
        pytest.skip(f"{folder} is missing: python tests/reference_model.py {MODELS}")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M as a float checkpoint: hidden size 576, which no K-quant divides."""
    return _real("smollm2-135m")


@pytest.fixture(scope="session")
def smollm2_wide() -> Path:
    """The same function with hidden size 768, so that K-quants apply."""
    return _real("smollm2-135m-wide")


@pytest.fixture
def toy_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs the toy family of quantized checkpoints, see ``toy_packed.py``."""
    import qconv._host
    from toy_packed import PackedPlugin, host_with

    host = host_with(PackedPlugin())
    monkeypatch.setattr(qconv._host, "load_plugins", lambda: host)
    monkeypatch.setattr("qconv.inspection._inspect.load_plugins", lambda: host)
