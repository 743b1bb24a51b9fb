"""What a comparison found: frozen records. Sizes in bytes, times in seconds; None: unmeasured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one model writes after one prompt, the likeliest token each time.

    text: without the prompt
    tokens: how many it wrote
    prompt_tokens: how many its tokenizer makes of the prompt
    seconds: from the prompt's first token to the last one written
    tokenized_alike: the prompt has the token ids that it has for the first model
    parts_at: number, from 0, of the first token that is not the first model's; None: all are
    parts_at_character: where in ``text`` that token begins; None as ``parts_at``
    """

    text: str
    tokens: int
    prompt_tokens: int
    seconds: float
    tokenized_alike: bool = True
    parts_at: int | None = None
    parts_at_character: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactSpoken:
    """One artifact, in a process of its own.

    name: tells it apart from the others: its base name, or more of its path
    nbytes: of its files
    engine: ``llama.cpp``; None where none could be loaded
    device: where it computed: ``cpu``, ``cuda:0``
    load_seconds: until the engine was ready, imports of its libraries included
    start_bytes: memory of the process before that
    peak_bytes: the most memory of the host that the process held, weights mapped from the file
        included
    answers: one for each prompt; none where ``reason`` says why
    reason: why it did not speak; None when it did
    """

    name: str
    nbytes: int
    engine: str | None = None
    version: str | None = None
    device: str | None = None
    load_seconds: float | None = None
    start_bytes: int | None = None
    peak_bytes: int | None = None
    answers: tuple[Answer, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Artifacts side by side; the first that spoke is what the others are held to.

    tokens: the most that were asked for
    chat: prompts are messages of a user, written as each artifact's own chat template does
    command: the command line that repeats it
    """

    qconv_version: str
    prompts: tuple[str, ...]
    tokens: int
    chat: bool = False
    artifacts: tuple[ArtifactSpoken, ...]
    command: str

    @property
    def unmeasured(self) -> tuple[ArtifactSpoken, ...]:
        """Those that did not speak."""
        return tuple(each for each in self.artifacts if each.reason is not None)

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON-able data."""
        return asdict(self)
