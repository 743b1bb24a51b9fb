"""A quantized matrix: a grid, the codes on it, and what turns codes into values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qconv.errors import UnsupportedGrid, UsageError

if TYPE_CHECKING:
    import torch

    from qconv.grids import ActivationGrid, Grid


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantTensor:
    """A quantized linear weight, checked against its grid when built.

    Row operations commute with :meth:`dequantize`; they need a grid whose rows are independent.
    Nothing is modified: every operation gives a new tensor, which may share memory with the old.

    codes: (rows, columns), one byte each
    parameters: by name, shapes and dtypes as ``grid.layout(shape)`` states; on the codes' device
    activation: how the runtime quantizes the weight's input; None when it does not
    activation_parameters: what is static of it, as ``activation.layout()`` states: nothing when
        the runtime finds it as it goes; on the codes' device

    Raises:
        UnsupportedGrid: codes or parameters are not what the grid lays out.
    """

    grid: Grid
    codes: torch.Tensor
    parameters: Mapping[str, torch.Tensor]
    activation: ActivationGrid | None = None
    activation_parameters: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("parameters", "activation_parameters"):
            object.__setattr__(self, name, dict(getattr(self, name)))
        if self.codes.dim() != 2:
            raise UnsupportedGrid(
                f"codes for grid {self.grid.name} have shape {tuple(self.codes.shape)}; "
                "they must be (rows, columns): flatten leading dimensions into rows"
            )
        _check_layout(self)
        _check_activation(self)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def device(self) -> torch.device:
        """Where codes and parameters lie."""
        return self.codes.device

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight as the format stores them, parameters included."""
        return self.grid.bits_per_weight(self.shape)

    def dequantize(self) -> torch.Tensor:
        """The values a runtime computes: (rows, columns) float32."""
        return self.grid.decode(self.codes, self.parameters)

    def take_rows(self, index: Sequence[int] | torch.Tensor) -> QuantTensor:
        """Row ``index[i]`` as row ``i``; rows may repeat or be left out.

        Raises:
            UnsupportedGrid: the grid's rows share parameters.
            UsageError: an index is not a row.
        """
        import torch

        _need_independent_rows(self.grid, "taken")
        rows = torch.as_tensor(index, dtype=torch.int64, device=self.device)
        if rows.dim() != 1 or not len(rows):
            raise UsageError(
                f"take_rows got an index of shape {tuple(rows.shape)}; pass at least one row number"
            )
        low, high = (int(extreme) for extreme in torch.aminmax(rows))
        if low < 0 or high >= self.shape[0]:
            raise UsageError(
                f"take_rows got rows {low} to {high} of a tensor with {self.shape[0]} rows; "
                f"pass row numbers from 0 to {self.shape[0] - 1}"
            )
        return replace(
            self,
            codes=self.codes[rows],
            parameters={name: value[rows] for name, value in self.parameters.items()},
        )

    def split_rows(self, sizes: Sequence[int]) -> tuple[QuantTensor, ...]:
        """Consecutive parts of ``sizes`` rows each, sharing memory with this tensor.

        Raises:
            UnsupportedGrid: the grid's rows share parameters.
            UsageError: the sizes do not add up to the rows.
        """
        _need_independent_rows(self.grid, "split")
        if sum(sizes) != self.shape[0] or not sizes or min(sizes) < 1:
            raise UsageError(
                f"split_rows got sizes {list(sizes)} for {self.shape[0]} rows; "
                "pass positive sizes that add up to the rows"
            )
        parts = []
        start = 0
        for size in sizes:
            parts.append(self._slice(start, start + size))
            start += size
        return tuple(parts)

    @classmethod
    def stack(cls, parts: Iterable[QuantTensor]) -> QuantTensor:
        """The rows of ``parts``, one after the other; equal grids, inputs, columns and devices.

        Raises:
            UnsupportedGrid: the grid's rows share parameters, or the parts do not fit together.
        """
        import torch

        parts = tuple(parts)
        if not parts:
            raise UsageError("stack got no tensors; pass at least one")
        first = parts[0]
        _need_independent_rows(first.grid, "stacked")
        for number, part in enumerate(parts[1:], start=2):
            _check_stackable(first, part, number)
        return replace(
            first,
            codes=torch.cat([part.codes for part in parts]),
            parameters={
                name: torch.cat([part.parameters[name] for part in parts])
                for name in first.parameters
            },
        )

    def to(self, device: torch.device | str) -> QuantTensor:
        """The same tensor on ``device``."""
        return replace(
            self,
            codes=self.codes.to(device),
            parameters=_moved(self.parameters, device),
            activation_parameters=_moved(self.activation_parameters, device),
        )

    def same(self, other: QuantTensor) -> bool:
        """True when grids, codes and parameters are equal, bit for bit, on whichever device."""
        import torch

        if self.grid != other.grid or self.shape != other.shape:
            return False
        if not torch.equal(self.codes.cpu(), other.codes.cpu()):
            return False
        return _equal(self.parameters, other.parameters) and _same_input(self, other)

    def with_activation(
        self, activation: ActivationGrid | None, parameters: Mapping[str, torch.Tensor]
    ) -> QuantTensor:
        """The same weight for an input that the runtime quantizes as ``activation`` says.

        parameters: ``activation.fit_range`` of the input

        Raises:
            UnsupportedGrid: the parameters are not what ``activation`` lays out.
        """
        return replace(self, activation=activation, activation_parameters=parameters)

    def _slice(self, start: int, stop: int) -> QuantTensor:
        return replace(
            self,
            codes=self.codes[start:stop],
            parameters={name: value[start:stop] for name, value in self.parameters.items()},
        )


def _need_independent_rows(grid: Grid, done: str) -> None:
    if not grid.rows_independent:
        raise UnsupportedGrid(
            f"grid {grid.name}: rows share parameters, so they cannot be {done}; "
            "use a grid with parameters per row (per channel or per group)"
        )


def _check_layout(tensor: QuantTensor) -> None:
    layout = tensor.grid.layout(tensor.shape)
    found = {"codes": tensor.codes, **tensor.parameters}
    if "codes" in tensor.parameters or found.keys() != layout.keys():
        raise UnsupportedGrid(
            f"grid {tensor.grid.name} has parameters {sorted(layout.keys() - {'codes'})}, "
            f"got {sorted(tensor.parameters)}; pass what grid.fit returns"
        )
    for name, (shape, dtype) in layout.items():
        value = found[name]
        if tuple(value.shape) != tuple(shape) or str(value.dtype) != f"torch.{dtype}":
            raise UnsupportedGrid(
                f"grid {tensor.grid.name}: {name} is {_describe(value)}, but a tensor of shape "
                f"{tensor.shape} needs {tuple(shape)} {dtype}; pass what grid.quantize returns"
            )
        if value.device != tensor.codes.device:
            raise UnsupportedGrid(
                f"grid {tensor.grid.name}: {name} is on {value.device}, codes on "
                f"{tensor.codes.device}; move both to one device"
            )


def _check_activation(tensor: QuantTensor) -> None:
    activation, found = tensor.activation, tensor.activation_parameters
    layout = {} if activation is None else activation.layout()
    name = "none" if activation is None else activation.name
    if found.keys() != layout.keys():
        raise UnsupportedGrid(
            f"activation grid {name} has parameters {sorted(layout)}, got {sorted(found)}; "
            "pass what activation.fit_range returns"
        )
    for part, (shape, dtype) in layout.items():
        value = found[part]
        if tuple(value.shape) != shape or str(value.dtype) != f"torch.{dtype}":
            raise UnsupportedGrid(
                f"activation grid {name}: {part} is {_describe(value)}, but must be {shape} "
                f"{dtype}; pass what activation.fit_range returns"
            )
        if value.device != tensor.codes.device:
            raise UnsupportedGrid(
                f"activation grid {name}: {part} is on {value.device}, codes on "
                f"{tensor.codes.device}; move both to one device"
            )


def _check_stackable(first: QuantTensor, part: QuantTensor, number: int) -> None:
    if part.grid != first.grid:
        raise UnsupportedGrid(
            f"cannot stack tensor {number} on grid {part.grid.name} {dict(part.grid.spec())} "
            f"below grid {first.grid.name} {dict(first.grid.spec())}; quantize them onto one grid"
        )
    if not _same_input(first, part):
        raise UnsupportedGrid(
            f"cannot stack tensor {number} with input {_describe_input(part)} below one with input "
            f"{_describe_input(first)}; stack tensors that share their input and its scale"
        )
    if part.shape[1] != first.shape[1]:
        raise UnsupportedGrid(
            f"cannot stack tensor {number} with {part.shape[1]} columns below {first.shape[1]} "
            "columns; stack tensors with the same inputs"
        )
    if part.device != first.device:
        raise UnsupportedGrid(
            f"cannot stack tensor {number} on {part.device} below one on {first.device}; "
            "move them to one device first"
        )


def _describe(value: torch.Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _describe_input(tensor: QuantTensor) -> str:
    if tensor.activation is None:
        return "as it is"
    static = {name: value.tolist() for name, value in tensor.activation_parameters.items()}
    return f"{tensor.activation.name} {static}" if static else tensor.activation.name


def _same_input(first: QuantTensor, other: QuantTensor) -> bool:
    return first.activation == other.activation and _equal(
        first.activation_parameters, other.activation_parameters
    )


def _equal(mine: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> bool:
    """True when tensors of the same names are equal, bit for bit."""
    import torch

    return all(torch.equal(_bytes(value), _bytes(theirs[name])) for name, value in mine.items())


def _moved(
    tensors: Mapping[str, torch.Tensor], device: torch.device | str
) -> dict[str, torch.Tensor]:
    return {name: value.to(device) for name, value in tensors.items()}


def _bytes(value: torch.Tensor) -> torch.Tensor:
    import torch

    # Bytes tell -0.0 from 0.0, and a NaN equals itself.
    return value.detach().cpu().contiguous().view(torch.uint8)
