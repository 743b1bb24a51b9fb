"""onnxruntime as the runtime of a decoder's graph."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconv.engines import TokenizedRuntime
from qconv.errors import BrokenPlugin, UnreadableInput, Unsupported

from ._session import device_of, open_session

if TYPE_CHECKING:
    import numpy as np
    import torch

_GRAPH = "model.onnx"
_PAST, _PRESENT = "past_key_values.", "present."


class OnnxRuntime(TokenizedRuntime):
    """A graph in an inference session, and the tokenizer that lies beside it. A context manager.

    Memory: what onnxruntime makes of the weights, which it may pack a second time.
    """

    def __init__(self, path: Path, *, context: int = 512, device: str = "auto") -> None:
        """Load the folder ``path``, or the folder of a file in it. context: most tokens at once.

        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:n``; ``auto``: CUDA where onnxruntime can

        Raises:
            BrokenPlugin: onnxruntime or transformers is not installed, or onnxruntime cannot use
                the device.
            UnreadableInput: onnxruntime refuses the graph, or the tokenizer is missing.
            Unsupported: the graph is no decoder's, or onnxruntime is too old for it.
        """
        folder = path if path.is_dir() else path.parent
        try:
            import onnxruntime
            from transformers import AutoTokenizer
        except ImportError as error:
            raise BrokenPlugin(
                f"onnxruntime and transformers are needed here, {error.name} is missing: "
                "pip install 'qconv[onnx]'"
            ) from error
        self._version = str(onnxruntime.__version__)
        self._session: Any = open_session(folder / _GRAPH, device=device)
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
        except Exception as error:
            said = " ".join(str(error).split())[:300]
            raise UnreadableInput(
                f"{folder}: transformers cannot read its tokenizer: {said}; put the files of "
                "the model's tokenizer beside the graph"
            ) from error
        super().__init__(folder, context, tokenizer, device_of(self._session))
        self._inputs = {each.name: each for each in self._session.get_inputs()}
        self._outputs = [each.name for each in self._session.get_outputs()]
        self._check_decoder()
        self._ends = _ends(folder)

    def _check_decoder(self) -> None:
        if "logits" not in self._outputs or "input_ids" not in self._inputs:
            raise Unsupported(
                f"{self._folder}: the graph gives {', '.join(self._outputs[:3])} and no logits of "
                "tokens; only decoders can be run here"
            )

    @property
    def engine(self) -> str:
        """The engine's name."""
        return "onnxruntime"

    @property
    def version(self) -> str:
        """That of the library."""
        return self._version

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Logits after every token: (len(ids), vocabulary) float32.

        Raises:
            UsageError: no tokens, or more than ``context``.
        """
        import torch

        self.check_room(ids, 0)
        return torch.from_numpy(self._run(ids, 0, {})["logits"][0].astype("float32"))

    def generate(self, ids: Sequence[int], max_tokens: int) -> list[int]:
        """Go on with the likeliest token each time, until one ends the text; that one is left out.

        A graph without inputs for keys and values computes the whole text for each token.

        Raises:
            UsageError: no tokens, or all together more than ``context``.
        """
        self.check_room(ids, max_tokens)
        cached = any(name.startswith(_PAST) for name in self._inputs)
        made: list[int] = []
        new = list(ids)
        kept: dict[str, np.ndarray[Any, Any]] = {}
        while len(made) < max_tokens:
            start = len(ids) + len(made) - len(new)
            found = self._run(new, start, kept)
            best = int(found["logits"][0, -1].argmax())
            if best in self._ends:
                break
            made.append(best)
            new = [best] if cached else [*new, best]
            kept = {
                name.replace(_PRESENT, _PAST): value
                for name, value in found.items()
                if name.startswith(_PRESENT)
            }
        return made

    def _run(
        self, ids: Sequence[int], start: int, kept: Mapping[str, np.ndarray[Any, Any]]
    ) -> dict[str, np.ndarray[Any, Any]]:
        """All outputs. start: how many tokens came before, whose keys and values are ``kept``."""
        import numpy as np

        end = start + len(ids)
        feeds: dict[str, np.ndarray[Any, Any]] = {
            "input_ids": np.array([ids], dtype=np.int64),
            "attention_mask": np.ones((1, end), dtype=np.int64),
            "position_ids": np.arange(start, end, dtype=np.int64)[None],
        }
        feeds = {name: value for name, value in feeds.items() if name in self._inputs}
        for name, each in self._inputs.items():
            if name.startswith(_PAST):
                feeds[name] = kept[name] if kept else _empty(each)
        return dict(zip(self._outputs, self._session.run(None, feeds), strict=True))

    def close(self) -> None:
        """Let go of the session."""
        self._session = None


def _empty(each: Any) -> np.ndarray[Any, Any]:  # noqa: ANN401 - onnxruntime's NodeArg
    """Keys or values of no token: (1, heads, 0, size)."""
    import numpy as np

    _, heads, _, size = each.shape
    return np.zeros((1, heads, 0, size), dtype=np.float16 if "16" in each.type else np.float32)


def _ends(folder: Path) -> frozenset[int]:
    """The tokens that end a text, as the generation config says, or else the model's config."""
    for name in ("generation_config.json", "config.json"):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError):
            continue
        ends = found if isinstance(found, list) else [found]
        known = frozenset(each for each in ends if type(each) is int)  # and not bool
        if known:
            return known
    return frozenset()
