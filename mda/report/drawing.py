"""Matplotlib as every figure here uses it: without a display, a file whole or not at all."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from mda import store

__all__ = ["plt", "save_figure"]

matplotlib.rcParams["text.parse_math"] = False  # labels of data stand in names of arms


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Write a PNG, the same bytes for the same figure, and let go of the figure."""
    with store.replacing(path, "wb") as file:
        figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    plt.close(figure)
