"""Matplotlib settings of all figures: no display, files written atomically."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.text import Text

from mda import store
from mda.schema.setting import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plt", "save_figure"]

matplotlib.rcParams["text.parse_math"] = False  # names of arms contain labels of the data


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Writes a PNG, with the same bytes for the same figure, and closes the figure.

    Terminal control characters are removed from texts, because matplotlib prints a character that
    its font lacks in a warning. A figure without a layout of its own gets a tight one.
    """
    for text in figure.findobj(Text):
        text.set_text(printable(text.get_text()))  # type: ignore[attr-defined]
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    with store.replacing(path, "wb") as file:
        # Without the name of matplotlib's version, which would change the bytes.
        figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    plt.close(figure)
