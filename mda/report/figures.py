"""The figures of a comparison, as PNG for papers and notes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from mda.report.arms import CONTROL, Arm, by_arm
from mda.report.effects import Comparison
from mda.report.metrics import Measurements, control_of
from mda.report.series import CURVES, arm_curves, head_difference, same_window, styles

FOREST = ("unit", "mechanism", "icl_score")
TITLES = {
    "curves": "emergence of the unit in every arm, mean over seeds with its standard error",
    "forest": "effect of every arm at the window's end",
    "heads": "difference to control of every head at the window's end",
    "icl": "change of in-context learning against change of the unit, one point a run",
    "dose": "effect of removing or augmenting each band of scores",
}


def draw_all(
    measured: Measurements, rows: Sequence[Comparison], folder: Path, dpi: int = 150
) -> dict[str, str]:
    """Write every figure there are data for; returns file name -> what it shows."""
    figures = {
        "curves": curves_figure(measured),
        "forest": forest_figure(rows),
        "heads": heads_figure(measured),
        "icl": icl_figure(measured),
        "dose": dose_figure(rows),
    }
    written = {}
    for name, figure in figures.items():
        if figure is not None:
            figure.savefig(folder / f"{name}.png", dpi=dpi, metadata={"Software": None})
            plt.close(figure)
            written[f"{name}.png"] = TITLES[name]
    return written


def curves_figure(measured: Measurements) -> Figure:
    """Fixed head, strongest head and ICL score of all arms but score bands."""
    names = ("unit", "mechanism", "icl_score")
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
    look = styles([arm for arm in by_arm(measured.runs) if not arm.is_band])
    for ax, name in zip(axes, names, strict=True):
        for curve in arm_curves(measured, name):
            if curve.arm.is_band:
                continue
            style = look[curve.arm]
            label = f"{curve.arm.name} (n = {len(curve.seeds)})"
            ax.plot(
                curve.x, curve.mean, color=style.colour, ls=style.dash, lw=1.8, label=label,
                zorder=3 if curve.arm.intervention != CONTROL else 4,
            )  # fmt: skip
            low, high = curve.mean - curve.error, curve.mean + curve.error
            ax.fill_between(curve.x, low, high, color=style.colour, alpha=0.15, lw=0)
        ax.set_title(CURVES[name], fontsize=10)
        _plain(ax)
    shared = same_window(measured.runs)
    figure.supxlabel("training step" if shared else "steps since the window's start", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def forest_figure(rows: Sequence[Comparison]) -> Figure:
    """Mean paired differences with intervals, to control (filled) and to random edits (open)."""
    rows = [row for row in rows if not row.arm.is_band and row.effect.mean is not None]
    arms = list(dict.fromkeys(row.arm for row in rows))
    look = styles(arms)
    figure, axes = plt.subplots(
        1, len(FOREST), figsize=(12, 1.6 + 0.5 * len(arms)), sharey=True, layout="constrained"
    )
    for ax, metric in zip(axes, FOREST, strict=True):
        for row in rows:
            if row.metric != metric or row.effect.mean is None:
                continue
            y = arms.index(row.arm) + (-0.14 if row.reference == "control" else 0.14)
            colour = look[row.arm].colour
            if row.effect.low is not None and row.effect.high is not None:
                ax.plot([row.effect.low, row.effect.high], [y, y], color=colour, lw=1.6)
            face = colour if row.reference == "control" else "white"
            ax.plot(row.effect.mean, y, "o", ms=6, mfc=face, mec=colour, mew=1.5)
        ax.axvline(0, color="0.6", lw=1, zorder=0)
        ax.set_title(CURVES[metric], fontsize=10)
        _plain(ax)
    axes[0].set_yticks(range(len(arms)), [arm.name for arm in arms])
    axes[0].set_ylim(len(arms) - 0.5, -0.5)
    marks = [
        plt.Line2D([], [], ls="", marker="o", ms=6, mfc=face, mec="0.3", mew=1.5, label=label)
        for face, label in (("0.3", "arm - control"), ("white", "arm - random edits"))
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    tested = any(row.effect.low is not None for row in rows)
    ends = "bars: bootstrap interval" if tested else "one seed: no interval, no test"
    figure.supxlabel(f"mean paired difference over seeds ({ends})", fontsize=10)
    return figure


def heads_figure(measured: Measurements) -> Figure | None:
    """One layer x head map of arm - control for each arm; boxes mark the fixed heads."""
    arms = {
        arm: seeds
        for arm, seeds in by_arm(measured.runs).items()
        if arm.intervention != CONTROL and not arm.is_band
    }
    if not arms:
        return None
    maps = {arm: head_difference(measured, seeds) for arm, seeds in arms.items()}
    limit = max(float(np.nanmax(np.abs(values))) for values in maps.values()) or 1.0
    columns = min(3, len(maps))
    lines = -(-len(maps) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.6 * columns, 3.1 * lines), squeeze=False, layout="constrained"
    )
    image = None
    for ax, (arm, values) in zip(axes.flat, maps.items(), strict=False):
        image = ax.imshow(values, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
        ax.set_xticks(range(0, values.shape[1], -(-values.shape[1] // 8)))
        ax.set_yticks(range(0, values.shape[0], -(-values.shape[0] // 8)))
        ax.set(xlabel="head", ylabel="layer")
        ax.set_title(f"{arm.name} (n = {len(arms[arm])})", fontsize=9)
        for unit in {run.unit for runs in arms[arm].values() for run in runs}:
            _box(ax, unit)
    for ax in list(axes.flat)[len(maps) :]:
        ax.set_visible(False)
    assert image is not None
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("score, arm - control (mean over seeds)", fontsize=9)
    return figure


def icl_figure(measured: Measurements) -> Figure | None:
    """Differences to control, run by run: strongest head against ICL score."""
    points: dict[Arm, list[tuple[float, float]]] = {}
    for run in measured.runs:
        if run.arm.intervention == CONTROL:
            continue
        mine = measured.of(run, run).values
        theirs = measured.of(control_of(run, measured.runs), run).values
        a, b, c, d = (v[k] for k in ("mechanism", "icl_score") for v in (mine, theirs))
        if a is not None and b is not None and c is not None and d is not None:
            points.setdefault(run.arm, []).append((a - b, c - d))
    if not points:
        return None
    look = styles(list(points))
    figure, ax = plt.subplots(figsize=(6.2, 4.6), layout="constrained")
    for arm, pairs in points.items():
        x, y = np.array(pairs).T
        face = "white" if arm.is_random else look[arm].colour
        marker = "s" if arm.intervention == "augment" else "o"
        band = arm.is_band
        ax.plot(
            x, y, marker, mfc="0.8" if band else face, mec="0.6" if band else look[arm].colour,
            ms=4 if band else 6, alpha=0.9, label=None if band else arm.name,
            zorder=1 if band else 2,
        )  # fmt: skip
    every = np.array([pair for pairs in points.values() for pair in pairs])
    if len(every) > 2 and np.ptp(every, axis=0).min() > 0:
        rho = stats.spearmanr(every[:, 0], every[:, 1])[0]
        ax.set_title(f"Spearman's rho over {len(every)} runs: {rho:.2f}", fontsize=10, loc="left")
    ax.axhline(0, color="0.85", lw=1, zorder=0)
    ax.axvline(0, color="0.85", lw=1, zorder=0)
    ax.set(xlabel="induction score, strongest head: run - control")
    ax.set(ylabel="ICL score: run - control (nats; lower is more)")
    _plain(ax)
    ax.legend(frameon=False, fontsize=8)
    return figure


def dose_figure(rows: Sequence[Comparison]) -> Figure | None:
    """Effect on the fixed head against the band of scores that was edited; None without bands."""
    bands = [
        row
        for row in rows
        if row.arm.is_band and (row.metric, row.reference) == ("unit", "control")
    ]
    bands = [row for row in bands if row.effect.mean is not None]
    if not bands:
        return None
    figure, ax = plt.subplots(figsize=(6.2, 4.2), layout="constrained")
    groups = dict.fromkeys((row.arm.intervention, row.arm.estimator) for row in bands)
    for (kind, estimator), colour in zip(
        groups, ("#0072B2", "#D55E00", "#009E73") * 9, strict=False
    ):
        own = sorted(
            (*band_edges(row.arm), row.effect.mean, row.effect.low, row.effect.high)
            for row in bands
            if (row.arm.intervention, row.arm.estimator) == (kind, estimator)
        )
        x = [50 * (low + high) for low, high, *_ in own]
        ax.plot(x, [item[2] for item in own], "o-", color=colour, label=f"{kind} {estimator}")
        for at, item in zip(x, own, strict=True):
            if item[3] is not None:
                ax.plot([at, at], item[3:5], color=colour, lw=1.5)
    _random_level(ax, rows, {kind for kind, _ in groups})
    ax.axhline(0, color="0.6", lw=1, zorder=0)
    ax.set(xlabel="percentile of the influence score (0 = lowest)")
    ax.set(ylabel="induction score, fixed head: arm - control")
    ax.legend(frameon=False, fontsize=9)
    _plain(ax)
    return figure


def band_edges(arm: Arm) -> tuple[float, float]:
    """Quantiles of a score band, from its arm: (0.9, 1.0) is the top decile."""
    low, _, high = arm.select.split()[1].partition("-")
    return float(low), float(high)


def _random_level(ax: Axes, rows: Sequence[Comparison], kinds: set[str]) -> None:
    for row in rows:
        effect = row.effect
        if (row.metric, row.reference) != ("unit", "control") or not row.arm.is_random:
            continue
        if row.arm.intervention in kinds and effect.mean is not None:
            ax.axhline(effect.mean, color="0.5", ls="--", lw=1.2, label=row.arm.name)
            if effect.low is not None and effect.high is not None:
                ax.axhspan(effect.low, effect.high, color="0.5", alpha=0.15, lw=0)


def _box(ax: Axes, unit: str) -> None:
    from mda.types import HeadId

    try:
        layer, head = HeadId.parse(unit)
    except ValueError:  # a mechanism is no single head
        return
    ax.add_patch(plt.Rectangle((head - 0.5, layer - 0.5), 1, 1, fill=False, ec="black", lw=1.6))


def _plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=9)
