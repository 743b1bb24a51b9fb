"""The whole command on about 1.17 billion random weights, against the peers' own tools.

    python tests/bench/whole.py
    python tests/bench/whole.py --convert convert_hf_to_gguf.py --quantize llama-quantize
    python tests/bench/whole.py --to safetensors:int4 --llm-compressor PYTHON --gptqmodel PYTHON

Prints wall seconds, CPU seconds and peak memory of each command, and qconv's as ratios of each
peer's; llama.cpp's are the sum of its two commands. No peer reads back what it wrote, so qconv runs
both as it does by itself and without that check. The peers run only when they are given, as they
live in environments of their own, and only for their format: llama.cpp for GGUF, llm-compressor
and GPTQModel, both rounding to nearest in groups of 128, for safetensors. Every command runs once
unmeasured first, so that all find their files cached and their code compiled; what a run wrote is
removed before the next.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, LAYERS, HEADS, KV_HEADS, FFN, VOCAB = 2048, 16, 32, 8, 8192, 49152
TOKENIZER = Path(__file__).parents[2] / ".models" / "smollm2-135m"
PEERS = Path(__file__).parent / "peers"
OUT = "out"  # below the working folder: what commands write


@dataclass(frozen=True)
class Figures:
    """What one command took. peak_mb: largest resident set, in units of 10^6 bytes."""

    wall: float
    cpu: float
    peak_mb: float


def make_checkpoint(out: Path) -> None:
    """Random bfloat16 Llama weights in two shards with a real tokenizer."""
    generator = torch.Generator().manual_seed(0)

    def weight(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).mul_(0.02).to(torch.bfloat16)

    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KV_HEADS * 64, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * 64, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (FFN, HIDDEN),
        "mlp.up_proj": (FFN, HIDDEN),
        "mlp.down_proj": (HIDDEN, FFN),
    }
    shards: list[dict[str, torch.Tensor]] = [
        {"model.embed_tokens.weight": weight(VOCAB, HIDDEN)},
        {"model.norm.weight": torch.ones(HIDDEN), "lm_head.weight": weight(VOCAB, HIDDEN)},
    ]
    for layer in range(LAYERS):
        shard = shards[layer * 2 // LAYERS]
        for name, shape in shapes.items():
            shard[f"model.layers.{layer}.{name}.weight"] = weight(*shape)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shard[f"model.layers.{layer}.{norm}.weight"] = torch.ones(HIDDEN)
    index = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, out / name, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, name)
    (out / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    _write_companions(out)


def _write_companions(out: Path) -> None:
    config = json.loads((TOKENIZER / "config.json").read_text())
    config |= {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": FFN,
        "vocab_size": VOCAB,
        "tie_word_embeddings": False,
    }
    (out / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(TOKENIZER / name, out / name)


#: Starts the command from a small process: a child's peak counts its parent's size at the fork.
LAUNCH = """
import json, os, subprocess, sys, time
began = time.monotonic()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
wall = time.monotonic() - began
peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps([wall, usage.ru_utime + usage.ru_stime, peak / 1e6]))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def measure(command: list[str]) -> Figures:
    """Run a command to its end; the kernel's own accounting of that process."""
    launch = [sys.executable, "-c", LAUNCH, *command]
    done = subprocess.run(launch, check=False, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr.decode()[-2000:]}")
    wall, cpu, peak_mb = json.loads(done.stdout)
    return Figures(wall=wall, cpu=cpu, peak_mb=peak_mb)


Commands = dict[str, list[list[str]]]


def commands(options: argparse.Namespace, work: Path) -> Commands:
    """Each contender's commands, one after the other."""
    qconv = {
        ("qconv" if len(options.to) == 1 else f"qconv {target}") + name: [[
            str(Path(sys.executable).parent / "qconv"), str(work / "random-1b"), "--to", target,
            "--out", str(work / OUT / "qconv"), "--quiet",
            "--threads", str(options.threads), *more,
        ]]
        for target in options.to
        for name, more in (("", []), (" unchecked", ["--no-validate"]))
    }  # fmt: skip
    backends = {target.partition(":")[0] for target in options.to}
    peers: Commands = {}
    if "gguf" in backends:
        peers |= _gguf_peers(options, work)
    if "safetensors" in backends:
        peers |= _safetensors_peers(options, work)
    return qconv | peers


def _gguf_peers(options: argparse.Namespace, work: Path) -> Commands:
    if not (options.convert and options.quantize):
        return {}
    float16 = work / OUT / "f16.gguf"
    convert = [options.python, options.convert, str(work / "random-1b")]
    quantize = [options.quantize, str(float16), str(work / OUT / "peer.gguf"), "Q4_K_M"]
    return {
        "llama.cpp": [
            [*convert, "--outtype", "f16", "--outfile", str(float16)],
            [*quantize, str(options.threads)],
        ]
    }


def _safetensors_peers(options: argparse.Namespace, work: Path) -> Commands:
    """llm-compressor with zero-points, as qconv's int4 has them; GPTQModel without, its default."""
    asked = {
        "llm-compressor": (options.llm_compressor, "llm_compressor.py", "rtn-asym"),
        "gptqmodel": (options.gptqmodel, "gptq_model.py", "rtn-sym"),
    }
    settings = ["--group-size", "128", "--threads", str(options.threads)]
    return {
        peer: [
            [python, str(PEERS / script), str(work / "random-1b"), str(work / OUT / peer),
             "--scheme", scheme, *settings]
        ]
        for peer, (python, script, scheme) in asked.items()
        if python
    }  # fmt: skip


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "random-1b").mkdir()
        make_checkpoint(work / "random-1b")
        contenders = commands(options, work)
        report(run_all(contenders, options.runs, work / OUT), as_json=options.json)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--to", nargs="+", default=["gguf:q4_k_m"], help="qconv's targets, by turns"
    )
    parser.add_argument("--convert", help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--python", default=sys.executable, help="the interpreter it runs in")
    parser.add_argument("--quantize", help="llama.cpp's llama-quantize")
    parser.add_argument("--llm-compressor", help="Python of an environment that has it")
    parser.add_argument("--gptqmodel", help="Python of an environment that has GPTQModel")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def run_all(contenders: Commands, runs: int, out: Path) -> dict[str, Figures]:
    """Contenders in turn, ``runs`` times after one unmeasured round; the median run of each."""
    taken: dict[str, list[Figures]] = {name: [] for name in contenders}
    for number in range(runs + 1):
        for name, steps in contenders.items():
            out.mkdir()
            os.sync()  # so that no command pays for what another left to be written
            parts = [measure(step) for step in steps]
            total = Figures(
                wall=sum(part.wall for part in parts),
                cpu=sum(part.cpu for part in parts),
                peak_mb=max(part.peak_mb for part in parts),
            )
            shutil.rmtree(out)
            if number:
                taken[name].append(total)
                print(name, total, file=sys.stderr)
    return {
        name: sorted(figures, key=lambda figure: figure.wall)[len(figures) // 2]
        for name, figures in taken.items()
    }


def report(figures: dict[str, Figures], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({name: asdict(figure) for name, figure in figures.items()}))
        return
    for name, figure in figures.items():
        print(f"{name:15} wall {figure.wall:6.1f} s   CPU {figure.cpu:6.1f} s   "
              f"peak {figure.peak_mb:5.0f} MB")  # fmt: skip
    ours = {name: figure for name, figure in figures.items() if name.startswith("qconv")}
    for peer in [name for name in figures if name not in ours]:
        for name in ours:
            print(f"{name} / {peer}: {_ratios(figures[name], figures[peer])}")


def _ratios(ours: Figures, theirs: Figures) -> str:
    ratios = {
        "wall": ours.wall / theirs.wall,
        "CPU": ours.cpu / theirs.cpu,
        "peak": ours.peak_mb / theirs.peak_mb,
    }
    return ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items())


if __name__ == "__main__":
    main()
