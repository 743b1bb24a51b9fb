"""Lets artifacts speak one after the other, each in a process of its own, and holds them together.

Memory: that of the largest artifact in its engine, in its process; nothing of it here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qconv._version import __version__
from qconv.comparison._results import Answer, ArtifactSpoken, Comparison
from qconv.engines import check_device
from qconv.errors import UsageError

#: Told of every artifact when its turn comes: its name, its number from 0, and how many there are.
Progress = Callable[[str, int, int], None]


def compare(
    artifacts: Sequence[str | Path],
    *,
    prompts: Sequence[str],
    tokens: int = 64,
    chat: bool = False,
    device: str = "auto",
    command: str = "",
    progress: Progress | None = None,
) -> Comparison:
    """Let every artifact go on with every prompt, the likeliest token each time.

    artifacts: GGUF files, checkpoints and ONNX folders, float or quantized; the first is what the
        others are held to
    tokens: the most to write after each prompt
    chat: prompts are messages of a user, written as each artifact's own chat template does
    device: what engines compute on: ``cpu``, ``cuda``, ``cuda:n``; ``auto``: what each does best
    command: kept in the result, to repeat it

    Raises:
        UsageError: there is nothing to compare, or nothing to say; or a device that is none.
        UnreadableInput: a path is no artifact.
    """
    from qconv._host import load_plugins

    paths = [Path(each) for each in artifacts]
    _check(paths, prompts, tokens)
    check_device(device)
    host = load_plugins()
    for path in paths:
        host.backend_of(path)  # a wrong path is told before anything runs for minutes
    names = _names(paths)
    spoken = []
    for number, (path, name) in enumerate(zip(paths, names, strict=True)):
        if progress is not None:
            progress(name, number, len(paths))
        asked = {"prompts": list(prompts), "tokens": tokens, "chat": chat, "device": device}
        spoken.append(_spoken({"path": str(path.resolve()), **asked}))
    return Comparison(
        qconv_version=__version__,
        prompts=tuple(prompts),
        tokens=tokens,
        chat=chat,
        artifacts=_held_together(paths, names, spoken),
        command=command,
    )


def _check(paths: Sequence[Path], prompts: Sequence[str], tokens: int) -> None:
    if not paths:
        raise UsageError("nothing to compare; name two artifacts or more")
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise UsageError("a prompt is missing or blank; give text to go on with, e.g. --prompt Hi")
    if tokens < 1:
        raise UsageError(f"tokens is {tokens}, but at least 1 must be written")


def _names(paths: Sequence[Path]) -> list[str]:
    """Base names, with as much of the path as tells them apart."""
    found = [path.resolve() for path in paths]
    names = [path.name for path in found]
    count = Counter(names)
    return [
        name if count[name] == 1 else str(given) for name, given in zip(names, paths, strict=True)
    ]


def _spoken(request: dict[str, Any]) -> dict[str, Any]:
    """What came of one artifact: the worker's answer, or the reason why there is none."""
    done = subprocess.run(
        [sys.executable, "-m", "qconv.comparison._worker"],
        input=json.dumps(request).encode(),
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONSAFEPATH": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return {"reason": _crash(done)}
    return answer


def _crash(done: subprocess.CompletedProcess[bytes]) -> str:
    """Why a worker gave no answer."""
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    last = f": {said[-1][:300]}" if said else ""
    if done.returncode >= 0:
        return f"the engine's process ended with exit code {done.returncode}{last}"
    try:
        name = signal.Signals(-done.returncode).name
    except ValueError:
        name = str(-done.returncode)
    memory = "; out of memory is the usual cause" if name == "SIGKILL" else ""
    return f"the engine's process was ended by {name}{memory}{last}"


def _held_together(
    paths: Sequence[Path], names: Sequence[str], spoken: Sequence[dict[str, Any]]
) -> tuple[ArtifactSpoken, ...]:
    first = next((each["answers"] for each in spoken if "answers" in each), ())
    made = []
    for path, name, each in zip(paths, names, spoken, strict=True):
        answers = each.get("answers", ())
        made.append(
            ArtifactSpoken(
                name=name,
                nbytes=_nbytes(path),
                engine=each.get("engine"),
                version=each.get("version"),
                device=each.get("device"),
                load_seconds=each.get("load_seconds"),
                start_bytes=each.get("start_bytes"),
                peak_bytes=each.get("peak_bytes"),
                answers=tuple(map(_answer, answers, first)),
                reason=each.get("reason"),
            )
        )
    return tuple(made)


def _answer(answer: dict[str, Any], first: dict[str, Any]) -> Answer:
    alike = answer["prompt_ids"] == first["prompt_ids"]
    at = _first_difference(answer["ids"], first["ids"])
    return Answer(
        text=answer["text"],
        tokens=len(answer["ids"]),
        prompt_tokens=len(answer["prompt_ids"]),
        seconds=answer["seconds"],
        tokenized_alike=alike,
        parts_at=at,
        parts_at_character=None if at is None else [*answer["begins"], len(answer["text"])][at],
    )


def _first_difference(ids: Sequence[int], first: Sequence[int]) -> int | None:
    """Where two texts part; one that merely ends earlier parts at its end."""
    for at, (mine, theirs) in enumerate(zip(ids, first, strict=False)):
        if mine != theirs:
            return at
    return None if len(ids) == len(first) else min(len(ids), len(first))


def _nbytes(path: Path) -> int:
    """Of a file, or of all files in a folder, whatever lies deeper."""
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
