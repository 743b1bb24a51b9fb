"""The fact that reading a large file in slabs leaves memory at the slab in hand."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import psutil
import pytest

from checkpoint.written import beside_config, safetensors_bytes
from qconv.checkpoint import open_checkpoint

ROWS, COLUMNS = 4096, 100_000
SLAB = 64


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="pages cannot be given back here")
def test_resident_memory_stays_at_the_rows_in_hand(tmp_path: Path) -> None:
    size = ROWS * COLUMNS
    header = {"w": {"dtype": "I8", "shape": [ROWS, COLUMNS], "data_offsets": [0, size]}}
    path = beside_config(tmp_path, safetensors_bytes(header))
    os.truncate(path, path.stat().st_size + size)
    process = psutil.Process()
    with open_checkpoint(path) as checkpoint:
        checkpoint.read_rows("w", 0, SLAB)
        before = peak = process.memory_info().rss
        for start in range(0, ROWS, SLAB):
            slab = checkpoint.read_rows("w", start, start + SLAB)
            assert not slab.any()
            peak = max(peak, process.memory_info().rss)
    # 410 MB pass by; a slab is 6.4 MB, and its predecessor may still wait to be freed.
    assert peak - before < 40 * 2**20
