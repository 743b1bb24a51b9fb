"""The tensor types of ggml, and the file types (mixtures) that llama.cpp builds from them.

Numbers and sizes: ``ggml_type`` in ``ggml/include/ggml.h``, blocks in ``ggml/src/ggml-common.h``
and ``llama_ftype`` in ``include/llama.h`` of https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

from qconv.errors import Unsupported

#: Type name -> (number, weights per block, bytes per block).
_TYPES = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q8_1": (9, 32, 40),
    "Q2_K": (10, 256, 84),
    "Q3_K": (11, 256, 110),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "Q8_K": (15, 256, 292),
    "IQ2_XXS": (16, 256, 66),
    "IQ2_XS": (17, 256, 74),
    "IQ3_XXS": (18, 256, 98),
    "IQ1_S": (19, 256, 50),
    "IQ4_NL": (20, 32, 18),
    "IQ3_S": (21, 256, 110),
    "IQ2_S": (22, 256, 82),
    "IQ4_XS": (23, 256, 136),
    "I8": (24, 1, 1),
    "I16": (25, 1, 2),
    "I32": (26, 1, 4),
    "I64": (27, 1, 8),
    "F64": (28, 1, 8),
    "IQ1_M": (29, 256, 56),
    "BF16": (30, 1, 2),
    "TQ1_0": (34, 256, 54),
    "TQ2_0": (35, 256, 66),
    "MXFP4": (39, 32, 17),
    "NVFP4": (40, 64, 36),
    "Q1_0": (41, 128, 18),
}

#: Floats that tensors may be cast to, and torch's names of them.
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

#: Types whose blocks span 256 weights, and so need rows divisible by 256.
SUPER_BLOCKS = frozenset({"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"})


@dataclass(frozen=True, slots=True, kw_only=True)
class GgmlType:
    """A tensor type. block: weights per block; nbytes: bytes per block."""

    name: str
    number: int
    block: int
    nbytes: int

    def row_nbytes(self, columns: int) -> int:
        """Bytes of a row of ``columns`` weights, a multiple of the block."""
        return columns // self.block * self.nbytes


def ggml_type(name: str) -> GgmlType:
    """The type called ``name``.

    Raises:
        Unsupported: no such type is known.
    """
    if name not in _TYPES:
        raise Unsupported(
            f"tensor type {name!r} is not one of ggml's: {', '.join(_TYPES)}; "
            "update qconv or requantize the source with llama.cpp"
        )
    number, block, nbytes = _TYPES[name]
    return GgmlType(name=name, number=number, block=block, nbytes=nbytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileType:
    """A mixture. number: ``general.file_type``; base: the type of most tensors."""

    name: str
    number: int
    base: str


#: Mixture name -> (``llama_ftype`` number, base type).
_FILE_TYPES = {
    "F32": (0, "F32"),
    "F16": (1, "F16"),
    "Q4_0": (2, "Q4_0"),
    "Q4_1": (3, "Q4_1"),
    "Q8_0": (7, "Q8_0"),
    "Q5_0": (8, "Q5_0"),
    "Q5_1": (9, "Q5_1"),
    "Q2_K": (10, "Q2_K"),
    "Q3_K_S": (11, "Q3_K"),
    "Q3_K_M": (12, "Q3_K"),
    "Q3_K_L": (13, "Q3_K"),
    "Q4_K_S": (14, "Q4_K"),
    "Q4_K_M": (15, "Q4_K"),
    "Q5_K_S": (16, "Q5_K"),
    "Q5_K_M": (17, "Q5_K"),
    "Q6_K": (18, "Q6_K"),
    "BF16": (32, "BF16"),
}


def file_type(format_name: str) -> FileType:
    """The mixture that a format of the backend names; case, ``_`` and ``-`` do not count.

    Raises:
        Unsupported: the backend has no such format.
    """
    wanted = _plain(format_name)
    for name, (number, base) in _FILE_TYPES.items():
        if _plain(name) == wanted:
            return FileType(name=name, number=number, base=base)
    known = ", ".join(name.lower() for name in _FILE_TYPES)
    raise Unsupported(f"gguf has no format {format_name!r}; choose one of {known}")


def is_file_type(name: str) -> bool:
    """Whether ``name`` is a mixture's, so that a file name that ends in it tells a type."""
    return _plain(name) in {_plain(known) for known in _FILE_TYPES}


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
