"""The file form of quantized tensors: plain safetensors, its metadata described by a schema.

Tensor ``a`` is stored as ``a:codes`` and ``a:<parameter>``, static parameters of its input as
``a:activation_<parameter>``. The metadata entry ``qconv`` is JSON, a :class:`QuantTensorMetadata`:
the grid and shape of every tensor. So a method and a backend may run in different processes, or on
different machines.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from qconv.errors import QconvError, UnreadableInput
from qconv.tensors._quant_tensor import QuantTensor

if TYPE_CHECKING:
    import torch
    from safetensors import safe_open

    from qconv.grids import ActivationGrid, Grid

_METADATA_KEY = "qconv"

#: What the names of an input's parameters begin with; no grid has such parameters itself.
_INPUT = "activation_"

#: Names of dtypes in safetensors headers.
_DTYPES = {
    "int8": "I8",
    "uint8": "U8",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "int16": "I16",
    "int32": "I32",
}

_Size = Annotated[int, Field(ge=1, le=2**48)]


class QuantTensorEntry(BaseModel):
    """One tensor of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    grid: dict[str, JsonValue] = Field(description="The grid's spec: its family and its options.")
    rows: _Size = Field(description="Output features.")
    columns: _Size = Field(description="Input features.")
    activation: dict[str, JsonValue] | None = Field(
        default=None,
        description="The spec of its input's grid; left out where the input is not quantized.",
    )


class QuantTensorMetadata(BaseModel):
    """Metadata entry ``qconv`` of a safetensors file of quantized tensors.

    Tensor NAME is stored as NAME:codes and NAME:PARAMETER for every parameter of its grid, and
    NAME:activation_PARAMETER for every static parameter of its input's grid.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: Literal[1] = Field(description="Version of this form.")
    tensors: dict[str, QuantTensorEntry] = Field(description="By tensor name.")


def save_quant_tensors(path: Path | str, tensors: Mapping[str, QuantTensor]) -> None:
    """Write ``tensors`` to ``path``, whole or not at all; equal tensors give equal bytes.

    Peak memory: the tensors, and a copy of those that share memory or lie on a GPU.
    """
    from safetensors.torch import save_file

    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        save_file(_flat(tensors), temporary, {_METADATA_KEY: _metadata(tensors)})
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_quant_tensors(path: Path | str) -> Mapping[str, QuantTensor]:
    """The tensors of a file by name, each read when it is asked for.

    Names, grids, shapes and dtypes are checked here; codes and scales when a tensor is read.

    Raises:
        UnreadableInput: the file is missing, damaged, not of this form, or contradicts itself.
    """
    return _TensorFile(Path(path))


def _metadata(tensors: Mapping[str, QuantTensor]) -> str:
    entries = {
        name: {
            "grid": dict(tensor.grid.spec()),
            "rows": tensor.shape[0],
            "columns": tensor.shape[1],
            **({} if tensor.activation is None else {"activation": dict(tensor.activation.spec())}),
        }
        for name, tensor in tensors.items()
    }
    return json.dumps({"version": 1, "tensors": entries}, sort_keys=True, separators=(",", ":"))


def _flat(tensors: Mapping[str, QuantTensor]) -> dict[str, torch.Tensor]:
    flat = {}
    seen: set[int] = set()
    for name, tensor in sorted(tensors.items()):
        static = {f"{_INPUT}{part}": each for part, each in tensor.activation_parameters.items()}
        parts = {"codes": tensor.codes, **tensor.parameters, **static}
        for part, value in sorted(parts.items()):
            flat[f"{name}:{part}"] = _own(value, seen)
    return flat


def _own(value: torch.Tensor, seen: set[int]) -> torch.Tensor:
    """The tensor on the CPU, alone on its memory as safetensors demands."""
    value = value.detach().cpu().contiguous()
    storage = value.untyped_storage()
    if storage.data_ptr() in seen or storage.nbytes() != value.numel() * value.element_size():
        value = value.clone()
    seen.add(value.untyped_storage().data_ptr())
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """One tensor of the file as its metadata has it.

    layout: shape and torch dtype name of every part that is stored
    """

    grid: Grid
    activation: ActivationGrid | None
    layout: Mapping[str, tuple[tuple[int, ...], str]]

    def tensor(self, parts: Mapping[str, torch.Tensor]) -> QuantTensor:
        """The tensor whose parts these are."""
        weight = {part: value for part, value in parts.items() if not part.startswith(_INPUT)}
        static = {part[len(_INPUT) :]: parts[part] for part in parts.keys() - weight.keys()}
        return QuantTensor(
            grid=self.grid,
            codes=weight.pop("codes"),
            parameters=weight,
            activation=self.activation,
            activation_parameters=static,
        )


class _TensorFile(Mapping[str, QuantTensor]):
    """Tensors of one file, read one at a time; the file is open only while one is read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stored: dict[str, _Stored] = {}
        with _open(path) as file:
            stored = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
            metadata = _parse(path, file.metadata())
            for name, entry in metadata.tensors.items():
                self._stored[name] = _stored(path, name, entry)
            self._check(stored)

    def __getitem__(self, name: str) -> QuantTensor:
        from safetensors import SafetensorError

        stored = self._stored[name]
        with _open(self._path) as file:
            try:
                parts = {part: file.get_tensor(f"{name}:{part}") for part in stored.layout}
            except (SafetensorError, OSError) as error:
                raise UnreadableInput(
                    f"{self._path}: tensor {name!r} can no longer be read: {error}; "
                    "leave the file alone while it is in use"
                ) from error
        tensor = stored.tensor(parts)
        _check_values(self._path, name, tensor)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._stored))

    def __len__(self) -> int:
        return len(self._stored)

    def _check(self, stored: Mapping[str, Any]) -> None:
        expected = {
            f"{name}:{part}": (shape, dtype)
            for name, entry in self._stored.items()
            for part, (shape, dtype) in entry.layout.items()
        }
        if odd := sorted(expected.keys() ^ stored.keys()):
            state = "is not there" if odd[0] in expected else "belongs to no quantized tensor"
            raise UnreadableInput(
                f"{self._path}: stored tensor {odd[0]!r} {state}; write the file again with "
                "save_quant_tensors"
            )
        for key, (shape, dtype) in expected.items():
            found = tuple(stored[key].get_shape()), stored[key].get_dtype()
            if found != (tuple(shape), _DTYPES[dtype]):
                raise UnreadableInput(
                    f"{self._path}: stored tensor {key!r} is {found[0]} {found[1]}, but its grid "
                    f"needs {tuple(shape)} {_DTYPES[dtype]}; write the file again with "
                    "save_quant_tensors"
                )


def _open(path: Path) -> safe_open:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UnreadableInput(
            f"{path}: cannot be read as safetensors: {error}; pass a file that save_quant_tensors "
            "wrote"
        ) from error


def _parse(path: Path, metadata: Mapping[str, str] | None) -> QuantTensorMetadata:
    text = (metadata or {}).get(_METADATA_KEY)
    if text is None:
        raise UnreadableInput(
            f"{path}: no metadata entry {_METADATA_KEY!r}, so it holds no quantized tensors of "
            "qconv; pass a file that save_quant_tensors wrote"
        )
    try:
        return QuantTensorMetadata.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise UnreadableInput(
            f"{path}: metadata entry {_METADATA_KEY!r}, {where}: {first['msg']}; write the file "
            "again with save_quant_tensors"
        ) from error


def _stored(path: Path, name: str, entry: QuantTensorEntry) -> _Stored:
    from qconv.grids import grid_from_spec

    shape = (entry.rows, entry.columns)
    try:
        grid = grid_from_spec(entry.grid)
        grid.check_shape(shape, name)
        activation = _activation(entry.activation)
    except QconvError as error:
        raise UnreadableInput(f"{path}: tensor {name!r}: {error}") from error
    static = {} if activation is None else activation.layout()
    layout = {**grid.layout(shape), **{f"{_INPUT}{part}": each for part, each in static.items()}}
    return _Stored(grid=grid, activation=activation, layout=layout)


def _activation(spec: Mapping[str, Any] | None) -> ActivationGrid | None:
    from qconv.grids import ActivationGrid

    if spec is None:
        return None
    if spec.get("family") != "activation":
        raise UnreadableInput(
            f"its activation grid is of family {spec.get('family')!r}; only 'activation' is known: "
            "write the file again"
        )
    return ActivationGrid.from_spec(spec)


def _check_values(path: Path, name: str, tensor: QuantTensor) -> None:
    """Refuse codes the grid does not have and parameters that are not finite."""
    import torch

    column = tensor.grid.column(tensor.parameters, 0)
    low, high = (int(extreme) for extreme in torch.aminmax(tensor.codes))
    if low < column.lowest or high > column.highest:
        raise UnreadableInput(
            f"{path}: tensor {name!r} has codes from {low} to {high}, but grid {tensor.grid.name} "
            f"has {column.lowest} to {column.highest}; write the file again"
        )
    _check_float_codes(path, name, tensor)
    _check_input_values(path, name, tensor)
    for part, value in tensor.parameters.items():
        if value.is_floating_point() and not math.isfinite(float(value.float().abs().max())):
            raise UnreadableInput(
                f"{path}: tensor {name!r} has a {part} that is not finite; write the file again"
            )


def _check_float_codes(path: Path, name: str, tensor: QuantTensor) -> None:
    """Refuse the bit pattern in the middle of a float grid's codes that is no number."""
    from qconv.grids import FloatGrid
    from qconv.grids._e4m3 import NAN

    if isinstance(tensor.grid, FloatGrid) and bool((tensor.codes == NAN).any()):
        raise UnreadableInput(
            f"{path}: tensor {name!r} has code {NAN}, which is NaN in FP8 E4M3; write the file "
            "again"
        )


def _check_input_values(path: Path, name: str, tensor: QuantTensor) -> None:
    """Refuse static scales that are no scales and zero-points that are no codes."""
    activation, static = tensor.activation, tensor.activation_parameters
    if activation is None or not static:
        return
    scale = float(static["scale"])
    if not 0.0 < scale < math.inf:
        raise UnreadableInput(
            f"{path}: tensor {name!r} has an activation scale of {scale}; it must be positive and "
            "finite: write the file again"
        )
    zero = 0 if activation.symmetric else int(static["zero_point"])
    if zero > activation.highest:
        raise UnreadableInput(
            f"{path}: tensor {name!r} has an activation zero-point of {zero}, but activation grid "
            f"{activation.name} has codes to {activation.highest}; write the file again"
        )
