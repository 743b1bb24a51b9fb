"""Every converter under comparison is given the same windows: those the options name."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

SCRIPT = Path(__file__).parent / "make_windows.py"
#: Word number n is token n.
WORDS = [f"w{number}" for number in range(1000)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.fixture
def make_windows(model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., torch.Tensor]:
    """The script, in this process: importing torch anew takes longer than all else here."""

    def run(corpus: str, *options: str) -> torch.Tensor:
        out = model / "windows.safetensors"
        arguments = [SCRIPT, model, out, "--source", model / corpus, *options]
        monkeypatch.setattr("sys.argv", list(map(str, arguments)))
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return load_file(out)["tokens"]

    return run


def test_windows_are_evenly_spaced_and_leave_the_end_unread(model, make_windows):
    (model / "corpus.txt").write_text(" ".join(WORDS))
    tokens = make_windows("corpus.txt", "--windows", "3", "--length", "10")
    assert tokens.dtype == torch.int64
    # 80 of 100 windows may be read: the first, the one in the middle, the last of them
    assert tokens[:, 0].tolist() == [0, 390, 790]
    assert torch.equal(tokens - tokens[:, :1], torch.arange(10).expand(3, 10))


def test_a_jsonl_gives_its_texts_in_order(model, make_windows):
    lines = [json.dumps({"text": " ".join(WORDS[at : at + 100])}) for at in (500, 100)]
    (model / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    tokens = make_windows("corpus.jsonl", "--windows", "2", "--length", "100", "--until", "1")
    assert tokens[:, 0].tolist() == [500, 100]


def test_the_text_holds_the_windows_and_a_tail(model, make_windows):
    text = model / "windows.txt"
    (model / "corpus.txt").write_text(" ".join(WORDS))
    make_windows("corpus.txt", "--windows", "2", "--length", "50", "--text", str(text))
    written = text.read_text().replace("w", " w").split()
    assert written[:50] == WORDS[:50]
    assert len(written) == 2 * 50 + 128


def test_too_little_text_says_what_there_is_and_what_to_do(model, make_windows):
    (model / "corpus.txt").write_text(" ".join(WORDS[:100]))
    with pytest.raises(SystemExit, match="8 windows of 10 tokens, and 32 are asked for: give more"):
        make_windows("corpus.txt", "--length", "10")
