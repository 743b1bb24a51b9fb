"""A tiny model on disk, made once."""

from __future__ import annotations

import pytest

from calibration.tokenized import save_model
from qconv.checkpoint import open_checkpoint


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture
def checkpoint(tiny_folder):
    with open_checkpoint(tiny_folder) as opened:
        yield opened
