"""The check after a conversion refuses nothing that is sound, and nothing wrong slips through."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import qconv
from qconv._host import load_plugins
from qconv.calibration import Calibration
from qconv.cli._run import run as run_command
from qconv.conversion import Steps, run
from qconv.errors import BrokenPlugin, GateFailed
from qconv.grids import UniformGrid
from qconv.planning import build_plan
from qconv.plugin import RowOrder, TensorInfo
from qconv.validation import QuickCheck
from qconv.validation import _exact as exact
from qconv_rtn._rtn import Rtn
from toy import MemoryCheckpoint, ToyBackend, reversed_rows
from validation.damage import converted as made
from validation.damage import faults_of, model_at, validated

EXAMPLE = Path(__file__).parents[1] / "third_party" / "qconv-example" / "src"
CALIBRATION = Calibration(windows=2, window_length=32)
GATE, DOWN = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.down_proj.weight"


# --- sound artifacts of every backend -------------------------------------------------------------


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    """A model with quiet channels, and constant, tiny, empty and lopsided weights."""
    source = model_at(tmp_path_factory.mktemp("odd") / "odd", attention_bias=True)
    tensors = load_file(source / "model.safetensors")
    block = "model.layers.0."
    tensors[block + "input_layernorm.weight"][:40] = 1e-9
    tensors[block + "self_attn.q_proj.weight"][:, :64] *= 1e-7
    tensors[block + "self_attn.k_proj.weight"].fill_(0.02)
    tensors[block + "mlp.up_proj.weight"] *= 1e-5
    tensors[GATE] *= 1e-9
    tensors[DOWN][3] *= 300
    tensors["model.layers.1.self_attn.o_proj.weight"][::50] *= 50
    tensors["model.layers.1.self_attn.q_proj.bias"][5] = 0
    tensors["model.layers.1.mlp.down_proj.weight"].zero_()
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    return source


SOUND = [
    ("rtn", "gguf:f16 gguf:bf16 gguf:q8_0 gguf:q4_0 gguf:q5_1 gguf:q2_k gguf:q3_k_m gguf:q4_k_m"),
    ("rtn", "safetensors:fp16 safetensors:fp8,scope=tensor safetensors:int4 safetensors:gptq"),
    ("rtn", "safetensors:awq safetensors:nf4,double_quant=true safetensors:fp8 safetensors:fp4"),
    ("awq", "gguf:q4_k_m gguf:q4_0 safetensors:awq safetensors:int8"),
    ("smoothquant", "gguf:q8_0 safetensors:int8 safetensors:fp8"),
    ("rtn", "onnx:fp16 onnx:w8 onnx:int4 onnx:int4_qdq onnx:int8"),
    ("awq", "onnx:int4"),
]


@pytest.mark.parametrize(("method", "targets"), SOUND)
def test_a_sound_artifact_passes_however_odd_its_weights(method, targets, odd, tmp_path):
    if "onnx" in targets:
        pytest.importorskip("onnx", reason="pip install 'qconv[onnx]'")
    calibration = None if method == "rtn" else CALIBRATION
    done = qconv.convert(odd, targets.split(), out=tmp_path, method=method, calibration=calibration)
    for each in done.checked:
        assert (each.tensors, each.decoded, each.unseen) == (29, 29, ())
        assert all("no better than zeros" in text for text in each.warnings)
    assert len(done.checked) == len(targets.split())


def test_what_a_format_cannot_hold_is_a_warning(odd, tmp_path, capsys):
    words = ["convert", str(odd), "--to", "gguf:f16", "-o", str(tmp_path)]
    assert run_command(words) == 0
    told = "".join(capsys.readouterr().err.split())
    assert "'blk.0.ffn_gate.weight':whatroundingleftofitisnobetterthanzeros" in told
    assert "seeqconvvalidate" in told


def test_a_sound_artifact_of_the_examples_method_passes(odd, tmp_path, monkeypatch):
    """Which clips, and so loses far more than rounding to nearest."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    clip = __import__("qconv_example._clip", fromlist=["Clip"]).Clip
    monkeypatch.setattr(Rtn, "quantize", lambda self, *args: clip().quantize(*args))
    monkeypatch.setattr(Rtn, "takes_stored", False, raising=False)
    done = qconv.convert(odd, ["gguf:q4_0", "safetensors:int8"], out=tmp_path)
    assert [each.decoded for each in done.checked] == [29, 29]
    sys.modules.pop("qconv_example._clip", None)


# --- a stranger's backend -------------------------------------------------------------------------

GRID = UniformGrid(bits=8, symmetric=True, group_size="channel")
PER_TENSOR = UniformGrid(bits=8, symmetric=True, group_size="tensor")


@dataclass
class _Reader:
    path: Path
    plans: Mapping[str, tuple[int, ...]]
    extra: tuple[str, ...] = ()
    change: Any = None
    closed: list[bool] = field(default_factory=list)

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        names = {**self.plans, **dict.fromkeys(self.extra, (1,))}
        return {
            name: TensorInfo(name=name, shape=shape, dtype="X", nbytes=4)
            for name, shape in names.items()
        }

    def read(self, name: str) -> torch.Tensor:
        data = torch.frombuffer(bytearray(self.path.read_bytes()[8:]), dtype=torch.float32)
        at = 0
        for each, shape in self.plans.items():
            count = int(torch.tensor(shape).prod())
            if each == name:
                values = data[at : at + count].reshape(shape)
                return values if self.change is None else self.change(values)
            at += count
        raise KeyError(name)

    def close(self) -> None:
        self.closed.append(True)


@dataclass(frozen=True)
class Stranger(ToyBackend):
    """A backend that reads what it wrote; ``damage`` changes what it encodes, ``reader`` how."""

    damage: Any = None
    reader: Any = None
    planned: dict[str, tuple[int, ...]] = field(default_factory=dict)
    readers: list[_Reader] = field(default_factory=list)

    def plan_tensors(self, request):
        plans = super().plan_tensors(request)
        self.planned.update({plan.name: plan.shape for plan in plans.tensors})
        return plans

    def encode(self, plan, value):
        values = value.dequantize() if plan.grid is not None else value
        if self.damage is not None:
            values = self.damage(plan.name, values.clone())
        return [values.contiguous().numpy().tobytes()]

    def open(self, path):
        options = self.reader or {}
        if "fails" in options:
            raise options["fails"]
        self.readers.append(_Reader(path, self.planned, **options))
        return self.readers[-1]


def weights(rows: int = 64) -> MemoryCheckpoint:
    generator = torch.Generator().manual_seed(0)
    return MemoryCheckpoint(
        {
            f"layers.{number}.{kind}.weight": torch.randn(rows, 32, generator=generator)
            for number in range(3)
            for kind in ("up", "down")
        }
        | {"norm.weight": torch.randn(32, generator=generator)}
    )


def on(grid, *names: str) -> dict[str, dict[str, Any]]:
    return {name: {"grid": grid, "dtype": None, "action": "quantize"} for name in names}


QUANTIZED = on(GRID, *(name for name in weights(1).tensors if name != "norm.weight"))


def converted(out: Path, *backends: Stranger, source: MemoryCheckpoint | None = None, **options):
    source = source or weights()
    plan = build_plan(
        source=Path("toy"),
        out=out,
        model=source.model,
        method="rtn",
        streams=True,
        targets=[(f"toy:{number}", each, "plain", {}) for number, each in enumerate(backends)],
        allow_unused=False,
        threads=2,
        max_ram=None,
        warnings=(),
        plugins=("toy 1",),
    )
    check = QuickCheck(source, load_plugins())
    run(
        plan,
        source,
        Steps(rounder=Rtn()),
        resume=True,
        observer=lambda event: None,
        verify=check,
        remembered=check.remembered,
        **options,
    )
    return check.checked


def test_a_strangers_artifact_passes_and_its_reader_is_closed(tmp_path):
    backend = Stranger(changes=QUANTIZED)
    (checked,) = converted(tmp_path, backend)
    assert (checked.tensors, checked.decoded) == (7, 5)  # the first and last of three, and a norm
    assert (checked.unseen, checked.warnings) == ((), ())
    assert [each.closed for each in backend.readers] == [[True]]


def test_rows_that_share_parameters_and_rows_in_another_order_pass(tmp_path):
    order = {"row_order": reversed_rows(64)}
    changes = on(PER_TENSOR, "layers.0.up.weight") | {"layers.0.down.weight": order}
    (checked,) = converted(tmp_path, Stranger(changes=changes))
    assert (checked.decoded, checked.warnings) == (5, ())


def _swapped(name, values):
    if name == "layers.2.up.weight":
        values[[0, 1]] = values[[1, 0]]
    return values


def _scaled(name, values):
    if name == "layers.0.down.weight":
        values[63] *= 1.5
    return values


def _permuted(name, values):
    return values.roll(1, 1) if name == "norm.weight" else values


def _spoilt(name, values):
    if name == "norm.weight":
        values[0, 3] = float("nan")
    return values


DAMAGE = [
    (_swapped, r"'layers.2.up.weight': row 0, column 0 .*that is row 1: rows in another order\?"),
    (_scaled, r"'layers.0.down.weight': row 63, column 0 decodes to .*\(3\d of 2048 values"),
    (_permuted, r"'norm.weight': row 0, column 0 decodes to"),
    (_spoilt, r"'norm.weight': row 0, column 3 decodes to nan, but"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_between_method_and_file_is_caught_and_named(damage, message, tmp_path):
    with pytest.raises(GateFailed, match=rf"toy:0: the artifact does not hold.*{message}"):
        converted(tmp_path, Stranger(changes=QUANTIZED, damage=damage))
    assert not list(tmp_path.iterdir())


def test_only_the_target_that_fails_is_thrown_away(tmp_path):
    backends = [
        Stranger(changes=QUANTIZED, file="one.bin"),
        Stranger(changes=QUANTIZED, file="two.bin", damage=_scaled),
        Stranger(changes=QUANTIZED, file="three.bin"),
    ]
    with pytest.raises(GateFailed, match="toy:1: .*; written all the same: toy:0, toy:2$"):
        converted(tmp_path, *backends)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["one.bin", "three.bin"]


def test_a_reader_that_fails_keeps_the_artifact_for_no_validate(tmp_path):
    failing = Stranger(reader={"fails": KeyError("scale")})
    with pytest.raises(BrokenPlugin, match=r"cannot be read back: KeyError.*--no-validate"):
        converted(tmp_path, failing)
    assert [each.name for each in tmp_path.iterdir()] == [".toy.bin.qconv-partial"]
    source = weights()
    converted(tmp_path, Stranger(), source=source)
    assert source.reads == []  # nothing is computed again
    assert [each.name for each in tmp_path.iterdir()] == ["toy.bin"]


def test_a_reader_that_fails_on_a_tensor_is_told_and_closed(tmp_path):
    def fails(values):
        raise OSError("no such file")

    backend = Stranger(reader={"change": fails})
    with pytest.raises(BrokenPlugin, match="OSError: no such file"):
        converted(tmp_path, backend)
    assert backend.readers[0].closed == [True]


def test_a_backend_without_a_reader_is_not_refused(tmp_path):
    (checked,) = converted(tmp_path, Stranger(reader={"fails": NotImplementedError()}))
    assert checked.reason == "its backend does not read it back"


def test_a_reader_of_another_precision_is_a_warning(tmp_path):
    backend = Stranger(reader={"change": lambda values: values.bfloat16().float()})
    (checked,) = converted(tmp_path, backend)
    assert "differ by roundings from what was encoded" in checked.warnings[0]


def test_tensors_nobody_planned_are_a_warning(tmp_path):
    (checked,) = converted(tmp_path, Stranger(reader={"extra": ("up.scale",)}))
    assert checked.warnings == (
        "1 tensors are in the artifact that were not planned, 'up.scale' first",
    )


def test_every_shape_is_compared_and_missing_tensors_are_named(tmp_path):
    backend = Stranger()
    with pytest.raises(GateFailed, match=r"'layers.1.up.weight' has shape \(32, 64\), planned"):
        converted(tmp_path, _reshaping(backend, "layers.1.up.weight", (32, 64)))
    with pytest.raises(GateFailed, match=r"'layers.1.up.weight' is missing"):
        converted(tmp_path, _reshaping(Stranger(), "layers.1.up.weight", None))


def _reshaping(backend: Stranger, name: str, shape: tuple[int, int] | None) -> Stranger:
    def planned(request):
        plans = ToyBackend.plan_tensors(backend, request)
        backend.planned.update({plan.name: plan.shape for plan in plans.tensors})
        backend.planned.pop(name)
        if shape is not None:
            backend.planned[name] = shape
        return plans

    object.__setattr__(backend, "plan_tensors", planned)
    return backend


def test_kinds_beyond_the_budget_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(exact, "_BUDGET", 100)
    (checked,) = converted(tmp_path, Stranger())
    assert checked.decoded == 1
    assert checked.unseen == ("layers.*.up.weight", "layers.*.down.weight")


def test_values_that_a_format_puts_in_another_order_pass(tmp_path):
    """As GGUF's rotary biases are: the plan says so, and to the host a vector is one row."""
    from dataclasses import make_dataclass

    from qconv.plugin import TensorPlan

    order = RowOrder(label="last first", index=range(31, -1, -1))
    ordered = make_dataclass(
        "Ordered",
        [("value_order", Any, field(default=order))],
        bases=(TensorPlan,),
        frozen=True,
        kw_only=True,
    )

    class Reordering(Stranger):
        def plan_tensors(self, request):
            plans = super().plan_tensors(request)
            *others, last = plans.tensors
            fields = {name: getattr(last, name) for name in TensorPlan.__dataclass_fields__}
            return type(plans)(tensors=(*others, ordered(**fields)), dropped=plans.dropped)

    def turned(name, values):
        return values.flip(1) if name == "norm.weight" else values

    (checked,) = converted(tmp_path, Reordering(damage=turned))
    assert (checked.decoded, checked.warnings) == (5, ())


# --- qconv validate ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "method"),
    [
        ("gguf:f16", "rtn"),
        ("gguf:q4_0", "rtn"),
        ("safetensors:fp8,scope=tensor", "rtn"),
        ("gguf:q4_0", "awq"),
    ],
)
def test_odd_weights_are_no_faults_to_validate_either(target, method, odd, tmp_path):
    calibration = None if method == "rtn" else CALIBRATION
    artifact = made(odd, target, tmp_path, method=method, calibration=calibration)
    assert faults_of(validated(artifact, odd)) == {}
