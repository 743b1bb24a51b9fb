"""Words and caps that the readers of untrusted files share."""

from __future__ import annotations

from pathlib import Path

from qconv.errors import UnreadableInput

#: The most bytes a header may take. The safetensors library has the same cap; the largest GGUF
#: vocabularies need about a fifth of it.
MAX_HEADER_NBYTES = 100_000_000

#: Sizes and products of sizes stay below this, as in every runtime (int64).
MAX_SIZE = 2**63

_SHOWN = 80


def shown(value: object) -> str:
    """A value from a file, fit for one line of an error: escaped, and cut when long."""
    text = repr(value[: _SHOWN + 1] if isinstance(value, (str, bytes, list, tuple)) else value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def check_tensor_name(path: Path, name: str) -> None:
    """Refuse names that cannot be printed or encoded: they would garble terminals and artifacts.

    Raises:
        UnreadableInput: the name is empty or holds control characters or lone surrogates.
    """
    if not name or not name.isprintable():
        raise UnreadableInput(
            f"{path}: tensor name {shown(name)} must be printable text; "
            "the file is damaged or hostile, get it anew from its publisher"
        )


def number_of_values(path: Path, name: str, shape: tuple[int, ...]) -> int:
    """The product of a shape whose sizes are known to be integers of at least 0.

    Raises:
        UnreadableInput: the product, or the strides of an empty shape, would overflow int64.
    """
    strides = 1
    for size in shape:
        strides *= max(size, 1)
        if strides >= MAX_SIZE:
            raise UnreadableInput(
                f"{path}: tensor {shown(name)}: shape {shown(shape)} holds 2^63 values or more; "
                "the file is damaged or hostile, get it anew from its publisher"
            )
    return 0 if 0 in shape else strides
