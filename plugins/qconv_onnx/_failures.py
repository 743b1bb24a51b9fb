"""What torch's exporter says when it fails, in one line: which operator, in which module."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any

#: ``No ONNX function found for <OpOverload(op='aten._linalg_eigh', overload='default')>``
_OPERATOR = re.compile(r"No ONNX function found for <OpOverload\(op='(?P<name>[^']+)'")

#: ``File "/site-packages/transformers/models/x/modeling_x.py", line 9, in forward``
_LINE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<where>\w+)')


def summary(error: BaseException, program: Callable[[], Any]) -> str:
    """Why an export failed.

    program: makes torch's program of the model, to find an operator's module in; it may fail, too
    """
    for each in _causes(error):
        match = _OPERATOR.search(str(each))
        if match:
            return f"torch has no ONNX for operator {match['name']}{_place(match['name'], program)}"
    last = list(_causes(error))[-1]
    reason = next((line.strip() for line in str(last).splitlines() if line.strip()), "no reason")
    return f"{type(last).__name__}: {reason}{_line(str(last))}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and what each was raised from, the innermost last."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _line(text: str) -> str:
    """The line of the model's code that a trace in ``text`` ends in."""
    found = list(_LINE.finditer(text))
    if not found:
        return ""
    file, line, where = found[-1]["file"], found[-1]["line"], found[-1]["where"]
    return f" ({PurePath(file).name}, line {line}, in {where})"


def _place(operator: str, program: Callable[[], Any]) -> str:
    """The module that calls an operator, and how many others do."""
    try:
        nodes = program().run_decompositions().graph.nodes  # as ONNX is looked for
    except Exception:  # noqa: BLE001 -- the exporter failed before: its first error is the one to tell
        return ""
    modules = [_module(node) for node in nodes if str(node.target).startswith(f"{operator}.")]
    known = list(dict.fromkeys(each for each in modules if each))
    if not known:
        return ""
    more = f" and {len(known) - 1} more modules" if len(known) > 1 else ""
    return f", which {known[0]}{more} calls"


def _module(node: Any) -> str:  # noqa: ANN401 -- a node of torch.fx
    """``layers.0.attention (Attention)``; empty where it is unknown."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return ""
    path, kind = stack[-1]
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", "module")
    return f"{str(path).removeprefix('model.')} ({name.rpartition('.')[2]})"
