"""Reading a large file in slabs leaves memory at the slab in hand, packed or not."""

from __future__ import annotations

import gc
import mmap
import os
import re
import sys
from pathlib import Path

import psutil
import pytest
import torch

from checkpoint.written import beside_config, safetensors_bytes
from qconv.checkpoint import DecodedCheckpoint, open_checkpoint
from qconv.tensors import QuantTensor
from toy_packed import GRID, PackedSource, save_packed

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


RESET = Path("/proc/self/clear_refs")


def peak_nbytes() -> int:
    """The most that was resident since the peak was reset."""
    (line,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) * 1024


@pytest.mark.skipif(not os.access(RESET, os.W_OK), reason="only Linux tells the peak of a part")
def test_a_packed_tensor_is_held_as_codes_while_its_rows_pass_by(tmp_path: Path) -> None:
    rows, columns = 2048, 16_384
    held = QuantTensor(
        grid=GRID,
        codes=torch.ones(rows, columns, dtype=torch.int8),
        parameters={"scale": torch.ones(rows, columns // 32, dtype=torch.float16)},
    )
    save_packed(tmp_path, {"a.weight": held}, {})
    del held
    with DecodedCheckpoint(open_checkpoint(tmp_path), PackedSource(), "toy") as checkpoint:
        gc.collect()
        before = psutil.Process().memory_info().rss
        RESET.write_text("5")  # the number that resets the peak, see proc(5)
        for start in range(0, rows, SLAB):
            slab = checkpoint.read_rows("a.weight", start, start + SLAB)
            assert slab[-1, -1].item() == 1.0
        most = peak_nbytes() - before
    in_hand = 3 * 4 * SLAB * columns  # the slab, and what is between codes and values
    assert most < checkpoint.working_nbytes(1) + in_hand
    assert most < 4 * rows * columns  # what it would take in float32
