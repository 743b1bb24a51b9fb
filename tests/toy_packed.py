"""A family of quantized checkpoints of a few lines, and a backend that writes it.

A quantized ``x.weight`` is stored as ``x.codes``, ``x.scale`` and, where there is one,
``x.zero_point``; its grid stands in config.json.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from qconv._host import Host, host_of, load_plugins
from qconv.errors import UnreadableInput
from qconv.grids import Grid, UniformGrid, grid_from_spec
from qconv.plugin import (
    BackendSpec,
    EncodedTensor,
    FilePlan,
    FormatSpec,
    Layout,
    ModelInfo,
    Place,
    PlanRequest,
    SourceSpec,
    TensorInfo,
    TensorPlan,
    TensorPlans,
    hookimpl,
)
from qconv.tensors import QuantTensor

PARTS = ("codes", "scale", "zero_point")
GRID = UniformGrid(bits=4, symmetric=True, group_size=32)

DTYPES = {
    "I8": torch.int8,
    "U8": torch.uint8,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

#: What a format makes of the grid a tensor is held on; None is float.
FORMATS: dict[str, Callable[[UniformGrid], Grid | None]] = {
    "same": lambda grid: grid,
    "zeros": lambda grid: replace(grid, symmetric=False, narrow=False),
    "signed": lambda grid: replace(grid, symmetric=True),
    "half": lambda grid: replace(grid, scale_dtype="float16"),
    "fine": lambda grid: replace(grid, group_size=16),
    "float": lambda grid: None,
    "greedy": lambda grid: grid,
}


# --- the source -----------------------------------------------------------------------------------


class PackedSource:
    def tensors(self, model: ModelInfo, read) -> Sequence[EncodedTensor]:
        settings = model.config["quantization_config"]
        found = []
        for name, spec in settings["grids"].items():
            stem = name.removesuffix("weight")
            parts = [stem + part for part in PARTS if stem + part in model.tensors]
            if len(parts) < 2:
                raise UnreadableInput(f"tensor {name!r}: parts are missing")
            shape = model.tensors[stem + "codes"].shape
            grid = grid_from_spec(spec)
            found.append(EncodedTensor(name=name, shape=shape, parts=tuple(parts), grid=grid))
        return found

    def decode(self, tensor: EncodedTensor, parts: Mapping[str, torch.Tensor]) -> QuantTensor:
        named = {name.rpartition(".")[2]: value for name, value in parts.items()}
        return QuantTensor(grid=tensor.grid, codes=named.pop("codes"), parameters=named)


def is_packed(model: ModelInfo) -> bool:
    settings = model.config.get("quantization_config")
    return isinstance(settings, dict) and settings.get("quant_method") == "toy"


def quantized(values: torch.Tensor, grid: Grid = GRID) -> QuantTensor:
    codes, parameters = grid.quantize(values.float())
    return QuantTensor(grid=grid, codes=codes, parameters=parameters)


def save_packed(
    directory: Path,
    held: Mapping[str, QuantTensor],
    others: Mapping[str, torch.Tensor],
    config: Mapping[str, Any] | None = None,
) -> Path:
    """A checkpoint with ``held`` packed and ``others`` as they are."""
    directory.mkdir(parents=True, exist_ok=True)
    stored = dict(others)
    for name, value in held.items():
        stem = name.removesuffix("weight")
        stored[f"{stem}codes"] = value.codes
        stored |= {f"{stem}{part}": each for part, each in value.parameters.items()}
    save_file(stored, directory / "model.safetensors")
    config = {
        **(config or {"architectures": ["Toy"], "dtype": "bfloat16"}),
        "quantization_config": _settings({name: value.grid for name, value in held.items()}),
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def _settings(grids: Mapping[str, Grid]) -> dict[str, Any]:
    return {"quant_method": "toy", "grids": {name: dict(g.spec()) for name, g in grids.items()}}


def small_packed(directory: Path, grid: Grid = GRID) -> dict[str, QuantTensor]:
    """Two quantized linears of 6 x 64, an embedding and a norm; returns what is quantized."""
    generator = torch.Generator().manual_seed(0)
    held = {
        f"{name}.weight": quantized(torch.randn(6, 64, generator=generator), grid)
        for name in ("up", "down")
    }
    others = {
        "embed.weight": torch.randn(10, 64, generator=generator).to(torch.bfloat16),
        "norm.weight": torch.randn(64, generator=generator).to(torch.bfloat16),
    }
    save_packed(directory, held, others)
    return held


# --- the backend ----------------------------------------------------------------------------------


class PackedBackend:
    def plan_tensors(self, request: PlanRequest) -> TensorPlans:
        return TensorPlans(
            tensors=tuple(
                _plan(info, _grid(info, request)) for info in request.model.tensors.values()
            )
        )

    def layout(self, request: PlanRequest, plans: TensorPlans) -> Layout:
        folder = f"{request.model.name}-{request.format}"
        header: dict[str, Any] = {}
        places: dict[str, tuple[Place, ...]] = {}
        end = 0
        for plan in plans.tensors:
            rows, mine = prod(plan.shape[:-1]), []
            for name, dtype, shape in _stored(plan):
                nbytes = prod(shape) * DTYPES[dtype].itemsize
                offsets = [end, end + nbytes]
                header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
                mine.append((end, nbytes, nbytes // rows if shape[0] == rows else None))
                end += nbytes
            places[plan.name] = tuple(mine)
        raw = json.dumps(header).encode()
        raw += b" " * (-len(raw) % 8)
        start, weights = 8 + len(raw), f"{folder}/model.safetensors"
        grids = {plan.name: plan.grid for plan in plans.tensors if plan.grid is not None}
        config = dict(request.model.config)
        if grids:
            config["quantization_config"] = _settings(grids)
        text = json.dumps(config).encode()
        return Layout(
            files=(
                FilePlan(
                    path=weights, header=struct.pack("<Q", len(raw)) + raw, nbytes=start + end
                ),
                FilePlan(path=f"{folder}/config.json", header=text, nbytes=len(text)),
            ),
            places={
                name: tuple(
                    Place(file=weights, offset=start + at, nbytes=size, row_nbytes=row)
                    for at, size, row in mine
                )
                for name, mine in places.items()
            },
        )

    def encode(self, plan: TensorPlan, value: Any) -> Sequence[bytes]:
        if plan.grid is None:
            return [_bytes(value)]
        assert value.grid == plan.grid
        return [
            _bytes(value.codes),
            *(_bytes(value.parameters[part]) for part in PARTS[1:] if part in value.parameters),
        ]

    def open(self, path: Path) -> PackedReader:
        return PackedReader(path)


class PackedReader:
    def __init__(self, path: Path) -> None:
        self._file = safe_open(path / "model.safetensors", framework="pt")
        config = json.loads((path / "config.json").read_text())
        self._grids = config.get("quantization_config", {}).get("grids", {})

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        names = self._file.keys()
        stored = [name for name in names if name.endswith("weight")]
        return {
            name: TensorInfo(name=name, shape=tuple(self.read(name).shape), dtype="?", nbytes=0)
            for name in (*stored, *self._grids)
        }

    def read(self, name: str) -> torch.Tensor:
        if name not in self._grids:
            return self._file.get_tensor(name).float()
        stem, spec = name.removesuffix("weight"), self._grids[name]
        codes, scale = (self._file.get_tensor(stem + part).float() for part in PARTS[:2])
        if not spec["symmetric"]:
            size = codes.shape[1] // scale.shape[1]
            zeros = self._file.get_tensor(stem + "zero_point").float()
            codes = codes - zeros.repeat_interleave(size, 1)
        return scale.repeat_interleave(codes.shape[1] // scale.shape[1], 1) * codes


def _grid(info: TensorInfo, request: PlanRequest) -> Grid | None:
    held = request.held.get(info.name)
    if held is not None:
        return FORMATS[request.format](held)
    chosen = request.format == "greedy" if request.held else "embed" not in info.name
    return GRID if chosen and len(info.shape) == 2 and request.format != "float" else None


def _plan(info: TensorInfo, grid: Grid | None) -> TensorPlan:
    plain = grid is None
    return TensorPlan(
        name=info.name,
        sources=(info.name,),
        shape=info.shape,
        action="copy" if plain else "quantize",
        storage=info.dtype if plain else grid.name,
        grid=grid,
        dtype="raw" if plain else None,
        reason="as toys do",
    )


def _stored(plan: TensorPlan) -> list[tuple[str, str, tuple[int, ...]]]:
    if plan.grid is None:
        return [(plan.name, plan.storage, plan.shape)]
    stem = plan.name.removesuffix("weight")
    return [
        (stem + part, NAMES[getattr(torch, dtype)], shape)
        for part, (shape, dtype) in plan.grid.layout(plan.shape).items()
    ]


def _bytes(value: torch.Tensor) -> bytes:
    return value.contiguous().view(torch.uint8).numpy().tobytes()


# --- the plugin -----------------------------------------------------------------------------------


class PackedPlugin:
    @hookimpl
    def qconv_sources(self):
        yield SourceSpec(
            name="toy-packed",
            summary="codes, scales and zero-points side by side",
            recognizes=is_packed,
            api_version=1,
            load=lambda: PackedSource,
        )

    @hookimpl
    def qconv_backends(self):
        yield BackendSpec(
            name="toypack",
            summary="writes them, too",
            formats=tuple(FormatSpec(name=name, summary=name) for name in FORMATS),
            api_version=1,
            load=lambda: PackedBackend,
        )


def host_with(*plugins: object) -> Host:
    """The installed plugins, and some that are not."""
    given = [host_of(each, f"toy{number}") for number, each in enumerate(plugins)]
    return Host([record for host in (load_plugins(), *given) for record in host.listing()])
