"""Sections of the comparison's page that plugins add."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Section:
    """A part of the page: what a function returns, shown by a template of Jinja.

    `function` is the `module:function` that takes what was measured, its comparisons and verdicts
    (`mda.analysis`: Measurements, Comparisons, Verdicts), and returns the template's values by
    their names, or None where there is nothing to show. Texts are escaped.
    """

    name: str  # of its anchor on the page
    title: str
    function: str
    template: Path


SECTIONS: dict[str, Section] = {}
