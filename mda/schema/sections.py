"""The sections of the comparison's page, in their order. Plugins add theirs before the last."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

TEMPLATES = Path(__file__).parents[1] / "report" / "templates" / "sections"


@dataclass(frozen=True)
class Section:
    """A part of the page: what a function returns, shown by a template of Jinja.

    `function` is the `module:function` that takes a comparison, `mda.report.sections.Compared`, and
    returns the template's values by their names, or None where there is nothing to show. Without
    one the template is shown as it is, for what the page's script draws. Texts are escaped.
    """

    name: str  # of its anchor on the page
    title: str  # in the page's list of sections
    function: str  # empty for a template without values
    template: Path
    heading: str = ""  # above it, the title if empty


def _own(name: str, title: str, heading: str = "", has_values: bool = True) -> Section:
    function = f"mda.report.sections:{name}" if has_values else ""
    return Section(name, title, function, TEMPLATES / f"{name}.html.j2", heading)


SECTIONS: dict[str, Section] = {
    section.name: section
    for section in (
        _own("curves", "Curves", "Emergence in every arm"),
        _own("verdicts", "Verdicts"),
        _own("effects", "Effects", "Effect of each arm"),
        _own("heads", "Heads", "Every head over training", has_values=False),
        _own(
            "icl", "In-context learning", "In-context learning against the unit", has_values=False
        ),
        _own("dose", "Dose-response"),
        _own("samples", "Samples", "Samples of highest and lowest influence"),
        _own("catalysts", "Catalysts", "What explains the influence"),
    )
}
LAST = _own("recompute", "Recompute", "How to recompute every number")
