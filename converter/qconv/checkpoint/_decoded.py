"""A quantized checkpoint seen as a plain one: its packed tensors decoded, on demand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

from qconv._recent import Recent
from qconv.checkpoint._encoded import decode, encoded_tensors
from qconv.checkpoint._stored import torch_dtype
from qconv.errors import UnreadableInput
from qconv.plugin import TensorInfo

if TYPE_CHECKING:
    import torch

    from qconv.checkpoint._files import FileCheckpoint
    from qconv.grids import Grid
    from qconv.plugin import EncodedTensor, ModelInfo, Source
    from qconv.tensors import QuantTensor

#: Decoded tensors in memory: slabs come in order, so that threads are seldom more than two apart.
_HELD, _WHOLE = 4, 2

#: Bytes per weight while a tensor is decoded: its parts, its codes, and what is between them;
#: measured at 2.3 to 3.5 for 4-bit layouts.
_DECODING = 4

#: Where config.json says that, and how, the weights are quantized; the second is older.
_SETTINGS = frozenset({"quantization_config", "compression_config"})
#: Companions that say the same.
_SETTINGS_FILES = frozenset({"hf_quant_config.json", "quant_config.json", "quantize_config.json"})

#: Stored types by what config.json calls the model's dtype, and their bytes.
_DTYPES = {"float32": ("F32", 4), "bfloat16": ("BF16", 2), "float16": ("F16", 2)}

#: Bytes of torch dtypes that are not of four.
_SIZES = {"int8": 1, "uint8": 1, "float16": 2, "bfloat16": 2, "int16": 2}


class DecodedCheckpoint:
    """The :class:`qconv.checkpoint.Checkpoint` of a quantized one. Safe to read from many threads.

    ``model`` is that of the float checkpoint: the parts of quantized tensors are hidden, and the
    tensors themselves have the dtype that config.json names; but ``read_rows`` gives them in
    float32, as nothing shorter holds them. Everything else is as stored.

    Peak memory: what ``stored`` takes, four tensors of codes and parameters (about a byte per
    weight), two float32 tensors of grids whose rows share parameters, for each thread the parts of
    a tensor that it decodes, and the rows in hand.
    """

    def __init__(self, stored: FileCheckpoint, source: Source, family: str) -> None:
        """Look at the quantized tensors, decoding none and reading small ones at most.

        family: what the source is called, for messages

        Raises:
            QconvError: the checkpoint or the source's account of it is not sound.
        """
        self._stored = stored
        self._source = source
        self._family = family
        self._encoded = encoded_tensors(source, family, stored.model, self._read_whole)
        self._model = _plain(stored.model, self._encoded)
        self._held = Recent(self._decode, keep=_HELD)
        self._whole = Recent(self._dequantize, keep=_WHOLE)

    @property
    def stored(self) -> FileCheckpoint:
        """The checkpoint as it is on disk."""
        return self._stored

    @property
    def family(self) -> str:
        """What its kind of quantized checkpoint is called."""
        return self._family

    @property
    def model(self) -> ModelInfo:
        """The source as if it were a float checkpoint."""
        return self._model

    @property
    def encoded(self) -> Mapping[str, EncodedTensor]:
        """The quantized tensors by name."""
        return MappingProxyType(self._encoded)

    @property
    def held_grids(self) -> Mapping[str, Grid]:
        """The grids that quantized tensors lie on, by name."""
        return {name: tensor.grid for name, tensor in self._encoded.items()}

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of the stored checkpoint, and that quantizing it again loses twice."""
        if not self._encoded:
            return self._stored.warnings
        kinds = Counter(tensor.grid.name for tensor in self._encoded.values())
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        warning = (
            f"the source is quantized already ({listed} tensors, {self._family}): quantizing twice "
            "loses twice; start from the float checkpoint, or move it to another format without "
            "rounding again with qconv transcode"
        )
        return (*self._stored.warnings, warning)

    @property
    def nbytes(self) -> int:
        """Bytes of all weight files, headers included."""
        return self._stored.nbytes

    def working_nbytes(self, threads: int) -> int:
        """Memory that reading on ``threads`` takes besides the rows in hand, at most."""
        tensors = self._encoded.values()
        held = max((_nbytes(tensor) for tensor in tensors), default=0)
        largest = max((prod(tensor.shape) for tensor in tensors), default=0)
        shared = [tensor for tensor in tensors if not tensor.grid.rows_independent]
        whole = max((prod(tensor.shape) for tensor in shared), default=0)
        return _HELD * held + threads * _DECODING * largest + _WHOLE * 4 * whole

    def stored_nbytes(self, name: str) -> int:
        """Bytes that a tensor of the model takes on disk, over all its parts."""
        tensor = self._encoded.get(name)
        parts = (name,) if tensor is None else tensor.parts
        return sum(self._stored.model.tensors[part].nbytes for part in parts)

    def held(self, name: str) -> QuantTensor:
        """A quantized tensor as it is: its codes and parameters."""
        if name not in self._encoded:
            raise KeyError(f"tensor {name!r} is not quantized; see held_grids")
        return self._held[name]

    def parts(self, name: str) -> dict[str, torch.Tensor]:
        """The stored tensors that a quantized one is decoded from, whole, as stored."""
        return {part: self._read_whole(part) for part in self._encoded[name].parts}

    def from_parts(self, name: str, parts: Mapping[str, torch.Tensor]) -> QuantTensor:
        """A quantized tensor decoded from its stored ones, on whichever device they are.

        Raises:
            UnreadableInput: the values contradict the config.
            BrokenPlugin: the source's plugin does not do what it said.
        """
        return decode(self._source, self._family, self._encoded[name], parts)

    def fingerprint(self) -> str:
        """That of the stored checkpoint."""
        return self._stored.fingerprint()

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop``, (stop - start, last dimension): float32 where quantized.

        Raises:
            UnreadableInput: the file changed its size, or its values contradict its config.
            BrokenPlugin: the source's plugin does not do what it said.
        """
        tensor = self._tensor(name, start, stop)
        if tensor is None:
            return self._stored.read_rows(name, start, stop)
        if not tensor.grid.rows_independent:
            return self._whole[name][start:stop].clone()
        held = self._held[name]
        if start == stop:
            return held.dequantize()[:0]
        if (start, stop) == (0, tensor.shape[0]):
            return held.dequantize()
        return held.take_rows(range(start, stop)).dequantize()

    def read_raw(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows as stored, or rounded to the dtype in ``model``: (rows, bytes per row) uint8."""
        import torch

        if self._tensor(name, start, stop) is None:
            return self._stored.read_raw(name, start, stop)
        dtype = torch_dtype(self._model.tensors[name])
        return self.read_rows(name, start, stop).to(dtype).view(torch.uint8)

    def read_part(self, name: str, row: int, start: int, stop: int) -> torch.Tensor:
        """Columns ``start:stop`` of one row, one dimension; see :class:`FileCheckpoint`."""
        if self._tensor(name, row, row + 1) is None:
            return self._stored.read_part(name, row, start, stop)
        return self.read_rows(name, row, row + 1)[0, start:stop]

    def block(self, name: str) -> int:
        """How many consecutive values of a row can only be read together."""
        return 1 if self._tensor(name, 0, 0) else self._stored.block(name)

    def close(self) -> None:
        """Unmap the files; closing twice is fine."""
        self._stored.close()

    def __enter__(self) -> DecodedCheckpoint:  # noqa: PYI034 - Self needs Python 3.11
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _tensor(self, name: str, start: int, stop: int) -> EncodedTensor | None:
        """The quantized tensor of that name, None for a plain one, whose reader checks rows."""
        if name not in self._model.tensors:
            raise KeyError(f"the checkpoint has no tensor {name!r}; see model.tensors")
        tensor = self._encoded.get(name)
        if tensor is not None and not 0 <= start <= stop <= tensor.shape[0]:
            raise ValueError(
                f"tensor {name!r}: rows {start}:{stop} are not within its {tensor.shape[0]} rows"
            )
        return tensor

    def _decode(self, name: str) -> QuantTensor:
        return self.from_parts(name, self.parts(name))

    def _read_whole(self, name: str) -> torch.Tensor:
        shape = self._stored.model.tensors[name].shape
        return self._stored.read_rows(name, 0, prod(shape[:-1])).reshape(shape)

    def _dequantize(self, name: str) -> torch.Tensor:
        return self._held[name].dequantize()


def _nbytes(tensor: EncodedTensor) -> int:
    """Bytes of codes and parameters in memory."""
    layout = tensor.grid.layout(tensor.shape).values()
    return sum(prod(shape) * _SIZES.get(dtype, 4) for shape, dtype in layout)


def _plain(model: ModelInfo, encoded: Mapping[str, EncodedTensor]) -> ModelInfo:
    """The model with its quantized tensors in the place of the first of their parts.

    Raises:
        UnreadableInput: config.json is nested too deep to be written anew.
    """
    files = {name: data for name, data in model.files.items() if name not in _SETTINGS_FILES}
    try:
        config = _without_settings(model.config)
        if "config.json" in files:
            text = json.dumps(config, indent=2, ensure_ascii=False)
            files["config.json"] = f"{text}\n".encode("utf-8", "surrogatepass")
    except RecursionError as error:
        raise UnreadableInput(
            f"{model.name}: config.json is nested too deep; it is damaged or hostile, get it anew"
        ) from error
    tensors = {info.name: info for info in _infos(model, encoded)}
    return replace(model, config=config, files=files, tensors=tensors)


def _infos(model: ModelInfo, encoded: Mapping[str, EncodedTensor]) -> Iterator[TensorInfo]:
    dtype, nbytes = _DTYPES[_named_dtype(model.config)]
    owners = {part: tensor for tensor in encoded.values() for part in tensor.parts}
    placed: set[str] = set()
    for name, info in model.tensors.items():
        owner = owners.get(name)
        if owner is None:
            yield info
        elif owner.name not in placed:
            placed.add(owner.name)
            size = nbytes * prod(owner.shape)
            yield TensorInfo(name=owner.name, shape=owner.shape, dtype=dtype, nbytes=size)


def _without_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config, and those nested in it for parts of a model, as if it were not quantized."""
    return {
        key: _without_settings(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _SETTINGS
    }


def _named_dtype(config: Mapping[str, Any]) -> str:
    """What config.json calls the model's dtype; float32 where it does not, or not one we know."""
    text = config.get("text_config")
    for settings in (config, text if isinstance(text, dict) else {}):
        for key in ("dtype", "torch_dtype"):  # the second is the older name
            name = str(settings.get(key)).removeprefix("torch.")
            if name in _DTYPES:
                return name
    return "float32"
