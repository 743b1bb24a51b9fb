"""A checkpoint in memory and a backend of a few lines: what the host is tested with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from qconv.plugin import (
    Dropped,
    FilePlan,
    Layout,
    ModelInfo,
    Place,
    PlanRequest,
    RowOrder,
    TensorInfo,
    TensorPlan,
    TensorPlans,
)

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass
class MemoryCheckpoint:
    """Tensors in memory behind the Checkpoint protocol. ``reads`` records what was read."""

    tensors: dict[str, torch.Tensor]
    warnings: tuple[str, ...] = ()
    reads: list[tuple[str, int, int]] = field(default_factory=list)

    @property
    def model(self) -> ModelInfo:
        infos = {
            name: TensorInfo(
                name=name,
                shape=tuple(tensor.shape),
                dtype=NAMES[tensor.dtype],
                nbytes=tensor.nbytes,
            )
            for name, tensor in self.tensors.items()
        }
        return ModelInfo(
            kind="safetensors", name="toy", config={}, tensors=infos, files={}, metadata={}
        )

    def fingerprint(self) -> str:
        sha256 = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            sha256.update(name.encode() + tensor.float().numpy().tobytes())
        return sha256.hexdigest()

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        self.reads.append((name, start, stop))
        tensor = self.tensors[name]
        return tensor.reshape(-1, tensor.shape[-1])[start:stop].clone()

    def read_raw(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self.read_rows(name, start, stop).view(torch.uint8)

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> MemoryCheckpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class ToyBackend:
    """Writes tensors as they come, float32, one after the other behind an eight-byte header.

    changes: fields to replace in the plan of a tensor, by its name
    drops: source tensors to drop
    skips: source tensors to have no place for
    """

    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    drops: Sequence[str] = ()
    skips: Sequence[str] = ()
    header: bytes = b"TOYTOY!\n"
    gap: int = 0
    file: str = "toy.bin"

    def plan_tensors(self, request: PlanRequest) -> TensorPlans:
        plans = []
        for info in request.model.tensors.values():
            if info.name in self.drops or info.name in self.skips:
                continue
            plan = TensorPlan(
                name=info.name,
                sources=(info.name,),
                shape=info.shape,
                action="cast",
                storage="F32",
                dtype="float32",
                reason="toys are float32",
            )
            plans.append(replace(plan, **self.changes.get(info.name, {})))
        dropped = tuple(Dropped(name=name, reason="toys need no such thing") for name in self.drops)
        return TensorPlans(tensors=tuple(plans), dropped=dropped)

    def layout(self, request: PlanRequest, plans: TensorPlans) -> Layout:
        places, offset = {}, len(self.header)
        for plan in plans.tensors:
            row = plan.shape[-1] * 4
            rows = 1
            for size in plan.shape[:-1]:
                rows *= size
            place = Place(file=self.file, offset=offset, nbytes=rows * row, row_nbytes=row)
            places[plan.name] = (place,)
            offset += rows * row + self.gap
        files = (FilePlan(path=self.file, header=self.header, nbytes=offset),)
        return Layout(files=files, places=places)

    def encode(self, plan: TensorPlan, value: Any) -> Sequence[bytes]:
        if plan.grid is not None:
            value = value.dequantize()
        return [value.contiguous().numpy().tobytes()]

    def open(self, path: Path) -> Any:
        raise NotImplementedError


def reversed_rows(rows: int) -> RowOrder:
    return RowOrder(label="last row first", index=range(rows - 1, -1, -1))
