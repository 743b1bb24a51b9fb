"""Tiny random models with a tokenizer of their own, and texts to calibrate them on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

VOCABULARY = 400
CONTEXT = 64
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
)
_WORDS = """
river stone lantern quiet copper window garden winter
engine paper silver morning bridge signal harbour meadow
thunder ladder velvet compass orchard pebble canvas whistle
anchor
"""
WORDS = tuple(_WORDS.split())


def prose(seed: int, words: int = 200) -> str:
    """A text that no other seed gives."""
    chosen = random.Random(seed)
    return " ".join(chosen.choice(WORDS) + str(chosen.randrange(1000)) for _ in range(words))


def tokenizer(*, begin: bool = True, template: str | None = TEMPLATE) -> Any:
    """Byte-level BPE with <s> before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 20,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    if begin:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    made.chat_template = template
    return made


def save_model(folder: Path, kind: str = "llama", **changes: Any) -> Path:
    """A tiny model with its tokenizer, below ``folder``."""
    from model.tiny import save

    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT}
    save(kind, folder, **{**sizes, **changes})
    tokenizer().save_pretrained(folder)
    return folder


def write_jsonl(path: Path, *records: Any) -> Path:
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def write_texts(path: Path, count: int, words: int = 200, seed: int = 0) -> Path:
    return write_jsonl(path, *({"text": prose(seed + number, words)} for number in range(count)))
