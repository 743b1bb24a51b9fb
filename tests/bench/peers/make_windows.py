"""Calibration windows as a file, so that every converter under comparison reads the same tokens.

    python tests/bench/peers/make_windows.py MODEL windows.safetensors --text windows.txt
    python tests/bench/peers/make_windows.py MODEL windows.safetensors --source corpus.jsonl

Writes one int64 tensor `tokens` (windows, length). The text is cut into windows that do not
overlap, and as many as asked for are taken from them, evenly spaced; `--until` leaves the end of
the text unread, for an evaluation. `--text` writes the same windows as text, for tools that take
nothing else: decoded windows meet in other words than they were cut from, so tokenizing that text
again differs by a token or so at the seams, and it ends in TAIL tokens more, so that the last
window is full.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from pydoc_data import topics

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

#: Tokens that follow the last window in the text: more than the seams can lose.
TAIL = 128


def read_text(source: str) -> str:
    """`topics`: Python's own help texts; a .jsonl's `text` fields; or a text file as it is."""
    if source == "topics":
        return "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
    path = Path(source)
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".jsonl":
        return text
    return "\n\n".join(json.loads(line)["text"] for line in text.splitlines() if line.strip())


def cut_windows(ids: list[int], *, count: int, length: int, until: float) -> torch.Tensor:
    """Evenly spaced windows of the first `until` of ids: (count, length) int64."""
    whole = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    usable = whole[: int(len(whole) * until)]
    if len(usable) < count:
        raise SystemExit(
            f"the text has {len(usable)} windows of {length} tokens, and {count} are asked for: "
            "give more text with --source, or fewer --windows"
        )
    return usable[torch.linspace(0, len(usable) - 1, count).long()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("model", type=Path, help="folder with tokenizer.json")
    parser.add_argument("out", type=Path, help="safetensors file to write")
    parser.add_argument("--source", default="topics", help="'topics', a text file or a .jsonl")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--length", type=int, default=512, help="tokens per window")
    parser.add_argument("--until", type=float, default=0.8, help="share of the text to take from")
    parser.add_argument("--text", type=Path, help="write the windows as text here, too")
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    ids = tokenizer.encode(read_text(options.source), add_special_tokens=False).ids
    tokens = cut_windows(ids, count=options.windows, length=options.length, until=options.until)
    save_file({"tokens": tokens}, options.out)
    if options.text:
        windows = [*tokens.tolist(), ids[:TAIL]]
        text = "".join(tokenizer.decode(window, skip_special_tokens=False) for window in windows)
        options.text.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
