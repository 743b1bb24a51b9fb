"""How a runtime quantizes the input of a linear layer, for formats that compute in integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from qconv.errors import UsageError
from qconv.grids._checks import check_choice, from_options

Scope = Literal["token", "tensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationGrid:
    """Evenly spaced values of an activation.

    bits: 2 to 8
    symmetric: no zero-point
    scope: ``token``: one scale per row; ``tensor``: one for all
    dynamic: the runtime finds the scale as it goes; otherwise calibration states it beforehand
    """

    bits: int = 8
    symmetric: bool = True
    scope: Scope = "token"
    dynamic: bool = True

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not 2 <= self.bits <= 8:
            raise UsageError(
                f"activation grid: bits is {self.bits!r}; choose a whole number from 2 to 8"
            )
        check_choice("activation grid", "scope", self.scope, get_args(Scope))
        if not self.dynamic and self.scope == "token":
            raise UsageError(
                "activation grid: a scale per token cannot be static, as tokens are not known "
                "beforehand; choose scope 'tensor' or dynamic"
            )

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> ActivationGrid:
        """The grid that :meth:`spec` describes.

        Raises:
            UsageError: an option is missing, unknown or out of range.
        """
        return from_options(cls, "activation grid", ", ".join(cls.__dataclass_fields__), spec)

    def spec(self) -> Mapping[str, Any]:
        """JSON-able description, the input of :meth:`from_spec`."""
        return {"family": "activation", **asdict(self)}
