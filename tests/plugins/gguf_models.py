"""Tiny models made on the spot: random weights, vocabularies learnt from a few lines."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

TEXT = """
The quick brown fox jumps over the lazy dog. The dog sleeps; the fox runs on and on and on.
It's said that you'll find what you're looking for: I've looked, he'd looked, they're looking.
In 1984 there were 12345 of them, in 2024 about 67,890 -- or 3.14159 times as many (roughly 33%).
def main(argc, argv):
    for index in range(0, 100):
        if index % 2 == 0 and not argv[index].startswith("--"):
            print(f"{index}: {argv[index]}", end="\\n\\n")
    return {"key": [1, 2, 3], "other": None}
Der schnelle braune Fuchs springt über den faulen Hund; naïve café, señor, œuvre, Ångström.
Съешь же ещё этих мягких французских булок, да выпей чаю.
我想在苹果公司工作一整天。日本語の文章です。
"""

HARD = (
    "",
    " ",
    "Hello, world!",
    " leading and trailing  ",
    "runs   of    spaces\tand\ttabs\t\t and\n\n\nnewlines \n \n  \r\n\r\n end",
    "1 12 123 1234 12345 123456 1234567 3.14159 1,000,000 50% 0x1F ½ ² Ⅷ ٣",
    "I'm you're he's they'll we've I'd don't 'quoted' I'M YOU'RE 'Tis o'clock ''",
    "我想在apple工作1314151天 日本語の文章です。한국어도 있습니다",
    "emoji 🚀 😶\u200d🌫️ ✅ 🦙🦙 e\u0301 café \u200b zero\u00a0nbsp",
    "def f(x):\n    return {'a': [x**2 for _ in range(10)]}  # comment\n\n\tpass",
    "!?.,;:-_=+*/\\|@#$%^&~`\"'<>()[]{} ====---->>> ...... ``````",
    "CamelCaseWords mixedUPPERlower ALLCAPS ß İstanbul ǅ naïve Ångström",
    "a<|end|>b <|start|>user\nHi<|end|>\n<|start|>assistant\n",
)

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def llama_config(**changes: Any) -> dict[str, Any]:
    """config.json of a model of two blocks with four heads of 64 over two key-value heads."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    }
    return {**config, **changes}


def llama_weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Random weights of the shapes that ``config`` demands, in float32."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * shape[-1] ** -0.5

    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    linears = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    weights = {
        "model.embed_tokens.weight": random(config["vocab_size"], hidden) * 8,
        "model.norm.weight": 1 + 0.1 * random(hidden),
    }
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = random(config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        weights[block + "input_layernorm.weight"] = 1 + random(hidden)
        weights[block + "post_attention_layernorm.weight"] = 1 + random(hidden)
        for name, shape in linears.items():
            weights[f"{block}{name}.weight"] = random(*shape)
            kind = "attention_bias" if name.startswith("self_attn") else "mlp_bias"
            if config.get(kind):
                weights[f"{block}{name}.bias"] = random(shape[0])
    return weights


def save_model(
    folder: Path,
    config: dict[str, Any],
    files: dict[str, bytes],
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A model directory with the tokenizer ``files``."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.to(dtype) for name, value in llama_weights(config).items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def byte_level_files(
    *splits: dict[str, Any], size: int = 500, template: bool = False, **model: Any
) -> dict[str, bytes]:
    """A byte-level BPE tokenizer learnt from TEXT. splits: pre-tokenizers before ByteLevel."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(**model))
    regexes = any(split["type"] == "Split" for split in splits)
    own = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": not regexes,
    }
    steps = [*splits, own]
    state = json.loads(tokenizer.to_str())
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps} if splits else own
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|begin|>", "<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    tokenizer.add_tokens(["<tool>"])
    state = json.loads(tokenizer.to_str())
    if template:
        state["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<|begin|>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {
                "<|begin|>": {"id": "<|begin|>", "ids": [0], "tokens": ["<|begin|>"]}
            },
        }
    else:
        state["post_processor"] = own
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        "clean_up_tokenization_spaces": False,
    }
    return {
        "tokenizer.json": json.dumps(state).encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
        "chat_template.jinja": TEMPLATE.encode(),
    }


def split(pattern: str) -> dict[str, Any]:
    """A pre-tokenizer that isolates what ``pattern`` matches."""
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def sentencepiece_model(size: int = 450, **options: Any) -> bytes:
    """A SentencePiece BPE model with byte fallback, learnt from TEXT, as Llama 2's is."""
    import sentencepiece

    model = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
        "character_coverage": 0.999,
        "minloglevel": 2,
        **options,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines() * 4),
        model_writer=model,
        vocab_size=size,
        **settings,
    )
    return model.getvalue()


def sentencepiece_json(
    model: bytes, *, legacy: bool, chat: tuple[str, ...] = ()
) -> dict[str, bytes]:
    """The tokenizer.json that transformers makes of a SentencePiece model; chat: added tokens."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [processor.id_to_piece(n) for n in range(processor.vocab_size())]
    ids = {piece: number for number, piece in enumerate(pieces)}
    scored = [n for n in range(len(pieces)) if not processor.is_byte(n) and n > 2]
    merges = [
        [piece[:cut], piece[cut:]]
        for piece in sorted((pieces[n] for n in scored), key=lambda p: -processor.get_score(ids[p]))
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    marked = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    prepended = [{"type": "Prepend", "prepend": "\u2581"}, marked]
    metaspace = {
        "type": "Metaspace",
        "replacement": "\u2581",
        "prepend_scheme": "always",
        "split": False,
    }
    for text in chat:
        ids[text] = len(ids)
    added = [
        {
            "id": ids[text],
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for text in ("<unk>", "<s>", "</s>", *chat)
    ]
    state = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": prepended} if legacy else None,
        "pre_tokenizer": None if legacy else metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": merges,
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
    }
    return {
        "tokenizer.json": json.dumps(state).encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }
