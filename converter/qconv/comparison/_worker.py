"""The process that one artifact speaks in: a request on stdin, what came of it on stdout.

It is a process of its own so that memory is this artifact's alone, and a crash of the engine ends
nothing else.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qconv.plugin import Runtime

#: Special tokens that a tokenizer may put around a prompt, generously.
_AROUND = 16
#: What a chat template may put around a message: a system prompt, mostly.
_TEMPLATE = 1024


def main() -> None:
    """Answer one request."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not get between
    request = json.loads(sys.stdin.read())
    with answer:
        json.dump(_answered(request), answer)


def _answered(request: dict[str, Any]) -> dict[str, Any]:
    from qconv.errors import QconvError

    try:
        return _speak(_Request(**request))
    except QconvError as error:
        return {"reason": str(error)}
    except MemoryError:
        return {"reason": "out of memory; close other programs, or use a smaller artifact"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What one artifact is asked. chat: prompts are messages of a user."""

    path: str
    prompts: list[str]
    tokens: int
    chat: bool
    device: str


def _speak(request: _Request) -> dict[str, Any]:
    import torch  # noqa: F401 - every engine hands over torch tensors: part of the start

    from qconv._host import load_plugins

    longest = max(len(prompt.encode()) for prompt in request.prompts)  # a token: a byte at least
    around = _TEMPLATE if request.chat else _AROUND
    host = load_plugins()
    start, began = _memory("VmRSS"), time.perf_counter()
    context = longest + request.tokens + around
    with host.runtime(Path(request.path), context, request.device) as runtime:
        loaded = time.perf_counter() - began
        read = runtime.converse if request.chat else runtime.tokenize
        answers = [_answer(runtime, read(prompt), request.tokens) for prompt in request.prompts]
        return {
            "engine": runtime.engine,
            "version": runtime.version,
            "device": runtime.device,
            "load_seconds": loaded,
            "start_bytes": start,
            "peak_bytes": _memory("VmHWM"),
            "answers": answers,
        }


def _answer(runtime: Runtime, ids: list[int], tokens: int) -> dict[str, Any]:
    began = time.perf_counter()
    made = runtime.generate(ids, tokens)
    seconds = time.perf_counter() - began
    return {
        "prompt_ids": ids,
        "ids": made,
        "text": runtime.detokenize(made),
        "begins": [len(runtime.detokenize(made[:count])) for count in range(len(made))],
        "seconds": seconds,
    }


def _memory(field: str) -> int | None:
    """Bytes of this process by the kernel's own name; None where there is no such kernel.

    Not ``ru_maxrss``: after fork and exec it still counts the parent.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(rf"^{field}:\s*(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


if __name__ == "__main__":
    main()
