"""``qconv transcode``: what it prints, writes and refuses, and quantized sources elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import qconv
from checkpoint.written import hf_directory
from toy_packed import small_packed

if TYPE_CHECKING:
    from collections.abc import Callable

    from cli.conftest import Ran

    Cli = Callable[..., Ran]

pytestmark = pytest.mark.usefixtures("toy_packed")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    small_packed(tmp_path / "model")
    return tmp_path / "model"


def words(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_it_writes_and_says_what_was_proven(qconv_cli: Cli, model: Path, tmp_path: Path) -> None:
    ran = qconv_cli("transcode", str(model), "--to", "toypack:zeros", "-o", str(tmp_path))
    assert ran.code == 0
    lines = words(ran.out)
    assert lines[0] == "target size bits/weight fallback types file SHA-256"
    assert lines[1].startswith("toypack:zeros ")
    assert (
        "toypack:zeros: decoded, all 4 tensors equal the source's (toy-packed), "
        "2 of them re-coded" in lines
    )
    assert lines[-1].startswith("done in ")
    assert "converting" in ran.err
    assert ran.told == []
    assert (tmp_path / "model-zeros" / "model.safetensors").is_file()


def test_json_is_one_document(qconv_cli: Cli, model: Path, tmp_path: Path) -> None:
    ran = qconv_cli(
        "transcode", str(model), "--to", "toypack:same", "-o", str(tmp_path), "--json", "--quiet"
    )
    document = json.loads(ran.out)
    assert document["family"] == "toy-packed"
    assert document["artifacts"][0]["tensors_compared"] == 4
    assert ran.told == []


def test_all_options_reach_the_api(
    qconv_cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: dict[str, Any] = {}

    def fake(artifact: Path, to: list[str], **options: Any) -> None:
        given.update(options, artifact=artifact, to=to)
        raise qconv.errors.UsageError("enough")

    monkeypatch.setattr(qconv, "transcode", fake, raising=False)
    line = "transcode m --to a:b --to c:d -o out --force --threads 2 --max-ram 1GB --allow-unused"
    assert qconv_cli(*line.split(), "--no-resume").code == 2
    given.pop("observer")
    assert given == {
        "artifact": Path("m"),
        "to": ["a:b", "c:d"],
        "out": Path("out"),
        "allow_unused": True,
        "force": True,
        "threads": 2,
        "max_ram": 10**9,
        "resume": False,
    }


def test_a_float_checkpoint_is_refused(qconv_cli: Cli, tmp_path: Path) -> None:
    hf_directory(tmp_path / "model")
    ran = qconv_cli("transcode", str(tmp_path / "model"), "--to", "toypack:same", "-q")
    assert ran.code == 2
    assert "nothing to transcode" in ran.err
    assert "use qconv convert" in ran.err


def test_interrupted_it_says_how_to_go_on(qconv_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(qconv, "transcode", fake, raising=False)
    ran = qconv_cli("transcode", "m", "--to", "toypack:same", "-q")
    assert ran.code == 130
    assert "run the same command again to resume" in ran.err


def test_plugins_lists_sources(qconv_cli: Cli) -> None:
    ran = qconv_cli("plugins")
    assert "  source toy-packed: codes, scales and zero-points side by side" in ran.out.splitlines()
    (record,) = [
        each
        for each in json.loads(qconv_cli("plugins", "--json").out)["plugins"]
        if each["entry_point"] == "toy0"
    ]
    assert [each["name"] for each in record["sources"]] == ["toy-packed"]


def test_inspect_shows_grids_as_types(qconv_cli: Cli, model: Path) -> None:
    ran = qconv_cli("inspect", str(model))
    lines = words(ran.out)
    assert any(line.startswith("up.weight 1 6x64 int4_g32") for line in lines)
    assert any(line.startswith("int4_g32 2 768") for line in lines)
    assert "quantized already" in ran.err


def test_plan_warns_that_quantizing_twice_loses_twice(qconv_cli: Cli, model: Path) -> None:
    ran = qconv_cli("plan", str(model), "--to", "toypack:same")
    assert ran.code == 0
    assert words(ran.out)[0] == (
        f"{model}: 4 tensors, 1.5 k weights, 2.2 kB (safetensors, quantized: toy-packed)"
    )
    assert "quantizing twice loses twice" in ran.err
