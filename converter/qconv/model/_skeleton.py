"""The model without its weights: built by transformers from the config, parameters on meta.

Buffers (rotary frequencies, masks) are computed for real; they are small.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qconv.errors import BrokenPlugin, UnreadableInput, Unsupported

if TYPE_CHECKING:
    import torch
    from torch import nn

    from qconv.plugin import ModelInfo


#: The oldest transformers that all tests of this folder passed with.
_OLDEST = (4, 57)


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """What transformers makes of the config.

    model: in eval mode, parameters on the meta device, buffers on the CPU
    blocks: the decoder or encoder layers
    path: where they are in the model, e.g. ``model.layers``
    is_decoder: the model predicts the next token
    """

    model: Any
    blocks: nn.ModuleList
    path: str
    is_decoder: bool


def build_skeleton(info: ModelInfo, dtype: torch.dtype) -> Skeleton:
    """Build the model that ``config.json`` describes.

    Raises:
        BrokenPlugin: transformers is not installed.
        Unsupported: transformers does not know the architecture, or it has no chain of blocks.
        UnreadableInput: the config is malformed.
    """
    _require_transformers()
    config = _config(info)
    is_decoder = _is_decoder(config, info.config.get("architectures"))
    try:
        model = _build(config, is_decoder, dtype)
    except Exception as error:  # a config is foreign input, and transformers raises anything
        raise UnreadableInput(
            f"{info.name}: transformers cannot build the model of config.json: {error}; "
            "check it, or get it anew"
        ) from error
    if not is_decoder and getattr(model, "pooler", None) is not None:
        model.pooler = None  # comes after the last hidden states, and checkpoints often lack it
    _to_meta(model)
    path, blocks = _find_blocks(model, info.name)
    return Skeleton(model=model.eval(), blocks=blocks, path=path, is_decoder=is_decoder)


def _require_transformers() -> None:
    try:
        import transformers
    except ImportError as error:
        raise BrokenPlugin(
            f"calibration runs the model with transformers, which cannot be imported: {error}; "
            "pip install 'qconv[calibration]'"
        ) from error
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    if version < _OLDEST:
        raise BrokenPlugin(
            f"transformers {transformers.__version__} is too old to run models block by block "
            f"(at least {'.'.join(map(str, _OLDEST))}); pip install 'qconv[calibration]'"
        )


def _config(info: ModelInfo) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = info.config.get("model_type")
    if not isinstance(kind, str):
        raise Unsupported(
            f"{info.name}: config.json names no model_type, so its layers are unknown; calibrate "
            "from a Hugging Face directory with its config.json, or use --method rtn"
        )
    if "quantization_config" in info.config:
        raise Unsupported(
            f"{info.name}: config.json has a quantization_config: the weights are quantized "
            "already; calibrate the float model it was made from"
        )
    if kind not in CONFIG_MAPPING:
        import transformers

        raise Unsupported(
            f"{info.name}: transformers {transformers.__version__} does not know model_type "
            f"{kind!r} (remote code is never run); install a newer transformers, or use "
            "--method rtn, which runs no model"
        )
    _refuse_more_layers_than_tensors(info)
    try:
        return CONFIG_MAPPING[kind].from_dict(dict(info.config))
    except Exception as error:  # a config is foreign input, and transformers raises anything
        raise UnreadableInput(
            f"{info.name}: config.json does not suit model_type {kind!r}: {error}; "
            "check it, or get it anew"
        ) from error


def _refuse_more_layers_than_tensors(info: ModelInfo) -> None:
    layers = info.config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > len(info.tensors):
        raise UnreadableInput(
            f"{info.name}: config.json says num_hidden_layers {layers}, but the checkpoint holds "
            f"{len(info.tensors)} tensors; they do not belong together, get both anew"
        )


def _is_decoder(config: Any, architectures: object) -> bool:
    """Whether to build the model with the language head that predicts the next token."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    if config.is_encoder_decoder:
        raise Unsupported(
            f"model_type {config.model_type!r} has an encoder and a decoder; only models with one "
            "chain of blocks can be calibrated, use --method rtn"
        )
    kind = type(config)
    causal = kind in AutoModelForCausalLM._model_mapping
    if isinstance(architectures, list) and architectures:
        name = str(architectures[0])
        heads = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
        return causal and name.endswith(heads)
    return causal and kind not in AutoModelForMaskedLM._model_mapping


def _build(config: Any, is_decoder: bool, dtype: torch.dtype) -> Any:  # noqa: FBT001
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM if is_decoder else AutoModel
    for name in ("use_cache", "output_attentions", "output_hidden_states", "output_router_logits"):
        _set(config, name, value=False)
    # Fused experts by their plain loop: what each expert multiplies is then seen, expert by expert.
    if hasattr(config, "_experts_implementation"):
        config._experts_implementation = "eager"
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(_empty_on_meta())
        # Soft-capped scores (Gemma 2) are not in sdpa, and transformers 4 would leave them out.
        capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
        try:
            attention = "eager" if capped else "sdpa"
            return auto.from_config(config, dtype=dtype, attn_implementation=attention)
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            return auto.from_config(config, dtype=dtype, attn_implementation="eager")


def _set(config: Any, name: str, *, value: object) -> None:
    for each in {id(c): c for c in (config, config.get_text_config())}.values():
        if hasattr(each, name):
            setattr(each, name, value)


def _empty_on_meta() -> Any:
    """A mode in which ``torch.empty``, from which parameters are made, takes no memory."""
    import torch
    from torch.overrides import TorchFunctionMode

    class EmptyOnMeta(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = dict(kwargs or {})
            if func is torch.empty:
                kwargs["device"] = "meta"
            return func(*args, **kwargs)

    return EmptyOnMeta()


def _to_meta(model: nn.Module) -> None:
    """Take the memory from parameters that were not made by ``torch.empty``; ties stay."""
    import torch

    exact = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    known: dict[int, torch.nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in known:
                keep = _named(f"{path}.{name}", exact)
                value = parameter.detach().to("meta", torch.float32 if keep else parameter.dtype)
                known[id(parameter)] = torch.nn.Parameter(value, requires_grad=False)
            module._parameters[name] = known[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None and _named(f"{path}.{name}", exact):
                module._buffers[name] = buffer.float()
            if buffer is not None and buffer.is_meta:
                raise Unsupported(
                    f"{type(module).__name__}: transformers leaves buffer {f'{path}.{name}'!r} "
                    "without values; use --method rtn, which runs no model"
                )


def _named(path: str, names: tuple[str, ...]) -> bool:
    """A component of the path, or the path's end, is one of ``names``."""
    return any(f".{name}." in f".{path}." for name in names)


def _find_blocks(model: nn.Module, name: str) -> tuple[str, nn.ModuleList]:
    """The list of modules, in no other list, that holds the most parameters."""
    from torch import nn

    lists = {path: m for path, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    outermost = {
        path: each
        for path, each in lists.items()
        if not any(path.startswith(other + ".") for other in lists) and len(each)
    }
    if not outermost:
        raise Unsupported(
            f"{name}: {type(model).__name__} has no list of layers to go through block by block; "
            "use --method rtn, which runs no model"
        )
    size = {p: sum(x.numel() for x in each.parameters()) for p, each in outermost.items()}
    path = max(size, key=lambda each: size[each])
    return path, outermost[path]
