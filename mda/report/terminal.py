"""Texts from data and from others' files, on their way to a terminal."""

from __future__ import annotations

from rich.markup import escape

from mda.schema.setting import printable


def shown(text: str) -> str:
    """A text for rich: no markup in it is read, and no command to the terminal passed on."""
    return escape(printable(text))
