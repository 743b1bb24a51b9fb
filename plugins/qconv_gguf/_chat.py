"""Writes a user's message as a file's chat template does, in jinja2, which templates are made for.

What templates may call beside jinja2's own is what transformers gives them:
https://huggingface.co/docs/transformers/chat_templating_writing
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import NoReturn

from qconv.errors import BrokenPlugin, Unsupported


def rendered(template: str, prompt: str, *, bos_token: str, eos_token: str) -> str:
    """The message and all that stands before the answer.

    bos_token, eos_token: texts of the tokens that begin and end a text; empty where there is none

    Raises:
        BrokenPlugin: jinja2 is not installed.
        Unsupported: the template is no sound program, or refuses the message.
    """
    try:
        from jinja2.exceptions import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise BrokenPlugin(
            "a chat template is written by jinja2, which is missing: "
            "pip install 'qconv[calibration]'"
        ) from error
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    environment.filters["tojson"] = _json
    try:
        return environment.from_string(template).render(
            messages=[{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            tools=None,
            documents=None,
            bos_token=bos_token,
            eos_token=eos_token,
        )
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise Unsupported(
            f"the chat template refuses a user's message ({error}); give the prompt as plain text"
        ) from error


def _now(form: str) -> str:
    """The date that some templates tell the model."""
    return datetime.now().strftime(form)  # noqa: DTZ005 - of wherever the user is


def _json(
    value: object,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - as templates call it
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """As JSON; jinja2's own filter would write ``<`` and quotes for web pages."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: str) -> NoReturn:
    """What templates call to refuse a conversation."""
    raise ValueError(message)
