"""Load GGUF files in a real llama.cpp and print what it writes."""

from __future__ import annotations

import argparse
from pathlib import Path

from qconv_gguf._llama_cpp import LlamaCpp

PROMPT = (
    "<|im_start|>user\nWhat is the capital of France, and what is it known for?<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    for path in parser.parse_args().files:
        with LlamaCpp(path) as engine:
            text = engine.detokenize(engine.generate(engine.tokenize(PROMPT), 48))
            print(f"\n{path.name}, as llama.cpp runs it:\n  {text.strip()}")


if __name__ == "__main__":
    main()
