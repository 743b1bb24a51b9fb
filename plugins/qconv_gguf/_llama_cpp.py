"""llama.cpp itself, called through ctypes in the shared library that the xllamacpp wheel brings.

Structures that change between versions are never spelled out: the library's own functions fill them
into larger blocks of memory, which go back by value. Only fields that have kept their place for
years are touched. C interface: https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from qconv.errors import BrokenPlugin, UnreadableInput, Unsupported, UsageError

from ._chat import rendered
from ._llama_devices import cuda_device, use_devices

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

_LOG_ERROR = 4  # ggml.h, enum ggml_log_level
_LOG_CONTINUED = 5
_PORTION = 512  # llama_context_default_params: n_ubatch
_ERASE = True
#: llama_model_params, in units of 4 bytes: after two pointers, the first to a list of devices,
#: n_gpu_layers, split_mode, main_gpu.
_LAYERS, _SPLIT, _MAIN = 4, 5, 6
_NOT_SPLIT = 0  # llama.h, LLAMA_SPLIT_MODE_NONE
_NO_STRIP, _NO_CONTROL = 0, False


class _Blob(ctypes.Structure):
    """A structure of parameters, of unknown fields and at most this size."""

    _fields_ = (("bytes", ctypes.c_uint32 * 512),)


class _Batch(ctypes.Structure):
    """``llama_batch``: which tokens to compute, where, and whose logits to keep."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
        ("spare", ctypes.c_uint64 * 8),
    )


_POINTER, _INT, _TEXT, _BOOL = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p, ctypes.c_bool
_LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)

#: Function -> result and arguments.
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_supports_gpu_offload": (_BOOL, ()),
    "llama_log_set": (None, (_LOG_CALLBACK, _POINTER)),
    "llama_model_default_params": (_Blob, ()),
    "llama_model_load_from_file": (_POINTER, (_TEXT, _Blob)),
    "llama_model_free": (None, (_POINTER,)),
    "llama_model_get_vocab": (_POINTER, (_POINTER,)),
    "llama_model_chat_template": (_TEXT, (_POINTER, _TEXT)),
    "llama_context_default_params": (_Blob, ()),
    "llama_init_from_model": (_POINTER, (_POINTER, _Blob)),
    "llama_free": (None, (_POINTER,)),
    "llama_set_n_threads": (None, (_POINTER, _INT, _INT)),
    "llama_get_memory": (_POINTER, (_POINTER,)),
    "llama_memory_clear": (None, (_POINTER, _BOOL)),
    "llama_batch_init": (_Batch, (_INT, _INT, _INT)),
    "llama_batch_free": (None, (_Batch,)),
    "llama_decode": (_INT, (_POINTER, _Batch)),
    "llama_get_logits": (ctypes.POINTER(ctypes.c_float), (_POINTER,)),
    "llama_vocab_n_tokens": (_INT, (_POINTER,)),
    "llama_vocab_bos": (_INT, (_POINTER,)),
    "llama_vocab_eos": (_INT, (_POINTER,)),
    "llama_vocab_get_text": (_TEXT, (_POINTER, _INT)),
    "llama_vocab_is_eog": (_BOOL, (_POINTER, _INT)),
    "llama_tokenize": (_INT, (_POINTER, _TEXT, _INT, _POINTER, _INT, _BOOL, _BOOL)),
    "llama_token_to_piece": (_INT, (_POINTER, _INT, _POINTER, _INT, _INT, _BOOL)),
}


class _Log:
    """Keeps what llama.cpp complains of; prints everything while ``verbose``."""

    def __init__(self) -> None:
        self.verbose = False
        self.complaints: list[str] = []
        self._level = 0
        # the library calls this as long as it is loaded, so it lives as long as the library does
        self.callback = _LOG_CALLBACK(self._take)

    def _take(self, level: int, text: bytes | None, _: object) -> None:
        line = (text or b"").decode("utf-8", "replace")
        self._level = self._level if level == _LOG_CONTINUED else level
        if self._level == _LOG_ERROR and line.strip():
            self.complaints.append(line.strip())
        if self.verbose:
            import sys

            sys.stderr.write(line)

    @property
    def said(self) -> str:
        """The complaints, first to last."""
        return "; ".join(self.complaints) or "it gave no reason"


class LlamaCpp:
    """A GGUF file loaded into llama.cpp. A context manager.

    Memory: the weights as stored (mapped), and the logits of ``n_ctx`` tokens.
    """

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int = 512,
        threads: int | None = None,
        device: str = "auto",
        verbose: bool = False,
    ) -> None:
        """Load ``path``. n_ctx: most tokens at once; threads: None for llama.cpp's choice.

        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:n``; ``auto``: a GPU where llama.cpp can

        Raises:
            BrokenPlugin: xllamacpp is not installed, not as this client knows it, or cannot use
                the device.
            UnreadableInput: llama.cpp refuses the file; its complaints are in the message.
        """
        self._model = self._context = self._devices = None
        self._library, self._log = _library()
        self._log.verbose = verbose
        self._log.complaints.clear()
        self._n_ctx = n_ctx
        params = self._library.llama_model_default_params()
        self._device = self._placed(params, device)
        self._model = self._library.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise self._refused(path)
        self._vocab = self._library.llama_model_get_vocab(self._model)
        context = self._library.llama_context_default_params()
        # n_ctx, n_batch, n_ubatch: everything in one batch, computed in llama.cpp's own portions
        context.bytes[:3] = n_ctx, n_ctx, min(n_ctx, _PORTION)
        self._context = self._library.llama_init_from_model(self._model, context)
        if not self._context:
            self.close()
            raise self._refused(path)
        if threads is not None:
            self._library.llama_set_n_threads(self._context, threads, threads)

    def _placed(self, params: _Blob, device: str) -> str:
        """Say in ``params`` where layers go, which by default is a GPU that llama.cpp can use."""
        offloads = bool(self._library.llama_supports_gpu_offload())
        if device == "cpu" or not offloads:
            if device not in ("auto", "cpu"):
                raise BrokenPlugin(
                    f"this build of llama.cpp (xllamacpp) has no GPU support for device {device}; "
                    "install one with CUDA, or compute on the CPU (--device cpu)"
                )
            params.bytes[_LAYERS] = 0
            self._devices = use_devices(params, [])
            return "cpu"
        if device == "auto":
            return "gpu"
        number = int(device.partition(":")[2] or 0)
        chosen = cuda_device(self._library, number)
        if chosen is not None:
            self._devices = use_devices(params, [chosen])
        # the number counts the devices that are listed, or else all GPUs
        params.bytes[_SPLIT], params.bytes[_MAIN] = _NOT_SPLIT, 0 if chosen is not None else number
        return f"cuda:{number}"

    def _refused(self, path: Path) -> UnreadableInput:
        said = self._log.said
        return UnreadableInput(f"{path}: llama.cpp refuses it: {said}; write it again")

    @property
    def engine(self) -> str:
        """The engine's name."""
        return "llama.cpp"

    @property
    def version(self) -> str:
        """That of the wheel which brings it; llama.cpp itself counts builds only."""
        return f"xllamacpp {importlib.metadata.version('xllamacpp')}"

    @property
    def device(self) -> str:
        """Where its layers are: ``cpu``, ``cuda:0``, or ``gpu`` where llama.cpp chose."""
        return self._device

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return int(self._library.llama_vocab_n_tokens(self._vocab))

    @property
    def chat_template(self) -> str | None:
        """The file's default chat template."""
        text = self._library.llama_model_chat_template(self._model, None)
        return None if text is None else text.decode("utf-8")

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Token ids. add_special: begin and end as the file says; parse_special: know ``<s>``."""
        data = text.encode("utf-8")
        room = len(data) + 8
        ids = (ctypes.c_int32 * room)()
        count = self._library.llama_tokenize(
            self._vocab, data, len(data), ids, room, add_special, parse_special
        )
        return list(ids[:count])

    def converse(self, prompt: str) -> list[int]:
        """Token ids of a user's message as the chat template writes it, up to the answer.

        Raises:
            BrokenPlugin: jinja2 is not installed.
            Unsupported: there is no chat template, or it refuses the message.
        """
        template = self.chat_template
        if not template:
            raise Unsupported("the file has no chat template; give the prompt as plain text")
        marks = (self._library.llama_vocab_bos, self._library.llama_vocab_eos)
        begin, end = (self._text(mark(self._vocab)) for mark in marks)
        text = rendered(template, prompt, bos_token=begin, eos_token=end)
        return self.tokenize(text, add_special=False)

    def _text(self, token: int) -> str:
        """A token as templates write it; nothing for the number of a token that there is not."""
        if token < 0:
            return ""
        found: bytes = self._library.llama_vocab_get_text(self._vocab, token)
        return found.decode("utf-8", "replace")

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of token ids, as servers stream it; control tokens are left out.

        Piece by piece: the library's own detokenizer drops spaces before punctuation for some
        vocabularies, which is not what the model wrote.
        """
        return b"".join(self._piece(token) for token in ids).decode("utf-8", "replace")

    def _piece(self, token: int) -> bytes:
        size = -64  # a negative answer is the room it needs
        while size < 0:
            text = ctypes.create_string_buffer(-size)
            size = self._library.llama_token_to_piece(
                self._vocab, token, text, -size, _NO_STRIP, _NO_CONTROL
            )
        return text.raw[:size]

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Logits after every token: (len(ids), vocab) float32.

        Raises:
            UsageError: no tokens, or more than ``n_ctx``.
            UnreadableInput: llama.cpp fails to compute them.
        """
        memory = self._library.llama_get_memory(self._context)
        self._library.llama_memory_clear(memory, _ERASE)
        return self._decode(ids, 0, len(ids))

    def generate(self, ids: Sequence[int], max_tokens: int) -> list[int]:
        """Go on with the likeliest token each time, until one ends the text; that one is left out.

        Raises:
            UsageError: no tokens, or more than ``n_ctx`` with ``max_tokens`` more.
        """
        if len(ids) + max_tokens > self._n_ctx:
            raise UsageError(
                f"{len(ids)} tokens of prompt and {max_tokens} more exceed n_ctx={self._n_ctx}; "
                "raise n_ctx or ask for fewer"
            )
        made: list[int] = []
        memory = self._library.llama_get_memory(self._context)
        self._library.llama_memory_clear(memory, _ERASE)
        new, start = ids, 0
        while len(made) < max_tokens:
            best = int(self._decode(new, start, 1)[-1].argmax())
            if self._library.llama_vocab_is_eog(self._vocab, best):
                break
            made.append(best)
            new, start = [best], len(ids) + len(made) - 1
        return made

    def _decode(self, ids: Sequence[int], start: int, kept: int) -> torch.Tensor:
        """Logits after the last ``kept`` of ``ids``, the first of which is token ``start``."""
        import numpy as np
        import torch

        if not 0 < len(ids) <= self._n_ctx:
            raise UsageError(
                f"{len(ids)} tokens, but between 1 and n_ctx={self._n_ctx} can be computed; "
                "raise n_ctx or give fewer"
            )
        batch = self._library.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for place, token in enumerate(ids):
                batch.token[place], batch.pos[place] = token, start + place
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
                batch.logits[place] = place >= len(ids) - kept
            if self._library.llama_decode(self._context, batch) != 0:
                raise UnreadableInput(
                    f"llama.cpp could not compute {len(ids)} tokens: {self._log.said}; "
                    "check that the ids are in the vocabulary"
                )
        finally:
            self._library.llama_batch_free(batch)
        scores = self._library.llama_get_logits(self._context)
        values = np.ctypeslib.as_array(scores, (kept, self.vocab_size))
        return torch.from_numpy(values.copy())

    def close(self) -> None:
        """Free the context and the model."""
        if self._context:
            self._library.llama_free(self._context)
        if self._model:
            self._library.llama_model_free(self._model)
        self._context = self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@functools.cache
def _library() -> tuple[ctypes.CDLL, _Log]:
    """The shared library with its functions declared, silenced; loaded once."""
    spec = importlib.util.find_spec("xllamacpp")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    found = [] if folder is None else sorted([*folder.glob("*.so"), *folder.glob("*.pyd")])
    if not found:
        raise BrokenPlugin(
            "llama.cpp is needed here but xllamacpp is missing: pip install 'qconv[llama-cpp]'"
        )
    try:
        library = ctypes.CDLL(str(found[0]))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise BrokenPlugin(
            f"{found[0]}: not llama.cpp as this version knows it ({error}); "
            "install the version that 'qconv[llama-cpp]' asks for"
        ) from error
    log = _Log()
    library.llama_log_set(log.callback, None)
    library.llama_backend_init()
    return library, log
