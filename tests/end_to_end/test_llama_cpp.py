"""A real llama.cpp runs what qconv wrote from a real model, as transformers runs the source."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import qconv
from qconv_gguf._llama_cpp import LlamaCpp

pytest.importorskip("xllamacpp", reason="pip install 'qconv[llama-cpp]'")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

TEXT = (
    "The water cycle describes how water moves on, above and below the surface of the Earth. The "
    "sun heats the oceans, water evaporates, rises, cools and condenses into clouds. Winds carry "
    "the clouds over land, where they let go of their water as rain or snow. Part of it flows back "
    "through rivers to the sea; another part seeps into the ground and is taken up by plants.\n\n"
    "def gcd(a: int, b: int) -> int:\n    while b:\n        a, b = b, a % b\n    return abs(a)\n\n"
    "In 1969, 600 million people watched two astronauts walk on the Moon; a third stayed in orbit."
)
CONVERSATION = (
    {"role": "system", "content": "You answer briefly."},
    {"role": "user", "content": "What is 7 * 6?  \n\nShow your work."},
    {"role": "assistant", "content": "7 * 6 = 42."},
)
HARD = (
    "a  b   c    d\t\te\n\n\nf",
    " leading and trailing ",
    "1234567890 3.14159 1,000,000 2026-11-22",
    "漢字かな交じり文。한국어 문장.",
    "\N{WAVING HAND SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-4} emoji \N{RAINBOW}",
    "def f(x):\n    return {k: v**2 for k, v in x.items()}  # ~!@#$%^&*()",
    "naïve Ünïcödé Привет мир שלום עולם مرحبا",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "it's we'll I'm they've DON'T",
)


@pytest.fixture(scope="module")
def written(smollm2_wide, tmp_path_factory) -> dict[str, Path]:
    """One file per format, all from one read of the weights."""
    formats = ("f32", "f16", "q8_0", "q4_k_m")
    out = tmp_path_factory.mktemp("written")
    conversion = qconv.convert(smollm2_wide, [f"gguf:{name}" for name in formats], out=out)
    return {
        name: artifact.files[0]
        for name, artifact in zip(formats, conversion.artifacts, strict=True)
    }


@pytest.fixture(scope="module")
def tokenizer(smollm2_wide):
    return transformers.AutoTokenizer.from_pretrained(smollm2_wide)


@pytest.fixture(scope="module")
def source_logits(smollm2_wide, tokenizer) -> tuple[list[int], torch.Tensor]:
    """Token ids of TEXT and the float model's log-probabilities after each."""
    ids = tokenizer(TEXT)["input_ids"]
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2_wide, dtype=torch.float32)
    with torch.no_grad():
        return ids, model(torch.tensor([ids])).logits[0].log_softmax(-1)


def divergence(path: Path, source: tuple[list[int], torch.Tensor]) -> float:
    """Mean KL divergence of llama.cpp's next-token distribution from the float model's, in nats."""
    ids, expected = source
    with LlamaCpp(path) as engine:
        found = engine.logits(ids).log_softmax(-1)
    return float((expected.exp() * (expected - found)).sum(-1).mean())


def test_float_files_give_the_sources_logits(written, source_logits):
    assert divergence(written["f32"], source_logits) < 1e-6
    assert divergence(written["f16"], source_logits) < 1e-4


def test_quantized_files_stay_close_to_the_source(written, source_logits, capsys):
    found = {name: divergence(written[name], source_logits) for name in ("q8_0", "q4_k_m")}
    with capsys.disabled():
        said = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        print(f"\n  mean KL divergence from the float model, in nats: {said}")
    assert 0 < found["q8_0"] < 0.02
    assert found["q8_0"] < found["q4_k_m"] < 0.4


@pytest.mark.parametrize("text", HARD)
def test_token_ids_are_those_of_transformers(written, tokenizer, text):
    with LlamaCpp(written["q8_0"]) as engine:
        assert engine.tokenize(text) == tokenizer(text)["input_ids"]


def test_a_rendered_conversation_has_the_same_ids(written, tokenizer):
    rendered = tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
    with LlamaCpp(written["q8_0"]) as engine:
        assert engine.chat_template == tokenizer.chat_template
        assert engine.tokenize(rendered) == tokenizer(rendered)["input_ids"]


def test_the_quantized_model_still_knows_the_capital_of_france(written):
    question = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    with LlamaCpp(written["q4_k_m"]) as engine:
        made = engine.generate(engine.tokenize(question), 24)
        assert "Paris" in engine.detokenize(made)
