"""A figure of scores by rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_ranked(scores: np.ndarray, title: str, ax: Axes | None = None) -> Axes:
    """Draws scores from the highest to the lowest, and states the share of the top 10 %.

    The share is that of the sum of the positive scores.
    """
    ax = ax or pyplot.subplots(figsize=(6, 3.5), layout="constrained")[1]
    ranked = np.sort(scores)[::-1]
    ax.plot(np.linspace(0, 100, len(ranked)), ranked, color="black")
    ax.axhline(0, color="0.7", linewidth=0.8)
    total = ranked[ranked > 0].sum()
    tenth = ranked[: max(1, round(len(ranked) / 10))]
    if total > 0:
        share = tenth[tenth > 0].sum() / total
        title = f"{title}: the top 10 % hold {share:.0%} of the positive scores"
    ax.set(xlabel="rows, percent, highest score first", ylabel="score")
    ax.set_title(title, fontsize="medium", loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
