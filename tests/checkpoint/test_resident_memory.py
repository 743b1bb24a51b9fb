"""The fact that reading a large file in slabs leaves memory at the slab in hand."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import psutil
import pytest

from checkpoint.written import beside_config, safetensors_bytes
from qconv.checkpoint import open_checkpoint

ROWS, COLUMNS = 4096, 100_000
SLAB = 64


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(mmap, "MADV_DONTNEED"),
    reason="only Linux drops mapped pages at once",
)
def test_resident_memory_stays_at_the_rows_in_hand(tmp_path: Path) -> None:
    size = ROWS * COLUMNS
    header = {"w": {"dtype": "I8", "shape": [ROWS, COLUMNS], "data_offsets": [0, size]}}
    path = beside_config(tmp_path, safetensors_bytes(header))
    os.truncate(path, path.stat().st_size + size)
    process = psutil.Process()
    most_mapped = most = 0
    with open_checkpoint(path) as checkpoint:
        checkpoint.read_rows("w", 0, SLAB)
        before = process.memory_info()
        for start in range(0, ROWS, SLAB):
            slab = checkpoint.read_rows("w", start, start + SLAB)
            assert slab[-1, -1].item() == 0
            now = process.memory_info()
            most_mapped = max(most_mapped, now.shared - before.shared)
            most = max(most, now.rss - before.rss)
    # 410 MB pass by. A piece under way is 4 MB, a slab 6.4 MB, of which malloc keeps some.
    assert most_mapped < 16 * 2**20
    assert most < 128 * 2**20
