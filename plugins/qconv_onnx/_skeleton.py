"""The transformers module that config.json describes, on fake tensors: shapes, and no weights.

Buffers (rotary frequencies, positions) are computed for real; they are small.
Peak memory: the buffers, and the parameters that are not made by ``torch.empty`` (norms).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qconv.errors import BrokenPlugin, UnreadableInput, Unsupported
from qconv.plugin import Dropped

from ._experts import separate_experts
from ._loading import loaded_as

if TYPE_CHECKING:
    from torch import nn

    from qconv.plugin import ModelInfo

_HEADS = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """A module whose parameters are fake tensors.

    module: in eval mode
    fakes: the mode that the parameters belong to
    is_decoder: the model predicts the next token
    sources: the checkpoint's name of every parameter, by the module's name of it
    embedding, head: source tensors of the token embedding and the output projection, which are one
        where they are tied; None: there is none
    dropped: source tensors that the module has no parameter for, by a rule
    """

    module: Any
    fakes: Any
    is_decoder: bool
    sources: Mapping[str, str]
    embedding: str | None
    head: str | None
    dropped: tuple[Dropped, ...]


def build_skeleton(info: ModelInfo, dtype: str) -> Skeleton:
    """Build the model.

    dtype: torch dtype name of the parameters

    Raises:
        BrokenPlugin: transformers is not installed.
        Unsupported: transformers does not know the architecture, or names tensors otherwise, or
            its experts cannot be taken apart.
        UnreadableInput: the config is malformed.
    """
    config = _config(info)
    decodes = _is_decoder(info, config)
    try:
        module = _build(info, config, dtype, is_decoder=decodes)
    except Exception as error:  # a config is foreign input, and transformers raises anything
        raise UnreadableInput(
            f"{info.name}: transformers cannot build the model of config.json: {error}; "
            "check it, or get it anew"
        ) from error
    _leave_out_pooler(info, module)
    apart = separate_experts(info, module)
    module.eval()
    buffers = _refuse_stored_buffers(info, module)
    sources, tied = _sources(info, module, apart)
    fakes = _to_fake(module)
    return Skeleton(
        module=module,
        fakes=fakes,
        is_decoder=decodes,
        sources=sources,
        embedding=_source_of(module, module.get_input_embeddings, sources),
        head=_source_of(module, module.get_output_embeddings, sources),
        dropped=(*tied, *_ignored(info, module, buffers, {*sources.values(), *_names(tied)})),
    )


def _source_of(module: nn.Module, part: Any, sources: Mapping[str, str]) -> str | None:  # noqa: ANN401
    """The source tensor of the weight of a part of the module. part: gives it, or None."""
    try:
        weight = getattr(part(), "weight", None)
    except NotImplementedError:  # how transformers says that there is none
        return None
    named = module.named_parameters(remove_duplicate=False)
    return next((sources[name] for name, value in named if value is weight), None)


def _names(dropped: tuple[Dropped, ...]) -> set[str]:
    return {each.name for each in dropped}


def _config(info: ModelInfo) -> Any:  # noqa: ANN401 -- transformers' config of any kind
    try:
        import transformers
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    except ImportError as error:
        raise BrokenPlugin(
            f"the onnx backend takes a model's graph from transformers, which cannot be imported: "
            f"{error}; pip install 'qconv[onnx]'"
        ) from error
    kind = info.config.get("model_type")
    if info.kind != "safetensors" or not isinstance(kind, str):
        raise Unsupported(
            f"{info.name}: no config.json that names a model_type, so its graph is unknown; "
            "convert from a Hugging Face directory with its config.json"
        )
    if kind not in CONFIG_MAPPING:
        raise Unsupported(
            f"{info.name}: transformers {transformers.__version__} does not know model_type "
            f"{kind!r} (remote code is never run); install a newer transformers"
        )
    try:
        config = CONFIG_MAPPING[kind].from_dict(dict(info.config))
    except Exception as error:  # a config is foreign input, and transformers raises anything
        raise UnreadableInput(
            f"{info.name}: config.json does not suit model_type {kind!r}: {error}; "
            "check it, or get it anew"
        ) from error
    if config.is_encoder_decoder:
        raise Unsupported(
            f"{info.name}: model_type {kind!r} has an encoder and a decoder; only models that are "
            "one graph are exported"
        )
    return config


def is_decoder(info: ModelInfo) -> bool:
    """Whether the model that config.json describes predicts the next token.

    Raises:
        BrokenPlugin: transformers is not installed.
        Unsupported: transformers does not know the architecture.
        UnreadableInput: the config is malformed.
    """
    return _is_decoder(info, _config(info))


def _architecture(info: ModelInfo) -> str:
    named = info.config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def _is_decoder(info: ModelInfo, config: Any) -> bool:  # noqa: ANN401
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and _architecture(info).endswith(_HEADS)


def _build(info: ModelInfo, config: Any, dtype: str, *, is_decoder: bool) -> Any:  # noqa: ANN401
    import torch

    _set(config, "use_cache", value=is_decoder)
    for name in ("output_attentions", "output_hidden_states", "output_router_logits"):
        _set(config, name, value=False)
    build = _builder(info, config, is_decoder=is_decoder)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(_empty_on_meta())
        # Soft-capped scores (Gemma 2) are not in sdpa.
        capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
        try:
            return build(
                config,
                dtype=getattr(torch, dtype),
                attn_implementation="eager" if capped else "sdpa",
            )
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            return build(config, dtype=getattr(torch, dtype), attn_implementation="eager")


def _builder(info: ModelInfo, config: Any, *, is_decoder: bool) -> Any:  # noqa: ANN401
    """What builds the class that config.json names; the bare model where it names none."""
    import transformers

    if is_decoder:
        return transformers.AutoModelForCausalLM.from_config
    named: Any = getattr(transformers, _architecture(info), None)
    is_model = isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)
    if is_model and named.config_class is type(config):
        return named._from_config  # noqa: SLF001 -- what the Auto classes call
    return transformers.AutoModel.from_config


def _set(config: Any, name: str, *, value: bool) -> None:  # noqa: ANN401
    for each in {id(c): c for c in (config, config.get_text_config())}.values():
        if hasattr(each, name):
            setattr(each, name, value)


def _empty_on_meta() -> Any:  # noqa: ANN401
    """A mode in which ``torch.empty``, from which parameters are made, takes no memory."""
    import torch
    from torch.overrides import TorchFunctionMode

    class EmptyOnMeta(TorchFunctionMode):
        def __torch_function__(
            self,
            func: Any,  # noqa: ANN401
            types: Any,  # noqa: ANN401
            args: Any = (),  # noqa: ANN401
            kwargs: Any = None,  # noqa: ANN401
        ) -> Any:  # noqa: ANN401
            kwargs = dict(kwargs or {})
            if func is torch.empty:
                kwargs["device"] = "meta"
            return func(*args, **kwargs)

    return EmptyOnMeta()


def _leave_out_pooler(info: ModelInfo, module: Any) -> None:  # noqa: ANN401
    """Take away a pooler that the checkpoint has no weights for, and with it the output."""
    if getattr(module, "pooler", None) is None:
        return
    if not any(".pooler." in f".{name}" for name in info.tensors):
        module.pooler = None


def _refuse_stored_buffers(info: ModelInfo, module: nn.Module) -> tuple[str, ...]:
    """The names of all buffers, which are computed from the config.

    Raises:
        Unsupported: one is to be read from the checkpoint.
    """
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    stored = sorted(module.state_dict().keys() - parameters)
    buffers = dict(module.named_buffers())
    empty = sorted(name for name, value in buffers.items() if value.is_meta)
    if stored or empty:
        raise Unsupported(
            f"{info.name}: {type(module).__name__} has buffer {(stored or empty)[0]!r}, whose "
            "values are not computed from config.json; the onnx backend exports no such model"
        )
    return tuple(buffers)


def _sources(
    info: ModelInfo, module: nn.Module, apart: Mapping[str, str]
) -> tuple[dict[str, str], tuple[Dropped, ...]]:
    """The checkpoint's name of every parameter; of tied ones, which of them are not needed.

    apart: the names that are known already

    Raises:
        Unsupported: the checkpoint has no tensor of a parameter's name, or of another shape.
    """
    tied: dict[int, list[tuple[str, str]]] = {}
    sources: dict[str, str] = {}
    renamed = {**_renamed(info, module), **apart}
    for name, value in module.named_parameters(remove_duplicate=False):
        found = _found(info, module, name) or renamed.get(name)
        same = tied.setdefault(id(value), [])
        if found is not None:
            _check_shape(info, found, tuple(value.shape))
            same.append((name, found))
    for name, value in module.named_parameters(remove_duplicate=False):
        same = tied[id(value)]
        if not same:
            raise Unsupported(
                f"{info.name}: {type(module).__name__} has parameter {name!r}, which the "
                "checkpoint does not hold under this name: it is missing, or transformers joins "
                "tensors of this architecture when loading, which onnx does not; use another format"
            )
        sources[name] = same[0][1]
    dropped = [
        Dropped(name=other, reason=f"tied to {same[0][1]} by config.json")
        for same in tied.values()
        for _, other in same[1:]
        if other != same[0][1]
    ]
    return sources, tuple(dropped)


def _found(info: ModelInfo, module: Any, name: str) -> str | None:  # noqa: ANN401
    """The source tensor of a parameter: headless checkpoints lack the prefix, or have one."""
    prefix = f"{module.base_model_prefix}."
    candidates = (name, prefix + name, name.removeprefix(prefix))
    return next((each for each in candidates if each in info.tensors), None)


def _renamed(info: ModelInfo, module: nn.Module) -> dict[str, str]:
    """Source tensors by the parameter that transformers loads them as under another name."""
    loaded = loaded_as(module, info.tensors)
    return {target: source for source, target, joining in loaded if joining is None}


def _check_shape(info: ModelInfo, name: str, shape: tuple[int, ...]) -> None:
    if info.tensors[name].shape != shape:
        raise Unsupported(
            f"tensor {name!r}: shape {info.tensors[name].shape}, but config.json asks for {shape}; "
            "they do not belong together, or transformers rearranges it when loading"
        )


def _ignored(
    info: ModelInfo,
    module: Any,  # noqa: ANN401
    buffers: tuple[str, ...],
    known: set[str],
) -> list[Dropped]:
    """Source tensors that need no place, by the rules of transformers."""
    patterns = module._keys_to_ignore_on_load_unexpected or ()  # noqa: SLF001 -- a class attribute
    prefix = f"{module.base_model_prefix}."
    computed = {*buffers, *(prefix + name for name in buffers)}
    dropped = []
    for name in info.tensors:
        if name in known:
            continue
        if name in computed or name.removeprefix(prefix) in computed:
            dropped.append(Dropped(name=name, reason="computed from config.json"))
        elif any(re.search(pattern, name) for pattern in patterns):
            dropped.append(Dropped(name=name, reason=f"{type(module).__name__} ignores it"))
    return dropped


def _to_fake(module: nn.Module) -> Any:  # noqa: ANN401
    """Replace all parameters by fake tensors, ties kept; gives the mode they belong to."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # Experts take as many tokens as are sent to them, of which there is no number without values.
    fakes = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    known: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    with fakes:
        for each in module.modules():
            for name, old in each._parameters.items():  # noqa: SLF001 -- what torch.func swaps, too
                if old is None:
                    continue
                if id(old) not in known:
                    empty = torch.empty(old.shape, dtype=old.dtype)
                    known[id(old)] = (torch.nn.Parameter(empty, requires_grad=False), old)
                each._parameters[name] = known[id(old)][0]  # noqa: SLF001
    return fakes
