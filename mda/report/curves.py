"""Figures and tables of one run's emergence curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mda.emergence.onset import Curve, Onset, column, heads_of, unit_onset
from mda.report.drawing import plt, save_figure
from mda.types import HeadId


def strongest_heads(
    curve: Curve, metric: str, threshold: float, n: int = 5
) -> list[tuple[HeadId, float, Onset]]:
    """Returns the n heads with the highest final value of a metric: head, value, onset."""
    final = [(curve[-1][f"emergence/{metric}/{head}"], head) for head in heads_of(curve, metric)]
    ranked = sorted(final, key=lambda pair: (-pair[0], pair[1]))[:n]
    return [(head, value, unit_onset(curve, metric, head, threshold)) for value, head in ranked]


def plot_curves(curve: Curve, metric: str, threshold: float, path: Path, dpi: int) -> None:
    """Plots every head's emergence above, copying and in-context learning below."""
    steps = column(curve, "step")
    best, *rest = strongest_heads(curve, metric, threshold, 4)
    named = [best[0], *(head for head, value, _ in rest if value >= threshold)]
    fig, (top, low) = plt.subplots(2, 1, figsize=(7.2, 6), sharex=True, height_ratios=(3, 2))
    for head in heads_of(curve, metric):
        values = column(curve, f"emergence/{metric}/{head}")
        if head in named:
            band = 1.96 * column(curve, f"emergence/{metric}_se/{head}")
            (line,) = top.plot(steps, values, lw=2, label=str(head), zorder=3)
            top.fill_between(steps, values - band, values + band, color=line.get_color(), alpha=0.2)
        else:
            top.plot(steps, values, color="0.8", lw=0.8)
    top.axhline(threshold, color="0.4", ls=":", lw=1, label=f"onset threshold {threshold:g}")
    top.set_ylabel(metric.replace("_", "-") + " score")
    top.legend(frameon=False, fontsize=8)
    low.plot(steps, column(curve, "emergence/copy_gain"), color="tab:green", label="copy gain")
    score = column(curve, "emergence/icl_score")
    measured = np.isfinite(score)  # held-out text is measured at fewer steps
    low.plot(steps[measured], score[measured], color="tab:purple", label="ICL score")
    low.axhline(0, color="0.8", lw=0.8)
    low.set(xlabel="training step", ylabel="nats")
    low.legend(frameon=False, fontsize=8)
    for ax in (top, low):
        ax.spines[["top", "right"]].set_visible(False)
    save_figure(fig, path, dpi)


def head_matrix(row: Mapping[str, float], metric: str, heads: Sequence[HeadId]) -> np.ndarray:
    """Returns a metric of every head at one point of the curve, [L, H]."""
    values = np.zeros((1 + max(h.layer for h in heads), 1 + max(h.head for h in heads)))
    for head in heads:
        values[head] = row[f"emergence/{metric}/{head}"]
    return values


def plot_heat_maps(curve: Curve, metrics: Sequence[str], path: Path, dpi: int) -> None:
    """Plots a layer x head heat map of each metric at the end of the curve."""
    fig, axes = plt.subplots(1, len(metrics), figsize=(3.6 * len(metrics), 3.2), squeeze=False)
    for ax, metric in zip(axes[0], metrics, strict=True):
        values = head_matrix(curve[-1], metric, heads_of(curve, metric))
        image = ax.imshow(values, cmap="viridis", vmin=0, aspect="auto")
        if values.size <= 64:
            for (layer, head), value in np.ndenumerate(values):
                colour = "white" if value < values.max() / 2 else "black"
                ax.text(head, layer, f"{value:.2f}", ha="center", va="center", color=colour)
        ax.set(xlabel="head", ylabel="layer", title=metric.replace("_", " "))
        ax.set_xticks(range(values.shape[1]))
        ax.set_yticks(range(values.shape[0]))
        fig.colorbar(image, ax=ax, fraction=0.05)
    fig.suptitle(f"step {int(curve[-1]['step']):,}", fontsize=10)
    save_figure(fig, path, dpi)
