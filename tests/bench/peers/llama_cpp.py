"""llama.cpp converts to F16 GGUF, measures an importance matrix, quantizes; prints what each took.

    python llama_cpp.py MODEL OUT --source llama.cpp --tools build/bin --text windows.txt

OUT becomes a folder: f16.gguf, imatrix.gguf, and of each type TYPE.gguf and TYPE-imatrix.gguf.
`--python` is the interpreter that convert_hf_to_gguf.py runs in (torch, transformers). Tools built
with `-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_CPU_REPACK=OFF` run on
virtual machines that announce AMX and trap it; the default build does not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import figures


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--source", type=Path, required=True, help="llama.cpp's source tree")
    parser.add_argument("--tools", type=Path, required=True, help="folder with llama-quantize")
    parser.add_argument("--text", type=Path, help="make_windows.py's text; none: no imatrix")
    parser.add_argument("--length", type=int, default=512, help="tokens per window")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--types", nargs="+", default=["Q4_K_M"])
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def run(command: list[str | Path]) -> dict[str, float]:
    """Run to the end; its seconds. Its output goes to standard error only where it fails."""
    watch = figures.Stopwatch.start()
    done = subprocess.run(command, check=False, capture_output=True)
    if done.returncode:
        sys.stderr.buffer.write(done.stdout + done.stderr)
        raise SystemExit(f"exit status {done.returncode}: {' '.join(map(str, command))}")
    return watch.seconds()


def report(scheme: str, seconds: dict[str, float], out: Path, threads: int) -> None:
    figures.report("llama.cpp", scheme, quantizing=seconds, threads=threads, out=str(out))


def main() -> None:
    options = parse()
    figures.limit_threads(options.threads)
    os.environ.pop("NO_LOCAL_GGUF", None)  # the tree's own gguf package is the one that fits it
    options.out.mkdir(parents=True, exist_ok=True)
    threads = str(options.threads)
    float16, importance = options.out / "f16.gguf", options.out / "imatrix.gguf"

    convert = options.source / "convert_hf_to_gguf.py"
    took = run([options.python, convert, options.model, "--outtype", "f16", "--outfile", float16])
    report("convert-f16", took, float16, options.threads)
    variants: list[tuple[str, list[str | Path]]] = [("", [])]
    if options.text:
        window = ["-c", str(options.length), "--chunks", str(options.windows)]
        took = run(
            [options.tools / "llama-imatrix", "-m", float16, "-f", options.text,
             "-o", importance, "-t", threads, "--no-ppl", *window]
        )  # fmt: skip
        report("imatrix", took, importance, options.threads)
        variants.append(("-imatrix", ["--imatrix", importance]))
    for kind in options.types:
        for suffix, arguments in variants:
            out = options.out / f"{kind}{suffix}.gguf"
            took = run([options.tools / "llama-quantize", *arguments, float16, out, kind, threads])
            report(f"{kind}{suffix}", took, out, options.threads)


if __name__ == "__main__":
    main()
