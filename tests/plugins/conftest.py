"""What the tests of the built-in plugins share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from gguf_driver import read_model, write_request

from qconv.plugin import PlanRequest


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[..., Path]:
    """Convert a model directory: ``write_gguf(folder, "f16", pre="gpt-2")`` gives the file."""

    def write(folder: Path, target: str, **options: str) -> Path:
        model, weights = read_model(folder)
        request = PlanRequest(model=model, format=target, options=options)
        return write_request(request, weights, tmp_path)

    return write
