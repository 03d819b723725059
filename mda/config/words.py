"""Words of a command line that Hydra and a shell read back as the original settings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from hydra.core.override_parser.types import Quote, QuotedString

from mda.schema.keys import settings

PLAIN = re.compile(r"(?!(?:null|true|false|nan|inf)$)[a-z_./][\w./+@-]*", re.ASCII | re.IGNORECASE)
"""Texts that Hydra reads literally; others need quotes."""


def setting_word(key: str, value: str | Sequence[str]) -> str:
    """Returns the override `key=value`, or `key=[a,b]`, with texts quoted where needed."""
    if isinstance(value, str):
        return f"{key}={_text(value)}"
    return f"{key}=[{','.join(map(_text, value))}]"


def advice(word: str) -> str:
    """Returns how to type a text that Hydra would misread; empty for other settings."""
    key, _, value = word.partition("=")
    kinds = {str(item.type) for _, item in settings().get(key, ())}
    if not any("str" in kind for kind in kinds):
        return ""
    listed = any("list" in kind for kind in kinds) and re.fullmatch(r"\[(.*)\]", value)
    whole = setting_word(key, listed[1].split(",") if listed else value)
    return f"; texts with special characters need quotes: {shlex.quote(whole)}"


def _text(value: str) -> str:
    return value if PLAIN.fullmatch(value) else QuotedString(value, Quote.double).with_quotes()
