"""Comparisons made up for tests."""

from __future__ import annotations

from typing import Any

from qconv.comparison import Answer, ArtifactSpoken, Comparison


def answer(text: str = " Paris, a city.", at: int | None = None, **changes: Any) -> Answer:
    values: dict[str, Any] = {
        "tokens": 6,
        "prompt_tokens": 5,
        "seconds": 0.5,
        "parts_at": None if at is None else 3,
        "parts_at_character": at,
    }
    return Answer(text=text, **{**values, **changes})


def spoken(name: str = "toy", *answers: Answer, **changes: Any) -> ArtifactSpoken:
    values: dict[str, Any] = {
        "nbytes": 200_000_000,
        "engine": "llama.cpp",
        "version": "1.2",
        "load_seconds": 1.5,
        "start_bytes": 200_000_000,
        "peak_bytes": 450_000_000,
    }
    return ArtifactSpoken(name=name, answers=answers or (answer(),), **{**values, **changes})


def silent(name: str = "silent", reason: str = "no engine: pip install it") -> ArtifactSpoken:
    return ArtifactSpoken(name=name, nbytes=1000, reason=reason)


def comparison(
    *artifacts: ArtifactSpoken, prompts: tuple[str, ...] = ("The capital",)
) -> Comparison:
    return Comparison(
        qconv_version="0.1.0",
        prompts=prompts,
        tokens=24,
        artifacts=artifacts,
        command="qconv compare toy other --prompt 'The capital'",
    )
