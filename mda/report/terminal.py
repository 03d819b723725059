"""Escaping data and the text of files before they are printed to a terminal."""

from __future__ import annotations

from rich.markup import escape

from mda.schema.setting import printable


def shown(text: str) -> str:
    """Returns a text for rich without markup and without terminal control characters."""
    return escape(printable(text))
