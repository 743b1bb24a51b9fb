"""transformers itself as the runtime of a checkpoint, in the dtype it is stored in."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconv.engines import TokenizedRuntime, resolve_device
from qconv.errors import BrokenPlugin, UnreadableInput

if TYPE_CHECKING:
    import torch


class Transformers(TokenizedRuntime):
    """A checkpoint loaded by ``from_pretrained``. A context manager.

    Memory: the weights as transformers holds them, which decompresses some quantized ones.
    """

    def __init__(self, path: Path, *, context: int = 512, device: str = "auto") -> None:
        """Load the folder ``path``, or the folder of a file in it. context: most tokens at once.

        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:n``; ``auto``: the first GPU, if any

        Raises:
            BrokenPlugin: transformers, or the library that the quantization needs, is missing.
            NotEnoughResources: CUDA is asked for and absent.
            UnreadableInput: transformers refuses the checkpoint.
        """
        folder = path if path.is_dir() else path.parent
        try:
            import transformers
        except ImportError as error:
            raise BrokenPlugin(
                "transformers is needed here but missing: pip install 'qconv[calibration]'"
            ) from error
        self._library: Any = transformers
        place = resolve_device(device)
        given = {"trust_remote_code": False, "local_files_only": True}
        with _quiet(transformers), self._refusals(folder):
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **given)
            # kernels of quantized weights are chosen for the device that they are loaded on
            there = {"device_map": {"": place}} if _loads_on(place, folder) else {}
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, **given, **there)
            model = model.to(place) if not there else model
        super().__init__(folder, context, tokenizer, str(place))
        self._model = model.eval()
        self._ends = _ends(self._model)

    @contextlib.contextmanager
    def _refusals(self, folder: Path) -> Iterator[None]:
        """Whatever transformers raises, as an error that names the checkpoint."""
        try:
            yield
        except ImportError as error:
            raise BrokenPlugin(
                f"{folder}: transformers lacks a library: {_line(error)}; install it"
            ) from error
        except Exception as error:
            raise UnreadableInput(
                f"{folder}: transformers {self.version} refuses it: {_line(error)}; "
                "run it in an engine that its format is for"
            ) from error

    @property
    def engine(self) -> str:
        """The engine's name."""
        return "transformers"

    @property
    def version(self) -> str:
        """That of the library."""
        return str(self._library.__version__)

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Logits after every token: (len(ids), vocabulary) float32.

        Raises:
            UsageError: no tokens, or more than ``context``.
        """
        import torch

        self.check_room(ids, 0)
        with torch.inference_mode():
            given = torch.tensor([list(ids)], device=self.device)
            found: torch.Tensor = self._model(given, use_cache=False).logits
        return found[0].float()

    def generate(self, ids: Sequence[int], max_tokens: int) -> list[int]:
        """Go on with the likeliest token each time, until one ends the text; that one is left out.

        Only where texts end is taken from the checkpoint's generation config.

        Raises:
            UsageError: no tokens, or all together more than ``context``.
        """
        import torch

        self.check_room(ids, max_tokens)
        if max_tokens == 0:
            return []
        config = self._library.GenerationConfig(
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=sorted(self._ends) or None,
            pad_token_id=min(self._ends, default=0),
        )
        given = torch.tensor([list(ids)], device=self.device)
        with torch.inference_mode(), _quiet(self._library):
            self._model.generation_config = config
            found = self._model.generate(given, attention_mask=torch.ones_like(given))
        made = [int(token) for token in found[0, len(ids) :]]
        return made[:-1] if made and made[-1] in self._ends else made

    def close(self) -> None:
        """Let go of the model."""
        self._model = None


def _loads_on(place: torch.device, folder: Path) -> bool:
    """Whether weights are to be loaded on the device: quantized ones on a GPU, by accelerate."""
    if place.type == "cpu" or importlib.util.find_spec("accelerate") is None:
        return False
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # which transformers itself refuses
    return isinstance(config, dict) and "quantization_config" in config


def _ends(model: Any) -> frozenset[int]:  # noqa: ANN401 - any transformers model
    """The tokens that end a text."""
    found = model.generation_config.eos_token_id
    return frozenset([found] if isinstance(found, int) else found or [])


def _line(error: Exception) -> str:
    """An exception's first words, in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextlib.contextmanager
def _quiet(library: Any) -> Iterator[None]:  # noqa: ANN401 - the transformers module
    """Without progress bars and advice."""
    log = library.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
