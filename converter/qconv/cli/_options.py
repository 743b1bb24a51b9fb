"""The options that commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer


class Search(str, Enum):
    """How grids are fitted."""

    default = "default"
    ggml = "ggml"


Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="Hugging Face folder, .safetensors file or index, or .gguf file.",
    ),
]
To = Annotated[
    list[str],
    typer.Option(
        "--to",
        metavar="TARGET",
        show_default=False,
        help="What to write, as backend:format, e.g. gguf:q4_k_m; repeat it to write several in "
        "one pass. 'qconv plugins' lists all.",
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where artifacts go.")]
Method = Annotated[str, typer.Option("--method", metavar="NAME", help="How weights are rounded.")]
SearchOption = Annotated[
    Search,
    typer.Option("--search", help="How scales are found; ggml gives llama.cpp's bytes."),
]
MaxFallback = Annotated[
    Optional[str],  # noqa: UP045 - read at run time, also on Python 3.10
    typer.Option(
        "--max-fallback",
        metavar="SHARE",
        help="Fail if more of the weights than this, e.g. 5%, need another type for their shape.",
    ),
]
AllowUnused = Annotated[
    bool,
    typer.Option("--allow-unused", help="Leave out tensors the format has no place for."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace artifacts that exist.")]
Threads = Annotated[
    Optional[int],  # noqa: UP045 - read at run time, also on Python 3.10
    typer.Option("--threads", metavar="N", min=1, help="Workers; by default one per core."),
]
MaxRam = Annotated[
    Optional[str],  # noqa: UP045 - read at run time, also on Python 3.10
    typer.Option("--max-ram", metavar="SIZE", help="Memory to stay below, e.g. 800MB or 8GiB."),
]
Tensors = Annotated[
    bool, typer.Option("--tensors", help="List every tensor instead of alike ones together.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
