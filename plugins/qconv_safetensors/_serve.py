"""Whether vLLM can split a model over devices and has kernels for every shard.

Read in vLLM 0.32: ``layers/linear.py`` (what is split along which dimension),
``quantization/utils/marlin_utils.py`` and ``kernels/linear/mixed_precision/marlin.py`` (types and
group sizes; tiles that do not fit are padded), ``schemes/compressed_tensors_wNa16.py`` (packed
parameters), ``quantization/utils/fp8_utils.py:validate_fp8_block_shape``,
``marlin_utils.check_moe_marlin_supports_config`` (experts).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qconv.errors import Unsupported

from ._roles import sibling_key

if TYPE_CHECKING:
    from qconv.grids import Grid

    from ._options import Scheme
    from ._view import HuggingFaceView

#: Split along their inputs: each device holds the columns that its part of the block makes.
_ROW_PARALLEL = frozenset({"o_proj", "down_proj", "out_proj", "fc2", "w2", "wo", "dense_4h_to_h"})
#: Split along their outputs.
_COLUMN_PARALLEL = frozenset(
    {
        *("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "q_b_proj", "kv_b_proj"),
        *("gate_proj", "up_proj", "gate_up_proj", "fc1", "w1", "w3", "wi_0", "wi_1", "wi"),
        *("query", "key", "value", "dense_h_to_4h"),
    }
)
#: Whole on every device.
_REPLICATED = frozenset({"q_a_proj", "kv_a_proj_with_mqa"})
#: Several matrices in one, each of which is split.
_JOINED: Mapping[str, int] = {"gate_up_proj": 2}

#: Rows and columns of an expert's tile that Marlin does not pad.
_EXPERT_HIDDEN = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shard:
    """What one device holds of a weight.

    split: which dimension of the weight is divided
    """

    name: str
    rows: int
    columns: int
    split: Literal["rows", "columns", "none"]


def check_served(scheme: Scheme, view: HuggingFaceView, grids: Mapping[str, Grid]) -> None:
    """Refuse a plan that vLLM could not load on so many devices.

    grids: of the quantized weights

    Raises:
        Unsupported: names the first weights, and the numbers of devices that would do.
    """
    devices = scheme.tensor_parallel
    if devices is None:
        return
    faults = list(_faults(scheme, view, grids, devices))
    if not faults:
        return
    fitting = [
        str(fewer)
        for fewer in range(1, devices)
        if next(_faults(scheme, view, grids, fewer), None) is None
    ]
    way = "choose other options, or leave serve out"
    if fitting:
        way = f"vllm:tp={' or '.join(fitting)} would do"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    raise Unsupported(
        f"safetensors:{scheme.format}: serve=vllm:tp={devices}: {faults[0]}{more}; {way}"
    )


def _faults(
    scheme: Scheme, view: HuggingFaceView, grids: Mapping[str, Grid], devices: int
) -> Iterator[str]:
    """Why vLLM could not load the model, weight by weight."""
    yield from _heads(view.config, devices)
    shapes = {each.name: each.shape for each in view.tensors}
    for name, grid in grids.items():
        kernel = _no_kernel(scheme, grid)
        if kernel:
            yield f"tensor {name!r}: {kernel}"
            continue
        shard = _shard(view.config, name, (shapes[name][0], shapes[name][1]), devices)
        if isinstance(shard, str):
            yield shard
            continue
        for fault in _shard_faults(scheme, grid, shard, devices):
            yield f"tensor {name!r}: a shard is ({shard.rows}, {shard.columns}): {fault}"


def _heads(config: Mapping[str, Any], devices: int) -> Iterator[str]:
    settings = _text(config)
    heads, kv_heads = settings.get("num_attention_heads"), settings.get("num_key_value_heads")
    if type(heads) is int and heads % devices:
        yield f"{heads} attention heads cannot be split over {devices} devices"
    if type(kv_heads) is int and kv_heads % devices and devices % max(kv_heads, 1):
        yield f"{kv_heads} key-value heads can be neither split over nor copied to {devices}"


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    nested = config.get("text_config")
    return nested if isinstance(nested, Mapping) else config


def _shard(
    config: Mapping[str, Any], name: str, shape: tuple[int, int], devices: int
) -> _Shard | str:
    """What one device holds, or why that is not whole."""
    rows, columns = shape
    last = name.removesuffix(".weight").rpartition(".")[2]
    if devices == 1 or last in _REPLICATED:
        return _Shard(name=name, rows=rows, columns=columns, split="none")
    if last in _ROW_PARALLEL:
        if columns % devices:
            return f"tensor {name!r}: {columns} columns cannot be split over {devices} devices"
        return _Shard(name=name, rows=rows, columns=columns // devices, split="columns")
    if last in _COLUMN_PARALLEL:
        parts = devices
        if last in {"k_proj", "v_proj"}:
            parts = min(devices, _kv_heads(config) or devices)  # fewer heads: each is copied
        if rows % (parts * _JOINED.get(last, 1)):
            return f"tensor {name!r}: {rows} rows cannot be split over {parts} devices"
        return _Shard(name=name, rows=rows // parts, columns=columns, split="rows")
    return f"tensor {name!r}: how vLLM splits it is not known to qconv, so nothing can be promised"


def _kv_heads(config: Mapping[str, Any]) -> int | None:
    found = _text(config).get("num_key_value_heads")
    return found if type(found) is int and found > 0 else None


def _no_kernel(scheme: Scheme, grid: Grid) -> str:
    """Why no kernel of vLLM's own computes the grid, however it is split; empty when one does."""
    from qconv.grids import UniformGrid

    if not isinstance(grid, UniformGrid) or scheme.activations:
        return ""
    size = grid.group_size
    if (grid.bits, grid.symmetric) not in {(4, True), (4, False), (8, True)}:
        return f"Marlin computes 4-bit weights and 8-bit ones without zero-points, not {grid.name}"
    if not grid.symmetric and scheme.format in {"gptq", "gptq_v2"}:
        return "vLLM reads GPTQ without zero-points only"
    if isinstance(size, int) and size not in {32, 64, 128}:
        return f"Marlin computes groups of 32, 64 and 128, not {size}"
    return ""


def _shard_faults(scheme: Scheme, grid: Grid, shard: _Shard, devices: int) -> Iterator[str]:
    from qconv.grids import UniformGrid

    if scheme.format == "fp8" and grid.spec()["scope"] == "block":
        yield from _block_faults(shard, devices)
    if not isinstance(grid, UniformGrid) or scheme.activations:
        return
    size = grid.group_size
    if isinstance(size, int) and shard.columns % size:
        yield f"groups of {size} columns do not end where it does"
    if shard.columns * grid.bits % 32:
        yield f"its {shard.columns} columns do not fill whole packed words"
    packed_rows = not grid.symmetric or scheme.format in {"gptq", "gptq_v2", "awq"}
    if packed_rows and shard.rows * grid.bits % 32:
        yield f"zero-points of its {shard.rows} rows do not fill whole packed words"
    if re.search(r"\.experts\.\d+\.", shard.name):
        hidden = shard.rows if shard.split == "columns" else shard.columns
        if hidden % _EXPERT_HIDDEN:
            yield f"Marlin's kernel for experts needs a hidden size that {_EXPERT_HIDDEN} divides"


def _block_faults(shard: _Shard, devices: int) -> Iterator[str]:
    """FP8 blocks of 128 by 128 must end where a split or merged shard does."""
    if devices > 1 and shard.split == "columns" and shard.columns % 128:
        yield f"blocks of 128 columns do not end where its {shard.columns} do"
    joined = sibling_key(shard.name) != shard.name.removesuffix(".weight")
    if (shard.split == "rows" or joined) and shard.rows % 128:
        yield f"blocks of 128 rows do not end where its {shard.rows} do"
