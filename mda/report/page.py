"""One self-contained HTML page of a comparison: opens from a file, without a network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from mda import store
from mda.schema.plugins import implementation
from mda.schema.sections import LAST, SECTIONS

if TYPE_CHECKING:
    from mda.report.sections import Compared

TEMPLATES = Path(__file__).parent / "templates"
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


def render(context: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Returns the page's HTML. `context` is its title and sections, `data` feeds the script.

    Scripts, styles and data are inline, and its policy forbids any request.
    """
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            **context,
            style=Markup(_read("page.css")),
            script=Markup("\n".join(_read(name) for name in ("charts.js", "samples.js"))),
            plotly=Markup(get_plotlyjs()),
            data=Markup(as_script(data)),
        )
    )


def sections(compared: Compared) -> list[dict[str, Any]]:
    """Returns the name, title, heading and HTML of every section that has something to show."""
    parts = []
    for section in (*SECTIONS.values(), LAST):
        values = implementation(section.function)(compared) if section.function else {}
        if values is None:
            continue
        template = environment().from_string(section.template.read_text("utf-8"))
        parts.append(
            {
                "name": section.name,
                "title": section.title,
                "heading": section.heading or section.title,
                "html": Markup(template.render(**values).rstrip()),
            }
        )
    return parts


def environment() -> Environment:
    """Returns Jinja with this package's templates, which escape all texts."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "p": p_value}
    return environment


def write_page(path: Path, context: Mapping[str, Any], data: Mapping[str, Any]) -> float:
    """Writes the page and returns its size in MB."""
    text = render(context, data).encode()
    with store.replacing(path, "wb") as file:
        file.write(text)
    return len(text) / 1e6


def as_script(data: Mapping[str, Any]) -> str:
    """Returns JSON that is safe inside a `<script>` element, whatever its texts."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def number(value: float | None) -> str:
    """Returns three significant digits, whole numbers from 1,000 on, and a dash for None."""
    if value is None:
        return DASH
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", MINUS)


def percent(share: float) -> str:
    """Returns a share as a percentage, such as 95 %."""
    return f"{100 * share:g} %"


def p_value(value: float | None) -> str:
    """Returns two digits, and a dash where there was no test."""
    return DASH if value is None else "< 0.001" if value < 0.001 else f"{value:.2g}"


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns the lines of a Markdown table."""
    head, *lines = ("".join(f"| {cell} " if cell else "| " for cell in row) + "|"
                    for row in (headings, *rows))  # fmt: skip
    return [head, "|---" * len(headings) + "|", *lines]


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text("utf-8")
