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


class Sampling(str, Enum):
    """Which windows are taken."""

    random = "random"
    diverse = "diverse"
    length = "length"
    perplexity = "perplexity"


class StatisticsFrom(str, Enum):
    """Which model statistics are taken from."""

    shared = "shared"
    sequential = "sequential"


class Dtypes(str, Enum):
    """What a forward pass computes in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="Hugging Face folder, .safetensors file or index, .gguf or .onnx file.",
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
Method = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="CHAIN",
        help="How weights are prepared and rounded: rtn, gptq, awq, or steps such as awq,gptq; "
        "options follow their step: gptq,damp=0.05.",
    ),
]
CalibrationSources = Annotated[
    Optional[list[str]],  # noqa: UP045 - read at run time, also on Python 3.10
    typer.Option(
        "--calibration",
        metavar="SOURCE",
        show_default=False,
        help="Text to calibrate on: builtin (the default where a method needs some), self (the "
        "model writes it), a .txt, .jsonl or .parquet file, a folder, or a file that 'qconv "
        "calibrate' wrote; repeat it to mix, SOURCE=0.3 for its share.",
    ),
]
Windows = Annotated[
    int, typer.Option("--windows", metavar="N", min=1, help="How many windows of text to run.")
]
WindowLength = Annotated[
    int, typer.Option("--window-length", metavar="TOKENS", min=2, help="Tokens of a window.")
]
SamplingOption = Annotated[
    Sampling, typer.Option("--sampling", help="Which windows are taken when the text gives more.")
]
NoPacking = Annotated[
    bool, typer.Option("--no-packing", help="One document per window, instead of full windows.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of every random choice.")]
MinTokensPerExpert = Annotated[
    Optional[int],  # noqa: UP045 - read at run time, also on Python 3.10
    typer.Option(
        "--min-tokens-per-expert",
        metavar="N",
        min=1,
        help="Fail if an expert of a mixture sees fewer tokens than this.",
    ),
]
StatisticsOption = Annotated[
    Optional[StatisticsFrom],  # noqa: UP045 - read at run time, also on Python 3.10
    typer.Option(
        "--statistics",
        show_default=False,
        help="Take statistics from the float model once (shared), or for each target from the "
        "blocks already quantized (sequential).",
    ),
]
Device = Annotated[
    str, typer.Option("--device", metavar="NAME", help="What runs the model: auto, cpu, cuda[:n].")
]
Dtype = Annotated[
    Dtypes, typer.Option("--dtype", help="What the model is run in; weights are kept in float32.")
]
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
NoResume = Annotated[
    bool, typer.Option("--no-resume", help="Start over, even if an earlier run left a part.")
]
Threads = Annotated[
    Optional[int],  # noqa: UP045 - read at run time, also on Python 3.10
    typer.Option("--threads", metavar="N", min=1, help="Workers; by default one per core."),
]
MaxRam = Annotated[
    Optional[str],  # noqa: UP045 - read at run time, also on Python 3.10
    typer.Option("--max-ram", metavar="SIZE", help="Memory to stay below, e.g. 800MB or 8GiB."),
]
NoValidate = Annotated[
    bool,
    typer.Option(
        "--no-validate", help="Do not read artifacts back and check them before they get a name."
    ),
]
Tensors = Annotated[
    bool, typer.Option("--tensors", help="List every tensor instead of alike ones together.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
ErrorReport = Annotated[
    Optional[Path],  # noqa: UP045 - read at run time, also on Python 3.10
    typer.Option(
        "--report",
        metavar="DIR",
        show_default=False,
        help="Keep the whole of an error in DIR/error.txt, such as what torch says of a model "
        "that it cannot export.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
