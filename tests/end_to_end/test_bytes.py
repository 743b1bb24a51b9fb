"""Same inputs, same bytes, whatever the threads, shards, container and interruptions."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import qconv

pytestmark = pytest.mark.slow

TARGETS = ["gguf:q4_k_m", "gguf:q8_0"]
QCONV = [sys.executable, "-m", "qconv"]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every finished artifact in a folder."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("*.gguf"))
    }


@pytest.fixture(scope="module")
def reference(smollm2_wide, tmp_path_factory) -> dict[str, str]:
    """Digests of a conversion on two threads."""
    out = tmp_path_factory.mktemp("reference")
    conversion = qconv.convert(smollm2_wide, TARGETS, out=out, threads=2)
    found = digests(out)
    assert [artifact.sha256[0] for artifact in conversion.artifacts] == list(found.values())
    return found


def test_one_thread_gives_the_bytes_of_two(smollm2_wide, tmp_path, reference):
    qconv.convert(smollm2_wide, TARGETS, out=tmp_path, threads=1)
    assert digests(tmp_path) == reference


def test_less_memory_gives_the_same_bytes(smollm2_wide, tmp_path, reference):
    qconv.convert(smollm2_wide, TARGETS, out=tmp_path, threads=2, max_ram=580_000_000)
    assert digests(tmp_path) == reference


def test_one_target_at_a_time_gives_the_same_bytes(smollm2_wide, tmp_path, reference):
    for target in TARGETS:
        qconv.convert(smollm2_wide, target, out=tmp_path)
    assert digests(tmp_path) == reference


def companions(source: Path, folder: Path) -> None:
    for path in source.iterdir():
        if path.suffix in {".json", ".jinja"}:
            shutil.copy(path, folder / path.name)


def test_shards_give_the_bytes_of_one_file(smollm2_wide, tmp_path, reference):
    weights = load_file(smollm2_wide / "model.safetensors")
    folder = tmp_path / smollm2_wide.name
    folder.mkdir()
    names, index = list(weights), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / shard)
        index |= dict.fromkeys(part, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    companions(smollm2_wide, folder)
    qconv.convert(folder, TARGETS, out=tmp_path / "out")
    assert digests(tmp_path / "out") == reference


def test_a_single_file_gives_the_bytes_of_its_directory(smollm2_wide, tmp_path, reference):
    # the artifact is named after the file, and general.name with it, so the file takes the name
    folder = tmp_path / "somewhere"
    folder.mkdir()
    companions(smollm2_wide, folder)
    single = folder / f"{smollm2_wide.name}.safetensors"
    os.link(smollm2_wide / "model.safetensors", single) if os.stat(smollm2_wide).st_dev == os.stat(
        folder
    ).st_dev else shutil.copy(smollm2_wide / "model.safetensors", single)
    qconv.convert(single, TARGETS, out=tmp_path / "out")
    assert digests(tmp_path / "out") == reference


def test_a_float_gguf_gives_the_weights_of_the_checkpoint_it_came_from(smollm2_wide, tmp_path):
    import gguf

    (written,) = qconv.convert(smollm2_wide, "gguf:f32", out=tmp_path).artifacts
    (direct,) = qconv.convert(smollm2_wide, "gguf:q4_k_m", out=tmp_path / "direct").artifacts
    (again,) = qconv.convert(written.files[0], "gguf:q4_k_m", out=tmp_path / "again").artifacts
    ours = gguf.GGUFReader(direct.files[0]).tensors
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(again.files[0]).tensors}
    assert len(ours) == len(theirs)
    for tensor in ours:
        assert tensor.tensor_type == theirs[tensor.name].tensor_type
        assert bytes(tensor.data) == bytes(theirs[tensor.name].data)


def wait_for_growth(folder: Path, process: subprocess.Popen) -> None:
    """Wait until some slabs are in the journal (and fail if the process ends before that)."""
    while process.poll() is None:
        journals = list(folder.glob(".*qconv-partial/journal.jsonl"))
        if journals and all(path.stat().st_size > 2000 for path in journals):
            return
        time.sleep(0.005)
    pytest.fail("the conversion ended before it could be interrupted")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_killed_run_shows_nothing_and_the_next_one_goes_on(
    smollm2_wide, tmp_path, reference, number, code
):
    command = [*QCONV, str(smollm2_wide), "-o", str(tmp_path), "--threads", "1"]
    command += [part for target in TARGETS for part in ("--to", target)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_growth(tmp_path, process)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == code, said
    assert list(tmp_path.glob("*.gguf")) == []
    events = []
    qconv.convert(smollm2_wide, TARGETS, out=tmp_path, threads=2, observer=events.append)
    assert events[0].resumed_nbytes > 0
    assert digests(tmp_path) == reference
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(reference)


def sparse_llama(folder: Path, source: Path, layers: int) -> Path:
    """A Llama checkpoint of zeros that takes no disk: 25 million weights a layer."""
    hidden, ffn = 1024, 7168
    config = json.loads((source / "config.json").read_text())
    config |= {"hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers}
    config |= {"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64}
    folder.mkdir()
    companions(source, folder)
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": (49152, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        for name, shape in {
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (256, hidden),
            "self_attn.v_proj": (256, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (ffn, hidden),
            "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return folder


# VmHWM, not ru_maxrss: after fork and exec the latter still counts the parent, which is pytest here
PEAK = """
import json, re, sys, qconv
plan = qconv.plan(sys.argv[1], "gguf:q8_0", out=sys.argv[2], threads=2)
qconv.convert(sys.argv[1], "gguf:q8_0", out=sys.argv[2], threads=2)
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
print(json.dumps([int(peak[1]) * 1024, plan.needs.ram_nbytes]))
"""


def test_memory_does_not_grow_with_the_model_and_stays_below_the_plan(smollm2, tmp_path):
    if not Path("/proc/self/status").is_file():
        pytest.skip("the peak of resident memory is read from /proc")
    peaks = []
    for layers in (1, 24):
        model = sparse_llama(tmp_path / f"llama-{layers}", smollm2, layers)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, model, tmp_path / "out"], capture_output=True, check=True
        )
        peak, planned = json.loads(done.stdout)
        assert peak <= planned
        peaks.append(peak)
        shutil.rmtree(tmp_path / "out")
    grown = 23 * 25_000_000 * 2  # bytes of the layers that the second model has more
    assert peaks[1] - peaks[0] < grown / 10
