"""What people read on stdout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qconv._host import PluginRecord
from qconv.cli._render import (
    render_conversion,
    render_inspection,
    render_plan,
    render_plugins,
)
from qconv.conversion import Artifact, Conversion
from qconv.inspection import Inspection, TensorRow, TokenizerSummary, TypeShare, ValueSummary
from qconv.planning import Plan, build_plan
from qconv.plugin import BackendSpec, CheckSpec, FormatSpec, MethodSpec, OptionSpec
from toy import MemoryCheckpoint, ToyBackend

LAYERS = [f"model.layers.{index}.[bold]up[/bold].weight" for index in range(3)]


@pytest.fixture
def plan() -> Plan:
    names = ["embed.weight", *LAYERS, "rope.\x1b[31mfreqs"]
    checkpoint = MemoryCheckpoint({name: torch.zeros(4, 64) for name in names})
    backend = ToyBackend(
        changes={LAYERS[2]: {"fallback_from": "Q4_K", "storage": "Q5_0"}}, drops=[names[-1]]
    )
    return build_plan(
        source=Path("models/toy"),
        out=Path("out"),
        model=checkpoint.model,
        method="rtn",
        streams=True,
        targets=[("toy:f32", backend, "f32", {})],
        allow_unused=False,
        threads=2,
        max_ram=None,
        warnings=(),
    )


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().out.splitlines()
    assert all(line == line.rstrip() for line in lines)
    return [" ".join(line.split()) for line in lines]


def test_plan_puts_layers_together(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    render_plan(plan)
    lines = lines_of(capsys)
    assert lines[0] == "models/toy: 5 tensors, 1.3 k weights, 5.1 kB (safetensors)"
    assert "toy:f32: 4.1 kB, 32.00 bits per weight (F32 75%, Q5_0 25%)" in lines
    assert f"{Path('out/toy.bin')} 4104 bytes" in lines
    name = "model.layers.*.[bold]up[/bold].weight"
    assert f"{name} 2 4x64 cast F32 2.0 kB toys are float32" in lines
    assert f"{name} 1 4x64 cast Q5_0 (not Q4_K) 1.0 kB toys are float32" in lines
    assert r"rope.\x1b[31mfreqs 1 4x64 drop - 0 bytes toys need no such thing" in lines
    assert "1 tensors fall back to another type for their shape: 25.0% of the weights" in lines
    assert lines[-1].startswith("method rtn; disk 4.1 kB, memory up to 5")


def test_plan_lists_every_tensor_when_asked(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    render_plan(plan, every_tensor=True)
    text = "\n".join(lines_of(capsys))
    assert all(f"{name} 1 4x64" in text for name in LAYERS)


def test_conversion_names_its_files(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = Artifact(
        target="toy:f32",
        files=(Path("out/[toy].bin"),),
        sha256=("0" * 64,),
        nbytes=4104,
        weights=2_000_000,
        bits_per_weight=4.5,
        fallback_share=0.25,
        type_shares={"Q4_K": 0.75, "Q5_0": 0.249, "F32": 0.001},
    )
    render_conversion(Conversion(plan=plan, artifacts=(artifact,), seconds=2.0))
    assert lines_of(capsys) == [
        "target size bits/weight fallback types file SHA-256",
        f"toy:f32 4.1 kB 4.50 25% Q4_K 75%, Q5_0 25% {Path('out/[toy].bin')} 000000000000...",
        "done in 2.0 s, 1.0 M weights/s",
    ]


def inspection(values: ValueSummary | None, problems: tuple[str, ...] = ()) -> Inspection:
    rows = tuple(
        TensorRow(
            name=name, shape=(4, 64), dtype="BF16", nbytes=512, bits_per_weight=16.0, values=values
        )
        for name in LAYERS
    )
    return Inspection(
        path=Path("m.gguf"),
        kind="gguf",
        architecture="llama",
        name="m",
        parameters=768,
        nbytes=2000,
        bits_per_weight=16.0,
        tokenizer=TokenizerSummary(
            model="BPE", vocab_size=49152, special_tokens={"bos": "<s>"}, chat_template=False
        ),
        types={"BF16": TypeShare(tensors=3, parameters=768, nbytes=1536)},
        tensors=rows,
        warnings=(),
        problems=problems,
    )


def values(minimum: float | None) -> ValueSummary:
    return ValueSummary(
        nans=0,
        infs=0,
        zero_rows=2,
        constant_rows=0,
        minimum=minimum,
        maximum=1.5,
        abs_max=1.5,
    )


def test_inspection_tells_types_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    render_inspection(inspection(values(-0.25)))
    lines = lines_of(capsys)
    head = "m.gguf: gguf, llama, 3 tensors, 768 weights, 2.0 kB, 16.00 bits per weight"
    assert lines[0] == head
    assert lines[1] == "tokenizer BPE, 49152 tokens, bos <s>, no chat template"
    assert "BF16 3 768 1.5 kB" in lines
    assert "model.layers.*.[bold]up[/bold].weight 3 4x64 BF16 1.5 kB -0.25 1.5 6 0" in lines
    assert lines[-1] == "no problems found"


def test_inspection_without_values_claims_nothing_of_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    render_inspection(inspection(None), every_tensor=True)
    lines = lines_of(capsys)
    assert f"{LAYERS[1]} 1 4x64 BF16 512 bytes" in lines
    assert lines[-1] == "no problems found; the values were not read"


def test_inspection_ends_with_the_problems(capsys: pytest.CaptureFixture[str]) -> None:
    render_inspection(inspection(values(None), ("tensor 'w': 3 NaN",)))
    lines = lines_of(capsys)
    assert any(line.endswith("1.5 kB - 1.5 6 0") for line in lines)
    assert lines[-1] == "problem: tensor 'w': 3 NaN"


def test_plugins_tell_all_they_offer_or_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    def load() -> None: ...

    ok = PluginRecord(
        distribution="x",
        version="1",
        entry_point="all",
        status="ok",
        methods=(MethodSpec(name="m", summary="a method", api_version=1, load=load),),
        backends=(
            BackendSpec(
                name="b",
                summary="a backend",
                formats=(FormatSpec(name="q4", summary="four"), FormatSpec(name="q10", summary="")),
                options=(
                    OptionSpec(name="fit", summary="how", choices=("a", "b")),
                    OptionSpec(name="pre", summary="what"),
                ),
                api_version=1,
                load=load,
            ),
        ),
        checks=(CheckSpec(name="c", summary="a check", api_version=1, load=load),),
    )
    watcher = PluginRecord(distribution="y", version="2", entry_point="watch", status="ok")
    broken = PluginRecord(
        distribution="z", version="3", entry_point="bad", status="broken", reason="it [exits]"
    )
    render_plugins([ok, watcher, broken])
    assert lines_of(capsys) == [
        "all (x 1)",
        "method m: a method",
        "backend b: a backend",
        "b:q4 four",
        "b:q10",
        "option fit=a|b: how",
        "option pre=...: what",
        "check c: a check",
        "watch (y 2)",
        "watches events",
        "bad (z 3)",
        "broken: it [exits]",
    ]
