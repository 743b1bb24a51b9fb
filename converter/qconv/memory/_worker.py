"""The process that is measured: ``python -m qconv.memory._worker``, one JSON document in and out.

It loads an artifact, runs the context asked for through it, and says what that took. A process of
its own: what was loaded before would count, or be counted out, by chance.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from qconv._host import Host


def main() -> None:
    """Read what to do from stdin, do it, and print the figures."""
    from qconv.errors import QconvError

    asked = json.loads(sys.stdin.read())
    try:
        figures = measured(asked)
    except QconvError as error:
        figures = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(figures))  # noqa: T201 - the answer


def measured(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Run the artifact as asked: its figures in bytes, and what measured them."""
    if asked["engine"] == "torch":
        return _torch(asked)
    return _runtime(asked)


# --- in torch -------------------------------------------------------------------------------------


def _torch(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Weights packed as stored, decoded one linear at a time; keys and values kept."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    cuda = asked["device"].startswith("cuda")
    return _on_cuda(asked) if cuda else _on_cpu(asked)


def _on_cpu(asked: Mapping[str, Any]) -> dict[str, Any]:
    from qconv.memory._peaks import resident_peak

    _warm_up(asked)
    with resident_peak(mapped=False) as peak:
        _run_torch(asked)
    return {"measured": peak.nbytes, "by": "process memory", "parts": {}}


def _on_cuda(asked: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    from qconv.memory._driver import nvml_used

    device = torch.device(asked["device"])
    before = nvml_used(asked["driver_name"])
    torch.zeros(1, device=device)  # makes the context
    torch.cuda.synchronize(device)
    free = torch.cuda.mem_get_info(device)[0]
    started = nvml_used(asked["driver_name"])
    context = 0 if before is None or started is None else max(0, started - before)
    torch.cuda.reset_peak_memory_stats(device)
    _run_torch(asked)
    torch.cuda.synchronize(device)
    used = free - torch.cuda.mem_get_info(device)[0]
    return {
        "measured": used + context,
        "by": torch.cuda.get_device_name(device),
        "context_known": context > 0,
        "parts": {
            "max_memory_allocated": torch.cuda.max_memory_allocated(device),
            "max_memory_reserved": torch.cuda.max_memory_reserved(device),
            "device": used,
            "device_context": context,
        },
    }


def _warm_up(asked: Mapping[str, Any]) -> None:
    """Import and compile what takes memory of its own: it is no part of the model."""
    import torch
    import transformers.modeling_utils  # noqa: F401 - for its memory

    from qconv._host import load_plugins
    from qconv._sources import open_source
    from qconv.checkpoint import DecodedCheckpoint
    from qconv.model import open_model

    torch.nn.functional.linear(torch.ones(8, 8), torch.ones(8, 8))
    with open_source(asked["path"], load_plugins()) as checkpoint:
        open_model(checkpoint, device="cpu")  # builds the architecture, reads no weight
        if isinstance(checkpoint, DecodedCheckpoint):
            name = min(checkpoint.encoded, key=lambda each: _size(checkpoint, each))
            checkpoint.from_parts(name, checkpoint.parts(name)).dequantize()


def _size(checkpoint: Any, name: str) -> int:  # noqa: ANN401 - a DecodedCheckpoint
    rows, columns = checkpoint.encoded[name].shape
    return int(rows * columns)


def _run_torch(asked: Mapping[str, Any]) -> None:
    import torch

    from qconv._host import load_plugins
    from qconv._sources import open_source
    from qconv.checkpoint import DecodedCheckpoint
    from qconv.memory._packed import packed_linears
    from qconv.model import open_model

    with open_source(asked["path"], load_plugins()) as checkpoint:
        opened = open_model(checkpoint, device=asked["device"], dtype=asked["dtype"])
        substitute = None
        if isinstance(checkpoint, DecodedCheckpoint):
            substitute = packed_linears(checkpoint, opened.device)
        model = opened.whole(substitute)
        tokens = _tokens(asked, opened.vocab_size).to(opened.device)
        with torch.no_grad():
            if opened.is_decoder:
                _read_prompt(model, tokens, asked["step"])
            else:
                model(input_ids=tokens)


def _read_prompt(model: Any, tokens: torch.Tensor, step: int) -> None:  # noqa: ANN401
    """Run a prompt step by step, keeping keys and values; logits of the last token only."""
    kept: Any = None
    for start in range(0, tokens.shape[1], step):
        made = model(
            input_ids=tokens[:, start : start + step],
            past_key_values=kept,
            use_cache=True,
            logits_to_keep=1,
        )
        kept = made.past_key_values


def _tokens(asked: Mapping[str, Any], vocab: int) -> torch.Tensor:
    """Any text would do: (batch, context) int64 of all tokens in turn."""
    import torch

    count = asked["batch"] * asked["context"]
    return (torch.arange(count) % vocab).reshape(asked["batch"], asked["context"])


# --- in the artifact's own engine -----------------------------------------------------------------


#: Tokens of the run before the one that is measured.
_FEW = 8


def _runtime(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The engine of the artifact's backend, which maps its weights: mapped pages count.

    It is loaded once before: its libraries are no part of the model. On a device the driver is
    asked; what CUDA needs itself counts there, as it does in the prediction.
    """
    from qconv._host import load_plugins
    from qconv.memory._driver import device_peak
    from qconv.memory._peaks import resident_peak

    host = load_plugins()
    path, vocab = Path(asked["path"]), asked["vocab"]
    if asked["device"] != "cpu":
        with device_peak(asked["driver_name"]) as device:
            by = _logits(host, path, asked["context"], vocab, asked["device"])
        told = "the driver" if device.whole_device else "the driver, of its process"
        return {
            "measured": device.nbytes,
            "by": f"{told}, while {by} ran",
            "whole_device": device.whole_device,
            "parts": {},
        }
    _logits(host, path, min(_FEW, asked["context"]), vocab)
    with resident_peak(mapped=True) as peak:
        by = _logits(host, path, asked["context"], vocab)
    return {"measured": peak.nbytes, "by": f"process memory of {by}", "parts": {}}


def _logits(host: Host, path: Path, context: int, vocab: int, device: str = "cpu") -> str:
    """Run so many tokens at once; what ran them."""
    with host.runtime(path, context, device) as engine:
        engine.logits([number % vocab for number in range(context)])
        return f"{engine.engine} {engine.version}"


if __name__ == "__main__":
    main()
