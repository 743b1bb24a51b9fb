"""The command on what users really have: one clear error, the right code, nothing lost or left."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from qconv.cli._run import run

WORD = "blk.0.ffn_up.weight"


def write_gguf(path: Path, **changes: np.ndarray) -> Path:
    """A float GGUF of three tensors. changes: tensors by name, dots as double underscores."""
    import gguf

    random = np.random.default_rng(0)
    tensors = {
        "token_embd.weight": random.standard_normal((64, 256), dtype=np.float32),
        WORD: random.standard_normal((128, 256), dtype=np.float32),
        "output_norm.weight": np.ones(256, np.float32),
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def qconv(capsys, tmp_path, monkeypatch):
    """Run a command line in ``tmp_path``: exit code, and the lines on stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> tuple[int, list[str], str]:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.err.splitlines(), captured.out

    return call


def refused(ran: tuple[int, list[str], str], code: int, words: str) -> None:
    assert ran[0] == code
    assert [line for line in ran[1] if not line.startswith("converting ")] == [
        line for line in ran[1] if line.startswith("error: ")
    ]
    (error,) = (line for line in ran[1] if line.startswith("error: "))
    assert words in error


def damaged(**at: tuple[int, ...]) -> np.ndarray:
    weight = np.ones((128, 256), np.float32)
    weight[at["nan"]] = np.nan
    return weight


def test_a_damaged_weight_costs_neither_the_old_artifact_nor_disk(qconv, tmp_path):
    source = write_gguf(tmp_path / "m.gguf", blk__0__ffn_up__weight=damaged(nan=(99, 7)))
    old = tmp_path / "o" / "m-Q8_0.gguf"
    old.parent.mkdir()
    old.write_bytes(b"precious")
    ran = qconv(source, "--to", "gguf:q8_0", "-o", "o", "--force", "-q")
    refused(ran, 3, f"tensor '{WORD}' (for '{WORD}'): row 99, column 7 is nan")
    assert old.read_bytes() == b"precious"
    assert os.listdir(old.parent) == [old.name]


def test_an_error_under_json_is_a_document(qconv, tmp_path):
    source = write_gguf(tmp_path / "m.gguf", blk__0__ffn_up__weight=damaged(nan=(0, 0)))
    code, _, out = qconv(source, "--to", "gguf:q8_0", "--json", "-q")
    assert json.loads(out)["error"]["exit_code"] == code == 3


def test_an_existing_output_is_kept_unless_forced(qconv, tmp_path):
    source, old = write_gguf(tmp_path / "m.gguf"), tmp_path / "m-Q8_0.gguf"
    old.write_bytes(b"precious")
    refused(qconv(source, "--to", "gguf:q8_0", "-q"), 2, "exists; pass --force")
    assert old.read_bytes() == b"precious"
    assert qconv(source, "--to", "gguf:q8_0", "-q", "--force")[0] == 0
    assert old.read_bytes()[:4] == b"GGUF"


def test_force_spares_a_folder_in_the_way(qconv, tmp_path):
    source = write_gguf(tmp_path / "m.gguf")
    (tmp_path / "m-Q8_0.gguf").mkdir()
    (tmp_path / "m-Q8_0.gguf" / "precious").touch()
    ran = qconv(source, "--to", "gguf:q8_0", "-q", "--force")
    refused(ran, 2, "is a directory, where a file is to be written")
    assert (tmp_path / "m-Q8_0.gguf" / "precious").exists()


def test_a_link_to_what_would_be_written_is_the_input_itself(qconv, tmp_path):
    precious = write_gguf(tmp_path / "o" / "m-Q8_0.gguf")
    (tmp_path / "m.gguf").symlink_to(precious)
    ran = qconv("m.gguf", "--to", "gguf:q8_0", "-q", "--force", "-o", "./o/../o/")
    refused(ran, 2, "is the input itself")
    assert os.listdir(precious.parent) == [precious.name]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--to", "gguf:q4kmm"], 2, "did you mean gguf:q4_k_m?"),
        (["--to", "gguf:q4km", "--to", "GGUF:Q4_K_M"], 2, "a target is given twice"),
        (["--to", "gguf:q8_0", "--max-fallback", "101%"], 2, "--max-fallback '101%'"),
        (["--to", "gguf:q8_0", "--max-ram", "1KB"], 5, "raise --max-ram or lower --threads"),
        (["--to", "gguf:q8_0", "--threads", "0"], 2, "'--threads'"),
        (["--to", "gguf:q8_0", "-o", "m.gguf"], 2, "is a file; choose a directory"),
        (["--to", "gguf:q8_0", "-o", "m.gguf/x"], 2, "cannot write to output directory"),
        (["--to", "gguf:q8_0", "-o", "x" * 300], 2, "File name too long"),
    ],
)
def test_a_wrong_command_leaves_nothing(qconv, tmp_path, arguments, code, words):
    write_gguf(tmp_path / "m.gguf")
    refused(qconv("m.gguf", *arguments, "-q"), code, words)
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_a_loop_of_links_as_output_is_no_bug(qconv, tmp_path):
    source = write_gguf(tmp_path / "m.gguf")
    (tmp_path / "loop").symlink_to("loop")
    refused(qconv(source, "--to", "gguf:q8_0", "-o", "loop", "-q"), 2, "output directory 'loop'")


def test_odd_names_are_written_as_they_are(qconv, tmp_path):
    source = write_gguf(tmp_path / "a b [x]\n\u00fc.gguf")
    assert qconv(source, "--to", "gguf:q8_0", "-o", "o [t]", "-q")[0] == 0
    assert os.listdir(tmp_path / "o [t]") == ["a b [x]\n\u00fc-Q8_0.gguf"]
