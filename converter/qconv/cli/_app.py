"""The command tree: which command is which function, and what ``qconv --help`` says."""

from __future__ import annotations

from typing import Annotated

import typer

from qconv._version import __version__

from ._output import write_line
from .calibrate import calibrate
from .compare import compare
from .convert import convert
from .fit import fit
from .inspect import inspect
from .plan import plan
from .plugins import plugins
from .report import merge
from .transcode import transcode
from .validate import validate

#: ``\\b`` keeps the lines of a paragraph of help as they are.
_EPILOG = """\b
Examples:
  qconv models/smollm2 --to gguf:q4_k_m -o out
  qconv plan models/smollm2 --to gguf:q4_k_m
  qconv plugins

'qconv MODEL ...' is short for 'qconv convert MODEL ...'."""


_HELP = {"help_option_names": ["-h", "--help"]}


def build_app() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        name="qconv",
        add_completion=False,
        rich_markup_mode=None,  # plain help answers in half the time
        pretty_exceptions_enable=False,
        context_settings=_HELP,
        subcommand_metavar="COMMAND [ARGS]...",
    )
    app.callback(epilog=_EPILOG)(_root)
    app.command("convert", epilog=_CONVERT, short_help="Write artifacts.")(convert)
    app.command("plan", epilog=_PLAN, short_help="Show what would be written.")(plan)
    app.command("calibrate", epilog=_CALIBRATE, short_help="Keep windows and statistics.")(
        calibrate
    )
    app.command("transcode", epilog=_TRANSCODE, short_help="Change the format, not the values.")(
        transcode
    )
    app.command("validate", epilog=_VALIDATE, short_help="Measure artifacts against their source.")(
        validate
    )
    app.command("compare", epilog=_COMPARE, short_help="See what artifacts write.")(compare)
    app.command("inspect", epilog=_INSPECT, short_help="Show what a file holds.")(inspect)
    app.command("fit", epilog=_FIT, short_help="Tell what fits a device's memory.")(fit)
    app.command("plugins", epilog=_PLUGINS, short_help="List methods, backends and sources.")(
        plugins
    )
    report = typer.Typer(rich_markup_mode=None, context_settings=_HELP)
    report.callback()(_report)
    report.command("merge", epilog=_MERGE, short_help="Join reports.")(merge)
    app.add_typer(report, name="report", short_help="Join reports that are written already.")
    return app


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - Typer's way to call
    if wanted:
        write_line(f"qconv {__version__}")
        raise typer.Exit


def _root(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Quantize a model checkpoint into files that real runtimes load."""


def _report() -> None:
    """Work with reports that 'qconv validate --report' wrote."""


_MERGE = """\b
Examples:
  qconv report merge q8/report.json q4/report.json -o report"""

_CONVERT = """\b
Examples:
  qconv models/smollm2 --to gguf:q4_k_m -o out
  qconv model.safetensors --to gguf:q8_0 --to gguf:q4_k_m --max-ram 8GiB
  qconv models/smollm2 --to gguf:q4_k_m --search ggml --json"""

_PLAN = """\b
Examples:
  qconv plan models/smollm2 --to gguf:q4_k_m
  qconv plan models/smollm2 --to gguf:q4_k_m --tensors
  qconv plan models/smollm2 --to gguf:q4_k_m --json"""

_CALIBRATE = """\b
Examples:
  qconv calibrate models/smollm2 -o calibration.safetensors
  qconv calibrate models/smollm2 -o c.safetensors --calibration docs/ --calibration builtin=0.3
  qconv calibrate models/smollm2 -o 1.safetensors --shard 1/2
  qconv calibrate models/smollm2 -o c.safetensors --add 1.safetensors --add 2.safetensors"""

_TRANSCODE = """\b
Examples:
  qconv transcode out/smollm2-int4 --to safetensors:gptq -o out
  qconv transcode out/smollm2-int4 --to safetensors:awq --json"""

_VALIDATE = """\b
Examples:
  qconv validate out/smollm2-Q4_K_M.gguf --against models/smollm2
  qconv validate out/smollm2-INT4 --against models/smollm2 --gate kl=0.05 --gate top1=90%
  qconv validate out/smollm2-Q8_0.gguf --against models/smollm2 --depth runtime --quick
  qconv validate gptq/smollm2-INT4 --baseline rtn/smollm2-INT4 --against models/smollm2

Gates, with limits of your own in place of the defaults: kl and kl_p99 (KL divergence in nats, mean
and 99th percentile), top1, top5 (shares), ppl (perplexity / the source's), rms (change of the true
token's probability), error (worst tensor), block (after the last), vram (e.g. 8GiB), beats (KL
divergence / the baseline's), agrees (distance from another artifact on the grid)."""

_COMPARE = """\b
Examples:
  qconv compare models/smollm2 out/smollm2-Q4_K_M.gguf --prompt "The capital of France is"
  qconv compare a.gguf b.gguf --prompt-file prompts.txt --tokens 128 --report report"""

_INSPECT = """\b
Examples:
  qconv inspect models/smollm2
  qconv inspect out/smollm2-Q4_K_M.gguf --no-values"""

_FIT = """\b
Examples:
  qconv fit models/smollm2 --vram 8GiB
  qconv fit models/smollm2 --vram 8GiB --context 32768 --to gguf:q4_k_m --cache q8_0
  qconv fit out/smollm2-Q4_K_M.gguf --vram 8GiB --json"""

_PLUGINS = """\b
Examples:
  qconv plugins
  QCONV_DISABLE_PLUGINS='*' qconv plugins"""
