"""The ``quantization_config`` of compressed-tensors: one group of modules per scheme.

Read in compressed-tensors 0.20 (``quantization/quant_config.py``, ``quant_args.py``) and vLLM 0.32
(``compressed_tensors.py``), which look for a module by its name first, then by its class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ._roles import is_table

if TYPE_CHECKING:
    from qconv.grids import ActivationGrid, Grid

    from ._planner import PlannedTensor

#: The version whose packing and fields these are: since 0.19 codes of any bits lie densely.
_VERSION = "0.20.0"


def compressed_tensors_config(
    quantized: Sequence[PlannedTensor], skipped: Sequence[str]
) -> dict[str, Any]:
    """The config of all schemes that occur.

    skipped: linear modules left in float
    """
    schemes: list[tuple[dict[str, Any], list[str]]] = []
    for plan in quantized:
        scheme = _scheme(plan)
        members = next((names for known, names in schemes if known == scheme), None)
        if members is None:
            schemes.append((scheme, [plan.name]))
        else:
            members.append(plan.name)
    schemes.sort(key=lambda each: -len(each[1]))
    formats = {scheme["format"] for scheme, _ in schemes}
    return {
        "config_groups": {
            f"group_{number}": {**scheme, "targets": _targets(number, names)}
            for number, (scheme, names) in enumerate(schemes)
        },
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "global_compression_ratio": None,
        "ignore": list(skipped),
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": _VERSION,
    }


def _targets(number: int, names: Sequence[str]) -> list[str]:
    """The largest group is that of all linear modules; the others name theirs.

    Heads and tables are of other classes in vLLM, and quantized only in what is transcoded.
    """
    modules = [name.removesuffix(".weight") for name in names]
    if number == 0:
        return ["Linear", *(name for name in modules if "." not in name or is_table(name))]
    return modules


def _scheme(plan: PlannedTensor) -> dict[str, Any]:
    return {
        "format": plan.layout,
        "input_activations": _inputs(plan.activation),
        "output_activations": None,
        "weights": _weights(plan.grid),
    }


def _weights(grid: Grid | None) -> dict[str, Any]:
    spec = {} if grid is None else grid.spec()
    if spec["family"] == "uniform":
        grouped = isinstance(spec["group_size"], int)
        return _arguments(
            num_bits=spec["bits"],
            kind="int",
            symmetric=spec["symmetric"],
            strategy="group" if grouped else "channel",
            group_size=spec["group_size"] if grouped else None,
        )
    arguments = _arguments(num_bits=8, kind="float", symmetric=True, strategy=spec["scope"])
    return {**arguments, "block_structure": spec.get("block")}


def _inputs(activation: ActivationGrid | None) -> dict[str, Any] | None:
    if activation is None:
        return None
    spec = activation.spec()
    return _arguments(
        num_bits=spec["bits"],
        kind=spec["kind"],
        symmetric=spec["symmetric"],
        strategy=spec["scope"],
        group_size=spec["group_size"],
        dynamic=True,
    )


def _arguments(
    *,
    num_bits: int,
    kind: str,
    symmetric: bool,
    strategy: str,
    group_size: int | None = None,
    dynamic: bool = False,
) -> dict[str, Any]:
    return {
        "actorder": None,
        "block_structure": None,
        "dynamic": dynamic,
        "group_size": group_size,
        "num_bits": num_bits,
        "observer": None if dynamic else "minmax",
        "observer_kwargs": {},
        "strategy": strategy,
        "symmetric": symmetric,
        "type": kind,
    }
