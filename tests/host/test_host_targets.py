"""Targets as people write them."""

from __future__ import annotations

import re

import pytest

from qconv._host import Host, load_plugins
from qconv.errors import UsageError


@pytest.fixture
def host(install: object) -> Host:
    return load_plugins()


@pytest.mark.parametrize("text", ["gguf:q4_k_m", "gguf:q4km", "GGUF:Q4_K_M", " gguf : Q4-K-M "])
def test_case_and_separators_do_not_count(host: Host, text: str) -> None:
    target = host.resolve_target(text)
    assert (target.label, target.format, target.options) == ("gguf:q4_k_m", "q4_k_m", {})
    assert target.backend is host.backend_spec("gguf")


def test_options_take_their_own_spelling(host: Host) -> None:
    target = host.resolve_target("gguf:q8_0, Search = GGML, name = My Model")
    assert target.options == {"search": "ggml", "name": "My Model"}
    assert target.label == "gguf:q8_0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gguf:q4kmm", "unknown target 'gguf:q4kmm'; did you mean gguf:q4_k_m?"),
        ("gguff:q4km", "unknown target 'gguff:q4km'; did you mean gguf:q4_k_m?"),
        ("q4km", "unknown target 'q4km'; did you mean gguf:q4_k_m?"),
        ("gguf:int8", "unknown target 'gguf:int8'; gguf offers: q8_0, q4_k_m, q4_k_s"),
        ("zzz:99", "unknown target 'zzz:99'; backends: gguf"),
        ("gguf:", "target 'gguf:' names no format; gguf offers: q8_0, q4_k_m, q4_k_s"),
        ("gguf", "target 'gguf' names no format; gguf offers: q8_0, q4_k_m, q4_k_s"),
        ("", "unknown target ''; backends: gguf"),
        ("gguf:q8_0,serch=ggml", "gguf has no option 'serch'; did you mean search?"),
        ("gguf:q8_0,zzz=1", "gguf has no option 'zzz' (options: search, name)"),
        ("gguf:q8_0,search=fast", "option 'search' cannot be 'fast' (choices: default, ggml)"),
        ("gguf:q8_0,search=gml", "option 'search' cannot be 'gml'; did you mean ggml?"),
        ("gguf:q8_0,search", "'search' is not an option; write name=value"),
        ("gguf:q8_0,search=", "'search=' is not an option; write name=value"),
        ("gguf:q8_0,", "'' is not an option; write name=value"),
        ("gguf:q8_0,search=ggml,SEARCH=ggml", "option 'search' is given twice"),
    ],
)
def test_wrong_targets_say_what_is_right(host: Host, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        host.resolve_target(text)


def test_targets_are_frozen(host: Host) -> None:
    with pytest.raises(AttributeError):
        host.resolve_target("gguf:q8_0").format = "q4_k_m"
