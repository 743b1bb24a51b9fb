"""Facts about conversion with calibration, on tiny models and a toy backend."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from model.tiny import CONFIGS, save
from qconv.checkpoint import open_checkpoint
from qconv.conversion import Passes, Steps, run
from qconv.errors import BrokenPlugin, GateFailed, Unsupported
from qconv.grids import ActivationGrid, UniformGrid
from qconv.model import open_model
from qconv.planning import Plan, build_plan
from qconv.plugin import BlockStarted, Fold, RowOrder, TensorFinished
from qconv.tensors import QuantTensor
from toy import ToyBackend

if TYPE_CHECKING:
    from qconv.statistics import Statistics

COARSE = UniformGrid(bits=3, symmetric=False, group_size=8)
FINE = UniformGrid(bits=8, symmetric=True, group_size=8)


class Nearest:
    """Rounds to nearest, and remembers the statistics it was given by the weight's values."""

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Tensor, Statistics | None]] = []
        self._lock = threading.Lock()

    def quantize(self, weight, grid, statistics=None):
        with self._lock:
            self.seen.append((weight.clone(), statistics))
        importance = None if statistics is None else statistics.importance
        codes, parameters = grid.quantize(weight, importance)
        return QuantTensor(grid=grid, codes=codes, parameters=parameters)

    def statistics_of(self, weight: torch.Tensor) -> Statistics | None:
        (found,) = [s for w, s in self.seen if w.shape == weight.shape and torch.equal(w, weight)]
        return found


class Random:
    """A transform with scales that nobody would choose."""

    def scales(self, fold: Fold) -> torch.Tensor:
        generator = torch.Generator().manual_seed(fold.channels + len(fold.producer))
        return torch.rand(fold.channels, generator=generator) * 3 + 0.25


def windows(count: int = 3, length: int = 24) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 96, (length,), generator=generator) for _ in range(count)]


def gridded(folder: Path, grid: UniformGrid | None, **more: Any) -> Mapping[str, Mapping[str, Any]]:
    """Put every 2-D weight of a block on the grid."""
    with open_checkpoint(folder) as checkpoint:
        return {
            name: {"grid": grid, "dtype": None, "action": "quantize", **more}
            for name, info in checkpoint.model.tensors.items()
            if grid is not None and ".layers." in name and len(info.shape) == 2
        }


def plan_for(checkpoint: Any, out: Path, *backends: ToyBackend, threads: int = 2) -> Plan:
    return build_plan(
        source=Path("tiny"),
        out=out,
        model=checkpoint.model,
        method="test",
        streams=True,
        targets=[(f"toy:{number}", each, "plain", {}) for number, each in enumerate(backends)],
        allow_unused=False,
        threads=threads,
        max_ram=None,
        warnings=(),
    )


def convert(
    folder: Path,
    out: Path,
    steps: Steps,
    *backends: ToyBackend,
    observer: Callable[[Any], None] = lambda event: None,
    threads: int = 2,
    **passes: Any,
) -> None:
    with open_checkpoint(folder) as checkpoint:
        model = open_model(checkpoint, device="cpu", dtype="float32")
        given = Passes(model=model, windows=windows(), digest="test", **passes)
        plan = plan_for(checkpoint, out, *backends, threads=threads)
        run(plan, checkpoint, steps, passes=given, resume=True, observer=observer)


def written(folder: Path, path: Path) -> dict[str, torch.Tensor]:
    """The toy artifact's tensors by name, float32."""
    data, offset, found = path.read_bytes(), 8, {}
    with open_checkpoint(folder) as checkpoint:
        for name, info in checkpoint.model.tensors.items():
            stop = offset + 4 * info.numel
            values = torch.frombuffer(bytearray(data[offset:stop]), dtype=torch.float32)
            found[name], offset = values.reshape(info.shape), stop
    return found


def saved(kind: str, folder: Path) -> Path:
    save(kind, folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("mixtral", tmp_path_factory.mktemp("mixtral"))


def float_inputs(folder: Path, module_name: str, tokens: list[torch.Tensor]) -> torch.Tensor:
    """What a linear of the whole transformers model is given: (tokens, in)."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    caught: list[torch.Tensor] = []
    model.get_submodule(module_name).register_forward_pre_hook(
        lambda _module, args: caught.append(args[0][0])
    )
    with torch.no_grad():
        for window in tokens:
            model(window[None])
    return torch.cat(caught)


def test_a_rounder_gets_the_statistics_of_every_linear_and_of_the_head(llama, tmp_path):
    rounder = Nearest()
    changes = dict(gridded(llama, FINE))
    changes["lm_head.weight"] = {"grid": FINE, "dtype": None, "action": "quantize"}
    convert(llama, tmp_path, Steps(rounder=rounder, gram=True), ToyBackend(changes=changes))
    with open_checkpoint(llama) as checkpoint:
        for module in (
            "model.layers.1.mlp.down_proj",
            "model.layers.2.self_attn.k_proj",
            "lm_head",
        ):
            name = f"{module}.weight"
            rows, _ = checkpoint.model.tensors[name].shape
            found = rounder.statistics_of(checkpoint.read_rows(name, 0, rows).float())
            x = float_inputs(llama, module, windows())
            torch.testing.assert_close(found.gram, x.t() @ x / len(x), rtol=1e-3, atol=1e-4)


def test_linears_that_share_an_input_share_their_statistics(llama, tmp_path):
    rounder = Nearest()
    convert(llama, tmp_path, Steps(rounder=rounder), ToyBackend(changes=gridded(llama, FINE)))
    distinct = {id(statistics) for _, statistics in rounder.seen}
    assert len(rounder.seen) == 3 * 7
    assert len(distinct) == 3 * 4


@pytest.mark.parametrize("kind", sorted(set(CONFIGS) - {"bert"}))
def test_any_scales_a_transform_chooses_leave_the_model_as_it_was(kind, tmp_path):
    folder = saved(kind, tmp_path / "model")
    convert(folder, tmp_path, Steps(transforms=(Random(),), rounder=Nearest()), ToyBackend())
    folded = written(folder, tmp_path / "toy.bin")
    changed = 0
    with open_checkpoint(folder) as checkpoint:
        for name, info in checkpoint.model.tensors.items():
            rows = info.numel // info.shape[-1]
            before = checkpoint.read_rows(name, 0, rows).float().reshape(info.shape)
            changed += not torch.equal(before, folded[name])
    assert changed >= 6
    assert_same_logits(folder, folded)


def assert_same_logits(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    again = folder.parent / "again"
    again.mkdir()
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        again / "model.safetensors",
        {"format": "pt"},
    )
    (again / "config.json").write_bytes((folder / "config.json").read_bytes())
    logits = []
    for place in (folder, again):
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
        with torch.no_grad():
            logits.append(model(windows()[0][None]).logits)
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-3, atol=1e-3)


class Odd:
    """A transform that breaks a rule."""

    def __init__(self, scales: Callable[[int], torch.Tensor]) -> None:
        self._scales = scales

    def scales(self, fold: Fold) -> torch.Tensor:
        return self._scales(fold.channels)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        (lambda channels: torch.ones(channels + 1), r"Odd.scales gave \(\d+,\) for model.layers.0"),
        (lambda channels: -torch.ones(channels), "not all positive and finite"),
        (lambda channels: torch.full((channels,), torch.nan), "not all positive and finite"),
    ],
)
def test_scales_that_break_the_rules_are_laid_to_their_author(llama, tmp_path, scales, message):
    steps = Steps(transforms=(Odd(scales),), rounder=Nearest())
    with pytest.raises(BrokenPlugin, match=message):
        convert(llama, tmp_path, steps, ToyBackend())
    assert not any(path.suffix == ".bin" for path in tmp_path.iterdir())


def test_a_fold_that_changes_the_block_is_an_internal_error(llama, tmp_path, monkeypatch):
    import qconv.model

    def wrong(parameters, pairs):
        return {pairs[0][0].producer: parameters[pairs[0][0].producer] * 1.5}

    monkeypatch.setattr(qconv.model, "apply_folds", wrong)
    with pytest.raises(
        RuntimeError, match=r"model.layers.0: folding scales in changed the block's"
    ):
        convert(llama, tmp_path, Steps(transforms=(Random(),), rounder=Nearest()), ToyBackend())


def test_targets_come_out_as_if_each_were_alone(llama, tmp_path):
    steps = Steps(transforms=(Random(),), rounder=Nearest())
    coarse, fine = gridded(llama, COARSE), gridded(llama, FINE)
    both = [
        ToyBackend(changes=coarse, file="coarse.bin"),
        ToyBackend(changes=fine, file="fine.bin"),
    ]
    convert(llama, tmp_path / "both", steps, *both)
    for backend in both:
        convert(llama, tmp_path / "alone", steps, backend)
        alone = (tmp_path / "alone" / backend.file).read_bytes()
        assert (tmp_path / "both" / backend.file).read_bytes() == alone


@pytest.mark.parametrize("sequential", [False, True])
def test_bytes_do_not_depend_on_threads(llama, tmp_path, sequential):
    backend = ToyBackend(changes=gridded(llama, COARSE))
    for threads in (1, 3):
        steps = Steps(transforms=(Random(),), rounder=Nearest(), gram=True)
        convert(
            llama, tmp_path / str(threads), steps, backend, threads=threads, sequential=sequential
        )
    first, other = ((tmp_path / name / "toy.bin").read_bytes() for name in ("1", "3"))
    assert first == other


def test_sequential_statistics_come_from_quantized_predecessors(llama, tmp_path):
    shared, sequential = Nearest(), Nearest()
    backend = ToyBackend(changes=gridded(llama, COARSE))
    convert(llama, tmp_path / "a", Steps(rounder=shared, gram=True), backend)
    convert(llama, tmp_path / "b", Steps(rounder=sequential, gram=True), backend, sequential=True)
    quantized = written(llama, tmp_path / "b" / "toy.bin")
    with open_checkpoint(llama) as checkpoint:
        first, later = (f"model.layers.{n}.self_attn.q_proj.weight" for n in (0, 2))
        before = {name: checkpoint.read_rows(name, 0, 32).float() for name in (first, later)}
    assert torch.equal(
        shared.statistics_of(before[first]).gram, sequential.statistics_of(before[first]).gram
    )
    found = sequential.statistics_of(before[later]).gram
    assert not torch.allclose(shared.statistics_of(before[later]).gram, found, rtol=1e-2)
    x = inputs_after_quantized(llama, quantized, 2)
    torch.testing.assert_close(found, x.t() @ x / len(x), rtol=1e-3, atol=1e-4)


def inputs_after_quantized(
    folder: Path, tensors: Mapping[str, torch.Tensor], layer: int
) -> torch.Tensor:
    """Inputs of a layer's attention when all layers before it have the values in ``tensors``."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    own = dict(model.named_parameters())
    for name, value in tensors.items():
        if ".layers." in name and int(name.split(".")[2]) < layer:
            own[name].data.copy_(value)
    caught: list[torch.Tensor] = []
    model.model.layers[layer].self_attn.q_proj.register_forward_pre_hook(
        lambda _module, args: caught.append(args[0][0])
    )
    with torch.no_grad():
        for window in windows():
            model(window[None])
    return torch.cat(caught)


def test_rows_in_another_order_come_from_the_same_rounding(llama, tmp_path):
    name = "model.layers.1.self_attn.q_proj.weight"
    order = RowOrder(label="backwards", index=range(31, -1, -1))
    plain, turned = gridded(llama, COARSE), dict(gridded(llama, COARSE))
    turned[name] = {**turned[name], "row_order": order}
    for place, changes in (("a", plain), ("b", turned)):
        convert(
            llama,
            tmp_path / place,
            Steps(rounder=Nearest()),
            ToyBackend(changes=changes),
            sequential=True,
        )
    a, b = (written(llama, tmp_path / place / "toy.bin") for place in ("a", "b"))
    assert torch.equal(a[name], b[name].flip(0))
    last = "model.layers.2.mlp.up_proj.weight"
    assert torch.equal(a[last], b[last])  # what came after saw the rows where they belong


def test_an_interrupted_conversion_resumes_to_the_same_bytes(llama, tmp_path):
    backend = ToyBackend(changes=gridded(llama, COARSE))
    for sequential in (False, True):
        steps = Steps(transforms=(Random(),), rounder=Nearest())
        whole, broken = tmp_path / f"whole{sequential}", tmp_path / f"broken{sequential}"
        convert(llama, whole, steps, backend, sequential=sequential)
        left = [12]

        def interrupt(event: Any, left: list[int] = left) -> None:
            left[0] -= isinstance(event, TensorFinished)
            if not left[0]:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            convert(llama, broken, steps, backend, observer=interrupt, sequential=sequential)
        events: list[Any] = []
        convert(llama, broken, steps, backend, observer=events.append, sequential=sequential)
        assert 0 < sum(isinstance(event, TensorFinished) for event in events) < 30
        assert (broken / "toy.bin").read_bytes() == (whole / "toy.bin").read_bytes()


def test_other_windows_start_over(llama, tmp_path):
    backend = ToyBackend(changes=gridded(llama, COARSE))

    def interrupt(event: Any) -> None:
        if isinstance(event, BlockStarted) and event.number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(llama, tmp_path, Steps(rounder=Nearest()), backend, observer=interrupt)
    events: list[Any] = []
    with open_checkpoint(llama) as checkpoint:
        model = open_model(checkpoint, device="cpu", dtype="float32")
        passes = Passes(model=model, windows=windows(2), digest="others")
        plan = plan_for(checkpoint, tmp_path, backend)
        run(
            plan,
            checkpoint,
            Steps(rounder=Nearest()),
            passes=passes,
            resume=True,
            observer=events.append,
        )
    assert sum(isinstance(event, TensorFinished) for event in events) == 30


class Together:
    """A block rounder that takes half the value of every weight, to be told apart."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def quantize_block(self, block, grids, statistics):
        own = dict(block.weights)
        same = block.run(0, own) - block.target(0)
        self.losses.append(float(same.norm() / block.target(0).norm()))
        assert set(grids) == set(own)
        assert all(statistics[name].tokens == 72 for name in grids)
        assert block.windows == 3
        made = {}
        for name, grid in grids.items():
            codes, parameters = grid.quantize(own[name] / 2)
            made[name] = QuantTensor(grid=grid, codes=codes, parameters=parameters)
        return made


@pytest.mark.parametrize("sequential", [False, True])
def test_a_block_rounder_gets_the_block_and_decides_on_its_weights(llama, tmp_path, sequential):
    together = Together()
    steps = Steps(transforms=(Random(),), rounder=Nearest(), block_rounder=together)
    backend = ToyBackend(changes=gridded(llama, FINE))
    convert(llama, tmp_path, steps, backend, sequential=sequential)
    assert len(together.losses) == 3
    # sequential: the targets stay those of the float model, whatever the blocks before have become
    assert together.losses[0] < 1e-4
    assert (max(together.losses) < 1e-4) is not sequential
    nearest = Steps(transforms=(Random(),), rounder=Nearest())
    convert(llama, tmp_path / "n", nearest, backend, sequential=sequential)
    a, b = written(llama, tmp_path / "toy.bin"), written(llama, tmp_path / "n" / "toy.bin")
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(a[name], b[name] / 2, rtol=0, atol=float(b[name].abs().max()) / 50)


def test_every_expert_is_rounded_on_the_tokens_it_saw(mixtral, tmp_path):
    rounder = Nearest()
    convert(mixtral, tmp_path, Steps(rounder=rounder), ToyBackend(changes=gridded(mixtral, FINE)))
    tokens = [
        statistics.tokens
        for weight, statistics in rounder.seen
        if statistics is not None and weight.shape == (32, 48)
    ]
    assert sum(tokens) == 3 * 72 * 2  # blocks, tokens, experts per token
    assert len(set(tokens)) > 1


def test_experts_below_the_tokens_asked_for_fail_the_gate(mixtral, tmp_path):
    backend = ToyBackend(changes=gridded(mixtral, FINE))
    with pytest.raises(
        GateFailed, match=r"experts\..* saw \d+ tokens, but --min-tokens-per-expert asks for 71"
    ):
        convert(mixtral, tmp_path, Steps(rounder=Nearest()), backend, min_tokens_per_expert=71)


def test_a_raw_tensor_that_a_fold_changed_keeps_its_dtype(llama, tmp_path):
    name = "model.layers.0.input_layernorm.weight"
    backend = ToyBackend()
    with open_checkpoint(llama) as checkpoint:
        plan = plan_for(checkpoint, tmp_path, backend)
        target = plan.targets[0]
        tensors = tuple(
            replace(each, dtype="raw") if each.name == name else each
            for each in target.tensors.tensors
        )
        target = replace(target, tensors=replace(target.tensors, tensors=tensors))
        model = open_model(checkpoint, device="cpu", dtype="float32")
        passes = Passes(model=model, windows=windows(), digest="raw")
        steps = Steps(transforms=(Random(),), rounder=Nearest())
        backend_bytes = replace(plan, targets=(replace(target, backend=Raw()),))
        run(backend_bytes, checkpoint, steps, passes=passes, resume=False, observer=lambda e: None)
        before = checkpoint.read_rows(name, 0, 1)[0]
    after = written(llama, tmp_path / "toy.bin")[name]
    assert not torch.equal(before.float(), after)
    assert bool((after > 0).any())


class Raw(ToyBackend):
    def encode(self, plan, value):
        return [value.contiguous().view(torch.uint8).numpy().tobytes()]


class Recorded(ToyBackend):
    """Keeps what it was to encode."""

    def encode(self, plan, value):
        RECORDED[plan.name] = value
        return super().encode(plan, value)


RECORDED: dict[str, Any] = {}


def test_static_activation_scales_come_from_calibration(llama, tmp_path):
    static = ActivationGrid(scope="tensor", dynamic=False)
    rounder, changes = Nearest(), gridded(llama, FINE, activation=static)
    steps = Steps(transforms=(Random(),), rounder=rounder)
    convert(llama, tmp_path, steps, Recorded(changes=changes))
    tensor = RECORDED["model.layers.1.mlp.down_proj.weight"]
    found = [
        s
        for w, s in rounder.seen
        if torch.equal(tensor.grid.quantize(w, s.importance)[0], tensor.codes)
    ]
    scale = float(tensor.activation_parameters["scale"])
    assert tensor.activation == static
    assert any(scale == pytest.approx(float(s.abs_max.max()) / 127, rel=1e-6) for s in found)


def test_dynamic_activations_need_no_calibration_and_static_ones_do(llama, tmp_path):
    for activation in (ActivationGrid(), ActivationGrid(scope="tensor", dynamic=False)):
        backend = Recorded(changes=gridded(llama, FINE, activation=activation))
        with open_checkpoint(llama) as checkpoint:
            plan = plan_for(checkpoint, tmp_path / activation.name, backend)
            steps = Steps(rounder=Nearest())
            if activation.dynamic:
                run(plan, checkpoint, steps, resume=True, observer=lambda event: None)
                name = "model.layers.1.mlp.down_proj.weight"
                assert RECORDED[name].activation == activation
                continue
            with pytest.raises(Unsupported, match="states the scale of its input beforehand"):
                run(plan, checkpoint, steps, resume=True, observer=lambda event: None)
