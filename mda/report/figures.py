"""The figures of a comparison, as PNG for papers and notes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from mda.analysis.arms import Arm, by_arm
from mda.analysis.effects import Comparison
from mda.analysis.metrics import Measurements
from mda.analysis.series import arm_curves, head_difference, points, same_window, titles
from mda.report.dose import dose_figure
from mda.report.drawing import plt, save_figure
from mda.report.style import styles
from mda.types import HeadId

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEAD_SEEDS = 6  # columns of maps, beyond which they get too small to read
LEGEND_CHARACTERS = 160  # of one line below the curves
SHOWN = ("unit", "strongest", "icl_score")
REFERENCE_MARKS = {  # offset on the arm's line, marker, filled, label
    "control": (-0.26, "o", True, "arm - control"),
    "random": (-0.13, "o", False, "arm - random edits"),
    "matched": (0.0, "D", False, "arm - matched random edits, targeted samples excluded"),
    "matched_overlap": (0.13, "d", False, "arm - matched random edits, targeted samples allowed"),
    "repetition": (0.26, "s", False, "arm - trivial baseline (repetition)"),
}
TITLES = {
    "curves": "emergence of the unit in every arm, mean over seeds with its standard error",
    "forest": "effect of every arm at the window's end",
    "heads": "difference to control of every head at the window's end, seed by seed",
    "icl": "change of in-context learning against change of the unit, one point a run",
    "dose": "effect of removing or augmenting each band of scores",
}


def draw_all(
    measured: Measurements, rows: Sequence[Comparison], folder: Path, dpi: int
) -> dict[str, str]:
    """Draws every figure that has data, and returns their descriptions by file name."""
    figures = {
        "curves": curves_figure(measured),
        "forest": forest_figure(rows, measured),
        "heads": heads_figure(measured),
        "icl": icl_figure(measured),
        "dose": dose_figure(rows, titles(measured.runs)["unit"]),
    }
    written = {}
    for name, figure in figures.items():
        if figure is not None:
            save_figure(figure, folder / f"{name}.png", dpi)
            written[f"{name}.png"] = TITLES[name]
    return written


def curves_figure(measured: Measurements) -> Figure:
    """Draws the unit, the strongest head and the ICL score of all arms except score bands."""
    look, named = styles(by_arm(measured.runs)), titles(measured.runs)
    names = [name for name in SHOWN if name in named]
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 4.2), layout="constrained")
    for ax, name in zip(axes, names, strict=True):
        for curve in arm_curves(measured, name):
            if curve.arm.edit.is_band:
                continue
            style = look[curve.arm]
            label = f"{curve.arm.name} (n = {len(curve.seeds)})"
            ax.plot(
                curve.x, curve.mean, color=style.colour, ls=style.dash, lw=1.8, label=label,
                zorder=3 if not curve.arm.edit.is_control else 4,
            )  # fmt: skip
            low, high = curve.mean - curve.error, curve.mean + curve.error
            ax.fill_between(curve.x, low, high, color=style.colour, alpha=0.15, lw=0)
        ax.set_title(named[name], fontsize=10)
        _plain(ax)
    shared = same_window(measured.runs)
    axes[1].set_xlabel("training step" if shared else "steps since the window's start")
    handles, labels = axes[0].get_legend_handles_labels()
    columns = min(3, max(1, LEGEND_CHARACTERS // max(map(len, labels))))
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )
    return figure


def forest_figure(rows: Sequence[Comparison], measured: Measurements) -> Figure | None:
    """Draws mean paired differences with intervals, to control and to random edits."""
    rows = [row for row in rows if not row.arm.edit.is_band and row.effect.mean is not None]
    arms = list(dict.fromkeys(row.arm for row in rows))
    if not arms:
        return None
    look, named = styles(by_arm(measured.runs)), titles(measured.runs)
    names = [name for name in SHOWN if name in named]
    size = (4 * len(names), 1.6 + 0.5 * len(arms))
    figure, axes = plt.subplots(1, len(names), figsize=size, sharey=True, layout="constrained")
    for ax, metric in zip(axes, names, strict=True):
        for row in rows:
            if row.metric != metric or row.effect.mean is None:
                continue
            offset, marker, filled, _ = REFERENCE_MARKS[row.reference]
            y = arms.index(row.arm) + offset
            colour = look[row.arm].colour
            if row.effect.low is not None and row.effect.high is not None:
                ax.plot([row.effect.low, row.effect.high], [y, y], color=colour, lw=1.6)
            face = colour if filled else "white"
            ax.plot(row.effect.mean, y, marker, ms=6, mfc=face, mec=colour, mew=1.5)
        ax.axvline(0, color="0.6", lw=1, zorder=0)
        ax.set_title(textwrap.fill(named[metric], 24), fontsize=10)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        _plain(ax)
    axes[0].set_yticks(range(len(arms)), [textwrap.fill(arm.name, 40) for arm in arms])
    axes[0].set_ylim(len(arms) - 0.5, -0.5)
    marks = [
        Line2D([], [], ls="", marker=marker, ms=6, mfc="0.3" if filled else "white", mec="0.3",
               mew=1.5, label=label)
        for reference, (_, marker, filled, label) in REFERENCE_MARKS.items()
        if any(row.reference == reference for row in rows)
    ]  # fmt: skip
    figure.legend(handles=marks, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    tested = any(row.effect.low is not None for row in rows)
    ends = "bars: confidence interval" if tested else "one seed: no interval, no test"
    axes[1].set_xlabel(f"mean paired difference over seeds ({ends})")
    return figure


def heads_figure(measured: Measurements) -> Figure | None:
    """Draws layer x head maps of arm - control: a row for each arm, a column for each seed.

    Seeds are not averaged, because their induction heads are at different places. A box marks the
    fixed head. At most the first `HEAD_SEEDS` seeds are drawn. Returns None where no edit targets a
    head.
    """
    aimed = [run for run in measured.runs if run.of_heads]
    arms = {
        arm: runs
        for arm, runs in by_arm(aimed).items()
        if not arm.edit.is_control and not arm.edit.is_band
    }
    shown = sorted({seed for runs in arms.values() for seed in runs})[:HEAD_SEEDS]
    if not arms:
        return None
    maps = {
        (arm, seed): head_difference(measured, runs[seed])
        for arm, runs in arms.items()
        for seed in shown
        if seed in runs
    }
    limit = max(float(np.nanmax(np.abs(values))) for values in maps.values()) or 1.0
    size = (1.6 * len(shown) + 2.4, 1.45 * len(arms) + 0.6)
    figure, axes = plt.subplots(
        len(arms), len(shown), figsize=size, squeeze=False, layout="constrained"
    )
    image = None
    for line, (arm, runs) in zip(axes, arms.items(), strict=True):
        for ax, seed in zip(line, shown, strict=True):
            ax.set(xticks=[], yticks=[])
            if (arm, seed) in maps:
                values = maps[arm, seed]
                image = ax.imshow(values, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
                _box(ax, runs[seed][0].heads)
            else:
                ax.axis("off")
        line[0].set_ylabel(_wrapped(arm.name), fontsize=8, rotation=0, ha="right", va="center")
    for ax, seed in zip(axes[0], shown, strict=True):
        ax.set_title(f"seed {seed}", fontsize=9)
    axes[-1][0].set_xlabel("head (layer: downwards)", fontsize=8)
    assert image is not None
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 0.3 + 0.1 * len(arms)))
    bar.set_label("score, arm - control", fontsize=9)
    return figure


def icl_figure(measured: Measurements) -> Figure | None:
    """Draws differences to control by run: strongest head, else the unit, against ICL score."""
    pairs_of: dict[Arm, list[tuple[float, float]]] = {}
    for run, x, y in points(measured):
        pairs_of.setdefault(run.arm, []).append((x, y))
    if not pairs_of:
        return None
    look, named = styles(by_arm(measured.runs)), titles(measured.runs)
    n_named = sum(not arm.edit.is_band for arm in pairs_of)
    size = (6.2, 4.2 + 0.18 * n_named)  # room for the names below
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    for arm, pairs in pairs_of.items():
        x, y = np.array(pairs).T
        face = "white" if arm.edit.is_random else look[arm].colour
        marker = "s" if arm.edit.intervention == "augment" else "o"
        band = arm.edit.is_band
        ax.plot(
            x, y, marker, mfc="0.8" if band else face, mec="0.6" if band else look[arm].colour,
            ms=4 if band else 6, alpha=0.9, label=None if band else arm.name,
            zorder=1 if band else 2,
        )  # fmt: skip
    every = np.array([pair for pairs in pairs_of.values() for pair in pairs])
    if len(every) > 2 and np.ptp(every, axis=0).min() > 0:
        from scipy import stats  # takes half a second

        rho = stats.spearmanr(every[:, 0], every[:, 1])[0]
        ax.set_title(f"Spearman's rho over {len(every)} runs: {rho:.2f}", fontsize=10, loc="left")
    ax.axhline(0, color="0.85", lw=1, zorder=0)
    ax.axvline(0, color="0.85", lw=1, zorder=0)
    ax.set(xlabel=f"{named.get('strongest', named['unit'])}: run - control")
    ax.set(ylabel="ICL score: run - control (nats; lower is more)")
    _plain(ax)
    figure.legend(loc="outside lower left", frameon=False, fontsize=8)
    return figure


def _wrapped(name: str) -> str:
    return textwrap.fill(name, 16)


def _box(ax: Axes, heads: Sequence[str]) -> None:
    for layer, head in map(HeadId.parse, heads):
        corner = (head - 0.5, layer - 0.5)
        ax.add_patch(Rectangle(corner, 1, 1, fill=False, ec="black", lw=1.6))


def _plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=9)
