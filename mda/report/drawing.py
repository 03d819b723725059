"""Matplotlib as every figure here uses it: without a display, a file whole or not at all."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text

from mda import store
from mda.schema.setting import printable

__all__ = ["plt", "save_figure"]

matplotlib.rcParams["text.parse_math"] = False  # labels of data stand in names of arms


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Write a PNG, the same bytes for the same figure, and let go of the figure.

    Texts lose what a terminal takes for commands: matplotlib warns of a character that its font
    lacks, and prints it. A figure without a layout of its own gets a tight one.
    """
    for text in figure.findobj(Text):
        text.set_text(printable(text.get_text()))  # type: ignore[attr-defined]
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    with store.replacing(path, "wb") as file:
        figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    plt.close(figure)
