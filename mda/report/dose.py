"""Dose-response: the effect of editing each band of influence scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mda.analysis.arms import band_middle, without_band
from mda.analysis.effects import Comparison
from mda.report.drawing import plt
from mda.report.style import styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def dose_figure(rows: Sequence[Comparison], title: str) -> Figure | None:
    """Draws the effect on the unit by edited score band.

    Returns None without bands. Horizontal lines, with their intervals, are random edits of the same
    kind. `title` names the score.
    """
    known = [
        row
        for row in rows
        if (row.metric, row.reference) == ("unit", "control") and row.effect.mean is not None
    ]
    bands = sorted((row for row in known if row.arm.edit.is_band), key=lambda r: band_middle(r.arm))
    if not bands:
        return None
    figure, ax = plt.subplots(figsize=(6.2, 4.2), layout="constrained")
    look = styles(without_band(row.arm) for row in bands)
    for line, drawn in look.items():
        own = [row for row in bands if without_band(row.arm) == line]
        x = np.array([band_middle(row.arm) for row in own])
        y = np.array([row.effect.mean for row in own], dtype=float)
        ax.plot(x, y, marker="o", color=drawn.colour, ls=drawn.dash, label=line.name)
        for at, row in zip(x, own, strict=True):
            if row.effect.low is not None and row.effect.high is not None:
                ax.plot([at, at], [row.effect.low, row.effect.high], color=drawn.colour, lw=1.5)
    _random_level(
        ax,
        [row for row in known if row.arm.edit.is_random],
        {line.edit.intervention for line in look},
    )
    ax.axhline(0, color="0.6", lw=1, zorder=0)
    ax.set(xlim=(0, 100), xlabel="percentile of the influence score (0 = lowest)")
    ax.set(ylabel=f"{title}: arm - control")
    ax.legend(frameon=False, fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def _random_level(ax: Axes, rows: Sequence[Comparison], kinds: set[str]) -> None:
    look = styles(row.arm for row in rows)
    for row in rows:
        if row.arm.edit.intervention in kinds and row.effect.mean is not None:
            colour, dash = look[row.arm].colour, look[row.arm].dash
            ax.axhline(row.effect.mean, color=colour, ls=dash, lw=1.2, label=row.arm.name)
            if row.effect.low is not None and row.effect.high is not None:
                ax.axhspan(row.effect.low, row.effect.high, color=colour, alpha=0.15, lw=0)
