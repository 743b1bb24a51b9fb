"""Reads artifacts back through ``onnx``, independently of the writer.

What a weight is follows from the operators that use it, as a runtime would see it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qconv.errors import UnreadableInput
from qconv.plugin import TensorInfo

from ._soundness import check_blocks, check_node, check_part, check_tensor, external
from ._static import static_inputs

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import torch

_GRAPH = "model.onnx"

#: Codes are called after the weight; a number follows where the source has that name itself.
_CODES = re.compile(r"(?P<weight>.+)_quantized(?:_\d+)?", re.DOTALL)

#: The checkpoint's names of types, by TensorProto.DataType.
_TYPES = dict(
    enumerate(
        [
            *("unknown", "F32", "U8", "I8", "U16", "I16", "I32", "I64", "unknown", "BOOL", "F16"),
            *("F64", "U32", "U64", "unknown", "unknown", "BF16", "F8_E4M3", "unknown", "F8_E5M2"),
        ]
    )
)

#: What codes, scales and zero-points may be, by kind.
_SCALES = ("FLOAT", "FLOAT16")
_TYPES_OF = {
    "blocks": (("UINT8",), _SCALES, ("UINT8",)),
    "blocked": (("INT4", "UINT4"), _SCALES, ("INT4", "UINT4")),
    "channel": (("INT8",), _SCALES, ()),
    "kernel": (("INT8",), _SCALES, ()),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weight:
    """A quantized weight as the graph computes with it.

    kind: ``blocks`` of a row, (out, blocks, bytes); ``blocked`` or by ``channel``, (in, out); of a
        ``kernel`` or table, by row, (out, ...)
    bits: of a code
    block: columns per scale
    scale: initializer of the scales
    zero_point: initializer of the zero-points; None: there are none
    """

    kind: Literal["blocks", "blocked", "channel", "kernel"]
    bits: int
    block: int
    codes: str
    scale: str
    zero_point: str | None
    info: TensorInfo


class OnnxReader:
    """An opened artifact; memory is the graph, one tensor and its float32 values."""

    def __init__(self, path: Path) -> None:
        """Open the folder ``path``, or the folder of a file in it.

        Raises:
            UnreadableInput: it holds no graph, its weights are missing or lie elsewhere, or it
                computes with them as no artifact does.
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
            check_tensor(self._folder, each)
        for node in self._model.graph.node:
            check_node(self._folder, node)
        self._made = {name: node for node in self._model.graph.node for name in node.output}
        self._weights = self._alike(self._quantized())
        codes = {each.codes: each.info.name for each in self._weights.values()}
        nodes = self._model.graph.node
        self._static = static_inputs(self._folder, nodes, self._stored, codes)
        self._tensors = self._infos()

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The weights by the source's names; the dtype of a quantized one is its grid's name."""
        return self._tensors

    @property
    def activation_parameters(self) -> Mapping[str, Mapping[str, torch.Tensor]]:
        """``scale`` float32 and ``zero_point`` uint8, (1,) both, of weights' inputs, by weight."""
        import torch

        return {
            weight: {
                "scale": torch.from_numpy(self._array(scale).copy()).reshape(1),
                "zero_point": torch.from_numpy(self._array(zero).copy()).reshape(1),
            }
            for weight, (scale, zero) in self._static.items()
        }

    def read(self, name: str) -> torch.Tensor:
        """Decode one tensor: float32, shape as in the source."""
        import torch

        weight = self._weights.get(name)
        if weight is None and self._tensors[name].dtype == "unknown":
            raise UnreadableInput(
                f"{self._folder}: tensor {name!r} is of a type that artifacts do not have; write "
                "it again"
            )
        if weight is not None:
            return torch.from_numpy(self._decode(weight)).contiguous()
        return torch.from_numpy(self._array(name).astype("float32", copy=True))

    def _quantized(self) -> list[_Weight]:
        found = []
        for node in self._model.graph.node:
            if node.op_type in {"MatMulNBits", "GatherBlockQuantized"}:
                found.append(self._blocks(node))
            elif node.op_type == "DequantizeLinear" and node.input[0] in self._stored:
                found.append(self._decoded(node))
            elif node.op_type == "Gather" and self._is_codes(node.input[0]):
                found.append(self._rows(node))
            elif node.op_type == "MatMulIntegerToFloat":
                found += self._integers(node)
        return found

    def _alike(self, found: Sequence[_Weight]) -> dict[str, _Weight]:
        """Weights by name: a table that serves two operators must be the same to both."""
        weights: dict[str, _Weight] = {}
        for each in found:
            known = weights.setdefault(each.info.name, each)
            if known != each:
                raise UnreadableInput(
                    f"{self._folder}: the graph decodes {each.codes!r} in two ways, with "
                    f"{known.scale!r} and {each.scale!r}; write the artifact again"
                )
        return weights

    def _blocks(self, node: onnx.NodeProto) -> _Weight:
        """MatMulNBits has the codes second, GatherBlockQuantized first, then numbers of rows."""
        first, *names = node.input
        codes = names.pop(0) if node.op_type == "MatMulNBits" else first
        names = names if node.op_type == "MatMulNBits" else names[1:]
        scale, zero = self._whence(names[0]), self._whence(names[1]) if len(names) > 1 else None
        facts = _attributes(node)
        bits, block = facts.get("bits", 0), facts.get("block_size", 0)
        check_blocks(self._folder, node, bits, block)
        rows, blocks, _ = self._shape(node, codes, 3)
        return self._weight(
            node, (codes, scale), zero, (rows, blocks * block), "blocks", bits=bits, block=block
        )

    def _whence(self, name: str) -> str:
        """The initializer that is only reshaped on its way; the name itself where there is none."""
        made = self._made.get(name)
        return str(made.input[0]) if made is not None and made.op_type == "Reshape" else name

    def _decoded(self, node: onnx.NodeProto) -> _Weight:
        names = list(node.input)
        zero = names[2] if len(names) > 2 and names[2] else None
        facts = _attributes(node)
        block = facts.get("block_size", 0)
        if facts.get("axis") == 0 and not block:
            return self._kernel(node)
        columns, rows = self._shape(node, names[0], 2)
        if block:
            check_blocks(self._folder, node, 4, block)
        return self._weight(
            node,
            (names[0], names[1]),
            zero,
            (rows, columns),
            "blocked" if block else "channel",
            bits=4 if block else 8,
            block=block or columns,
        )

    def _kernel(self, node: onnx.NodeProto) -> _Weight:
        """A convolution's weight: all but the first dimension are columns."""
        rows, *others = self._shape(node, node.input[0])
        columns = prod(others)
        parts = (node.input[0], node.input[1])
        return self._weight(node, parts, None, (rows, columns), "kernel", bits=8, block=columns)

    def _is_codes(self, name: str) -> bool:
        integers = name in self._stored and _TYPES.get(self._stored[name].data_type) == "I8"
        return integers and _CODES.fullmatch(name) is not None

    def _rows(self, node: onnx.NodeProto) -> _Weight:
        """A table of which rows are taken: their scales are, too, and multiplied with them."""
        rows, columns = self._shape(node, node.input[0], 2)
        users = {name: user for user in self._model.graph.node for name in user.input}
        product = users.get(users[node.output[0]].output[0]) if node.output[0] in users else None
        taken = [self._made.get(name) for name in (product.input if product else ())]
        scales = [str(each.input[0]) for each in taken if each and each.op_type == "Gather"]
        if not scales:
            raise self._foreign(node, node.input[0])
        parts = (node.input[0], scales[0])
        return self._weight(node, parts, None, (rows, columns), "kernel", bits=8, block=columns)

    def _integers(self, node: onnx.NodeProto) -> list[_Weight]:
        """The weight of an integer product; several, where they are put side by side for it."""
        codes, scales = (self._made.get(node.input[number]) for number in (1, 3))
        if codes is None or scales is None or codes.op_type != "Concat":
            return [self._integer(node, node.input[1], node.input[3])]
        if len(codes.input) != len(scales.input) or scales.op_type != "Concat":
            raise self._foreign(node, node.input[1])
        axes = _attributes(codes).get("axis"), _attributes(scales).get("axis")
        if axes != (1, 0) or not codes.input:
            raise self._foreign(node, node.input[1])
        return [self._integer(node, *each) for each in zip(codes.input, scales.input, strict=True)]

    def _integer(self, node: onnx.NodeProto, codes: str, scale: str) -> _Weight:
        """Codes are (in, out), or those of a table, turned."""
        made = self._made.get(codes)
        if made is not None and made.op_type == "Transpose":
            turned = [list(each.ints) for each in made.attribute if each.name == "perm"]
            if turned != [[1, 0]] or self._whence(scale) == scale:
                raise self._foreign(node, codes)
            codes, scale = made.input[0], self._whence(scale)
            rows, columns = self._shape(node, codes, 2)
            kind: Literal["channel", "kernel"] = "kernel"
        else:
            columns, rows = self._shape(node, codes, 2)
            kind = "channel"
        return self._weight(
            node, (codes, scale), None, (rows, columns), kind, bits=8, block=columns
        )

    def _shape(
        self, node: onnx.NodeProto, name: str, dimensions: int | None = None
    ) -> tuple[int, ...]:
        """The shape of stored codes. dimensions: how many; None: two or more.

        Raises:
            UnreadableInput: they are not stored, or have not as many.
        """
        shape = tuple(self._stored[name].dims) if name in self._stored else ()
        if len(shape) < 2 or (dimensions is not None and len(shape) != dimensions):
            raise self._foreign(node, name)
        return shape

    def _foreign(self, node: onnx.NodeProto, name: str) -> UnreadableInput:
        return UnreadableInput(
            f"{self._folder}: node {node.name!r} takes {name!r}, which is not a stored part of a "
            "quantized weight; write the artifact again"
        )

    def _weight(
        self,
        node: onnx.NodeProto,
        parts: tuple[str, str],
        zero: str | None,
        shape: tuple[int, int],
        kind: Literal["blocks", "blocked", "channel", "kernel"],
        *,
        bits: int,
        block: int,
    ) -> _Weight:
        codes, scale = parts
        missing = [
            each for each in (codes, scale, zero) if each is not None and each not in self._stored
        ]
        named = _CODES.fullmatch(codes)
        if missing or named is None:
            raise self._foreign(node, (missing or [codes])[0])
        if zero is not None and kind in {"channel", "kernel"}:
            raise self._foreign(node, zero)
        nbytes = sum(self._nbytes(each) for each in (codes, scale, zero) if each)
        grid = f"{'int' if zero is None else 'uint'}{bits}_"
        grid += "channel" if kind in {"channel", "kernel"} else f"g{block}"
        info = TensorInfo(name=named["weight"], shape=shape, dtype=grid, nbytes=nbytes)
        weight = _Weight(
            kind=kind, bits=bits, block=block, codes=codes, scale=scale, zero_point=zero, info=info
        )
        self._check_parts(weight)
        return weight

    def _check_parts(self, weight: _Weight) -> None:
        """The parts must be of the types and shapes that decoding goes by."""
        types, shapes = _TYPES_OF[weight.kind], _shapes(weight, self._stored[weight.codes].dims)
        names = (weight.codes, weight.scale, weight.zero_point)
        for name, kinds, shape in zip(names, types, shapes, strict=True):
            if name is not None:
                check_part(self._folder, self._stored[name], kinds, shape)

    def _infos(self) -> dict[str, TensorInfo]:
        parts = {p for w in self._weights.values() for p in (w.codes, w.scale, w.zero_point)}
        nodes = (node for node in self._model.graph.node if node.op_type == "QuantizeLinear")
        parts |= {name for node in nodes for name in node.input[1:]}  # what inputs are rounded with
        infos = [each.info for each in self._weights.values()]
        for name, tensor in self._stored.items():
            if name not in parts and external(tensor):
                infos.append(
                    TensorInfo(
                        name=name,
                        shape=tuple(tensor.dims),
                        dtype=_TYPES.get(tensor.data_type, "unknown"),
                        nbytes=self._nbytes(name),
                    )
                )
        return {info.name: info for info in sorted(infos, key=lambda info: info.name)}

    def _decode(self, weight: _Weight) -> np.ndarray[Any, Any]:
        """``scale * (code - zero_point)``: (out, in) float32, infinite where that overflows."""
        import numpy as np

        with np.errstate(over="ignore", invalid="ignore"):
            return self._decode_blocks(weight) if weight.kind == "blocks" else self._scaled(weight)

    def _scaled(self, weight: _Weight) -> np.ndarray[Any, Any]:
        codes: np.ndarray[Any, Any] = self._array(weight.codes).astype("float32")
        scale = self._array(weight.scale)
        if weight.kind == "kernel":
            codes = codes.reshape(weight.info.shape)
            codes *= scale.reshape(-1, 1)
            return codes
        if weight.kind == "blocked":
            scale = scale.repeat(weight.block, axis=0)
            if weight.zero_point:
                zero = self._array(weight.zero_point).astype("float32")
                codes -= zero.repeat(weight.block, axis=0)
        codes *= scale
        return codes.T

    def _decode_blocks(self, weight: _Weight) -> np.ndarray[Any, Any]:
        import numpy as np

        rows, columns = weight.info.shape
        groups = columns // weight.block
        codes = _unpacked(self._array(weight.codes).reshape(rows, -1), weight.bits)
        codes = codes.reshape(rows, groups, -1).astype("float32")
        if weight.zero_point:
            packed = self._array(weight.zero_point).reshape(rows, -1)
            zero = _unpacked(packed, weight.bits)[:, :groups].astype("float32")
        else:
            zero = np.full((rows, groups), 1 << (weight.bits - 1), dtype=np.float32)
        scale = self._array(weight.scale).reshape(rows, groups)
        codes -= zero[..., None]
        codes *= scale[..., None]
        values: np.ndarray[Any, Any] = codes.reshape(rows, columns)
        return values

    def _nbytes(self, name: str) -> int:
        return int(external(self._stored[name]).get("length", "0"))

    def _array(self, name: str) -> np.ndarray[Any, Any]:
        import onnx
        from onnx.external_data_helper import load_external_data_for_tensor
        from onnx.numpy_helper import to_array

        tensor = onnx.TensorProto()
        tensor.CopyFrom(self._stored[name])
        try:
            load_external_data_for_tensor(tensor, str(self._folder))
            return to_array(tensor)
        except (ValueError, TypeError, OSError, onnx.checker.ValidationError) as error:
            raise UnreadableInput(
                f"{self._folder}: tensor {name!r} cannot be read ({error}); write it again"
            ) from error


def _attributes(node: onnx.NodeProto) -> dict[str, int]:
    return {each.name: each.i for each in node.attribute}


def _shapes(weight: _Weight, codes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The shapes of codes, scales and zero-points.

    codes: the shape that the codes have
    """
    rows, columns = weight.info.shape
    groups = columns // weight.block if weight.block else 0
    if weight.kind == "blocks":
        size, packed = weight.block * weight.bits // 8, (groups * weight.bits + 7) // 8
        return (rows, groups, size), (rows, groups), (rows, packed)
    if weight.kind == "blocked":
        return (groups * weight.block, rows), (groups, rows), (groups, rows)
    if weight.kind == "channel":
        return (columns, rows), (rows,), ()
    return tuple(codes), (rows,) if len(codes) > 2 else (rows, 1), ()


def _unpacked(packed: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Codes of 8 or 4 bits, of which the low half of a byte comes first: (rows, codes) uint8."""
    import numpy as np

    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(packed.shape[0], -1)
