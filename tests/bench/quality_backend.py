"""A backend for benchmarks: every block linear on one grid, written decoded, as a plain checkpoint.

So methods can be measured on grids that no backend writes yet, by any loader. It is a plugin as a
stranger's would be: :func:`install` puts what an installer would leave into a folder, and with that
and this file's folder on PYTHONPATH the `qconv` command finds it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconv.plugin import (
    BackendSpec,
    FilePlan,
    FormatSpec,
    Layout,
    OptionSpec,
    Place,
    PlanRequest,
    TensorPlan,
    TensorPlans,
    hookimpl,
)

if TYPE_CHECKING:
    import torch

    from qconv.grids import Grid
    from qconv.plugin import TensorInfo
    from qconv.tensors import QuantTensor

FORMATS = {
    "int4_g64": "4 bit, symmetric, groups of 64",
    "uint4_g64": "4 bit with zero-points, groups of 64",
    "w8a8": "8 bit by channel; inputs 8 bit by token, as they come",
}
#: Weights of the linear layers inside blocks; the same rule tells what bits are counted of.
BLOCK_LINEAR = re.compile(r"\.\d+\..*proj\.weight$")
METADATA = "qconv.bench"


def install(folder: Path) -> None:
    """Leave in ``folder`` what makes this module a plugin, for a PYTHONPATH that names it."""
    about = folder / "qconv_bench-0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: qconv-bench\nVersion: 0\n")
    (about / "entry_points.txt").write_text("[qconv.plugins]\nbench = quality_backend\n")


@hookimpl
def qconv_backends() -> Iterator[BackendSpec]:
    """Offer ``bench:int4_g64`` and the others."""
    yield BackendSpec(
        name="bench",
        summary="decoded checkpoints for benchmarks",
        formats=tuple(FormatSpec(name=name, summary=text) for name, text in FORMATS.items()),
        options=(OptionSpec(name="scale_dtype", summary="of scales: bfloat16, as peers have"),),
        load=lambda: BenchBackend,
        api_version=1,
    )


class BenchBackend:
    """Folders of ``model.safetensors``, config.json and the tokenizer."""

    def plan_tensors(self, request: PlanRequest) -> TensorPlans:
        """Put block linears on the format's grid; everything else becomes float32."""
        grid, activation = self._grids(request)
        plans = []
        for info in request.model.tensors.values():
            quantized = BLOCK_LINEAR.search(info.name) is not None and len(info.shape) == 2
            plans.append(
                TensorPlan(
                    name=info.name,
                    sources=(info.name,),
                    shape=info.shape,
                    action="quantize" if quantized else "cast",
                    storage=request.format if quantized else "F32",
                    grid=grid if quantized else None,
                    activation=activation if quantized else None,
                    dtype=None if quantized else "float32",
                    reason="a linear of a block" if quantized else "no linear of a block",
                )
            )
        return TensorPlans(tensors=tuple(plans))

    def _grids(self, request: PlanRequest) -> tuple[Grid, Any]:
        from qconv.grids import ActivationGrid, UniformGrid

        scale_dtype: Any = request.options.get("scale_dtype", "bfloat16")
        if request.format == "w8a8":
            grid = UniformGrid(
                bits=8, symmetric=True, group_size="channel", scale_dtype=scale_dtype
            )
            return grid, ActivationGrid()
        symmetric = request.format == "int4_g64"
        grid = UniformGrid(bits=4, symmetric=symmetric, group_size=64, scale_dtype=scale_dtype)
        return grid, None

    def layout(self, request: PlanRequest, plans: TensorPlans) -> Layout:
        """Lay tensors out one after the other behind the header that safetensors prescribes."""
        folder = f"{request.model.name}-{request.format}"
        sizes = {plan.name: 4 * prod(plan.shape) for plan in plans.tensors}
        header, offsets = _header(plans.tensors, _stands_for(request, plans.tensors))
        weights = f"{folder}/model.safetensors"
        places = {
            plan.name: (
                Place(
                    file=weights,
                    offset=len(header) + offsets[plan.name],
                    nbytes=sizes[plan.name],
                    row_nbytes=4 * plan.shape[-1],
                ),
            )
            for plan in plans.tensors
        }
        companions = {**request.model.files, "config.json": _json(request.model.config)}
        files = [FilePlan(path=weights, header=header, nbytes=len(header) + sum(sizes.values()))]
        files += [
            FilePlan(path=f"{folder}/{name}", header=data, nbytes=len(data))
            for name, data in sorted(companions.items())
        ]
        return Layout(files=tuple(files), places=places)

    def encode(
        self, plan: TensorPlan, value: QuantTensor | torch.Tensor
    ) -> Sequence[bytes | memoryview]:
        """Encode as float32, decoded where it was quantized."""
        from qconv.tensors import QuantTensor

        decoded = value.dequantize() if isinstance(value, QuantTensor) else value
        return [decoded.contiguous().numpy().tobytes()]

    def open(self, path: Path) -> Any:
        """Not needed: benchmarks read the files themselves."""
        raise NotImplementedError


def _json(config: Any) -> bytes:
    return json.dumps(config, indent=2, sort_keys=True).encode()


def _header(plans: Sequence[TensorPlan], stands_for: str) -> tuple[bytes, dict[str, int]]:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", METADATA: stands_for}}
    offsets: dict[str, int] = {}
    end = 0
    for plan in plans:
        offsets[plan.name] = end
        end += 4 * prod(plan.shape)
        span = [offsets[plan.name], end]
        entries[plan.name] = {"dtype": "F32", "shape": list(plan.shape), "data_offsets": span}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offsets


def _stands_for(request: PlanRequest, plans: Sequence[TensorPlan]) -> str:
    """What a packed file would take: linears as their grid packs them, the rest as it came."""
    bits, weights, others = 0.0, 0, 0
    for plan in plans:
        info: TensorInfo = request.model.tensors[plan.name]
        if plan.grid is None:
            others += info.nbytes
            continue
        bits += plan.grid.bits_per_weight((info.shape[0], info.shape[1])) * info.numel
        weights += info.numel
    facts = {
        "linear_bits": bits / max(1, weights),
        "nbytes": round(bits / 8) + others,
        "activations": any(plan.activation for plan in plans),
    }
    return json.dumps(facts)
