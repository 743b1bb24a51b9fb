"""Reads artifacts back through ``onnx``, independently of the writer.

What a weight is follows from the operators that use it, as a runtime would see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from qconv.errors import UnreadableInput
from qconv.plugin import TensorInfo

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import torch

_GRAPH = "model.onnx"
_SUFFIX = "_quantized"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weight:
    """A quantized weight as the graph computes with it.

    node: the operator that takes the codes
    scale: initializer of the scales
    zero_point: initializer of the zero-points; None: there are none
    """

    node: onnx.NodeProto
    codes: str
    scale: str
    zero_point: str | None
    info: TensorInfo


class OnnxReader:
    """An opened artifact; memory is the graph, one tensor and its float32 values."""

    def __init__(self, path: Path) -> None:
        """Open the folder ``path``, or the folder of a file in it.

        Raises:
            UnreadableInput: it holds no graph, or its weights are missing or lie elsewhere.
        """
        import onnx
        from google.protobuf.message import DecodeError

        self._folder = path if path.is_dir() else path.parent
        file = self._folder / _GRAPH
        try:
            self._model = onnx.load(file, load_external_data=False)
        except (OSError, DecodeError) as error:
            raise UnreadableInput(
                f"{file}: not a sound ONNX file ({error}); write it again"
            ) from error
        self._stored = {each.name: each for each in self._model.graph.initializer}
        for each in self._stored.values():
            self._check(each)
        self._weights = {each.info.name: each for each in self._quantized()}
        self._tensors = self._infos()

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The weights by the source's names; the dtype of a quantized one is its grid's name."""
        return self._tensors

    def read(self, name: str) -> torch.Tensor:
        """Decode one tensor: float32, shape as in the source."""
        import torch

        weight = self._weights.get(name)
        values = self._array(name) if weight is None else self._decode(weight)
        return torch.from_numpy(values.astype("float32", copy=True))

    def _quantized(self) -> list[_Weight]:
        found = []
        for node in self._model.graph.node:
            if node.op_type == "MatMulNBits":
                found.append(self._nbits(node))
            elif node.op_type == "DequantizeLinear" and node.input[0] in self._stored:
                found.append(self._blocked(node))
            elif node.op_type == "MatMulInteger" and node.input[1] in self._stored:
                found.append(self._integer(node))
        return found

    def _nbits(self, node: onnx.NodeProto) -> _Weight:
        names = list(node.input)
        facts = _attributes(node)
        zero = names[3] if len(names) > 3 and names[3] else None
        kind = f"{'int' if zero is None else 'uint'}{facts['bits']}_g{facts['block_size']}"
        return self._weight(node, names[1:3], zero, (facts["N"], facts["K"]), kind)

    def _blocked(self, node: onnx.NodeProto) -> _Weight:
        names = list(node.input)
        zero = names[2] if len(names) > 2 and names[2] else None
        columns, rows = self._stored[names[0]].dims
        kind = f"{'int' if zero is None else 'uint'}4_g{_attributes(node)['block_size']}"
        return self._weight(node, names[:2], zero, (rows, columns), kind)

    def _integer(self, node: onnx.NodeProto) -> _Weight:
        columns, rows = self._stored[node.input[1]].dims
        names = [node.input[1], self._scale_after(node)]
        return self._weight(node, names, None, (rows, columns), "int8_channel")

    def _scale_after(self, node: onnx.NodeProto) -> str:
        """The initializer that the product is multiplied by, after Cast and the input's scale."""
        users = {name: user for user in self._model.graph.node for name in user.input}
        after = users.get(node.output[0])
        while after is not None and after.op_type in {"Cast", "Mul"}:
            scales = [str(name) for name in after.input if name in self._stored]
            if scales:
                return scales[0]
            after = users.get(after.output[0])
        raise UnreadableInput(
            f"{self._folder}: node {node.name!r} has no scale after it; write the artifact again"
        )

    def _weight(
        self,
        node: onnx.NodeProto,
        parts: list[str],
        zero: str | None,
        shape: tuple[int, int],
        kind: str,
    ) -> _Weight:
        codes, scale = parts
        missing = [each for each in (codes, scale, zero) if each and each not in self._stored]
        if missing or not codes.endswith(_SUFFIX):
            raise UnreadableInput(
                f"{self._folder}: node {node.name!r} takes {(missing or [codes])[0]!r}, which is "
                "not a stored part of a quantized weight; write the artifact again"
            )
        nbytes = sum(self._nbytes(each) for each in (codes, scale, zero) if each)
        info = TensorInfo(name=codes.removesuffix(_SUFFIX), shape=shape, dtype=kind, nbytes=nbytes)
        return _Weight(node=node, codes=codes, scale=scale, zero_point=zero, info=info)

    def _infos(self) -> dict[str, TensorInfo]:
        parts = {p for w in self._weights.values() for p in (w.codes, w.scale, w.zero_point)}
        infos = [each.info for each in self._weights.values()]
        for name, tensor in self._stored.items():
            if name not in parts and _external(tensor):
                infos.append(
                    TensorInfo(
                        name=name,
                        shape=tuple(tensor.dims),
                        dtype={1: "F32", 10: "F16"}[tensor.data_type],
                        nbytes=self._nbytes(name),
                    )
                )
        return {info.name: info for info in sorted(infos, key=lambda info: info.name)}

    def _decode(self, weight: _Weight) -> np.ndarray[Any, Any]:
        """``scale * (code - zero_point)``: (out, in) float32."""
        if weight.node.op_type == "MatMulNBits":
            return self._decode_nbits(weight)
        codes = self._array(weight.codes).astype("float32")
        scale = self._array(weight.scale)
        if weight.node.op_type == "DequantizeLinear":
            size = _attributes(weight.node)["block_size"]
            scale = scale.repeat(size, axis=0)
            if weight.zero_point:
                zero = self._array(weight.zero_point).astype("float32")
                codes = codes - zero.repeat(size, axis=0)
        values: np.ndarray[Any, Any] = (scale * codes).T
        return values

    def _decode_nbits(self, weight: _Weight) -> np.ndarray[Any, Any]:
        import numpy as np

        facts = _attributes(weight.node)
        rows, columns, bits = facts["N"], facts["K"], facts["bits"]
        groups = columns // facts["block_size"]
        codes = _unpacked(self._array(weight.codes).reshape(rows, -1), bits)
        codes = codes.reshape(rows, groups, -1).astype("float32")
        if weight.zero_point:
            packed = self._array(weight.zero_point).reshape(rows, -1)
            zero = _unpacked(packed, bits)[:, :groups].astype("float32")
        else:
            zero = np.full((rows, groups), 1 << (bits - 1), dtype=np.float32)
        scale = self._array(weight.scale).reshape(rows, groups)
        values: np.ndarray[Any, Any] = scale[..., None] * (codes - zero[..., None])
        return values.reshape(rows, columns)

    def _check(self, tensor: onnx.TensorProto) -> None:
        """External data must lie in a file of the folder, within its bounds.

        Raises:
            UnreadableInput: it does not.
        """
        entry = _external(tensor)
        if not entry:
            return
        location = PurePosixPath(entry.get("location", ""))
        if len(location.parts) != 1 or location.name in {"", ".", ".."} or "\\" in str(location):
            raise UnreadableInput(
                f"{self._folder}: tensor {tensor.name!r} lies in {str(location)!r}, but weights "
                "must lie beside the graph; write the artifact again"
            )
        file = self._folder / location.name
        start, size = _whole(entry.get("offset", "0")), _whole(entry.get("length", ""))
        held = file.stat().st_size if file.is_file() else 0
        if start is None or size is None or start + size > held:
            raise UnreadableInput(
                f"{file}: tensor {tensor.name!r} is to lie at byte {entry.get('offset', '0')}, "
                f"{entry.get('length')} bytes long, but the file holds {held}; write it again"
            )

    def _nbytes(self, name: str) -> int:
        return int(_external(self._stored[name]).get("length", "0"))

    def _array(self, name: str) -> np.ndarray[Any, Any]:
        import onnx
        from onnx.external_data_helper import load_external_data_for_tensor
        from onnx.numpy_helper import to_array

        tensor = onnx.TensorProto()
        tensor.CopyFrom(self._stored[name])
        try:
            load_external_data_for_tensor(tensor, str(self._folder))
            return to_array(tensor)
        except (ValueError, OSError, onnx.checker.ValidationError) as error:
            raise UnreadableInput(
                f"{self._folder}: tensor {name!r} cannot be read ({error}); write it again"
            ) from error


def _attributes(node: onnx.NodeProto) -> dict[str, int]:
    return {each.name: each.i for each in node.attribute}


def _external(tensor: onnx.TensorProto) -> dict[str, str]:
    """Where external data lies; empty when the data is in the graph."""
    return {each.key: each.value for each in tensor.external_data}


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def _unpacked(packed: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Codes of 8 or 4 bits, of which the low half of a byte comes first: (rows, codes) uint8."""
    import numpy as np

    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(packed.shape[0], -1)
