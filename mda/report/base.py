"""The output of a base run: table of heads, curve figure, heat map, CSV."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mda.emergence.onset import Curve
from mda.report.curves import plot_curves, plot_heat_maps, strongest_heads
from mda.schema import Config, UnitConfig
from mda.schema.metrics import HEAD_METRICS

FILES = {
    "curve.csv": "emergence curve: one row at each measured step",
    "train.csv": "loss and learning rate of every update",
    "heads.png": "the metrics of every head at the end",
}
REVISIONS = {"revisions.csv": "commit and hash of every file that was read"}
"""Left beside `FILES` where the base run was published."""


def files_of(config: Config) -> dict[str, str]:
    """Returns the description of each file that `report_base` writes, by name."""
    curves = {
        _figure(name): f"{metric.title} of every head, copying and in-context learning"
        for name, metric in HEAD_METRICS.items()
    }
    return FILES | curves | (REVISIONS if config.base.published else {})


def _figure(metric: str) -> str:
    """Returns the file of a metric's curves."""
    return "curves.png" if metric == "prefix_matching" else f"{metric}.png"


def _thresholds(unit: UnitConfig) -> dict[str, float]:
    """Returns the value of every metric from which a head counts as emerged.

    The unit has its own.
    """
    thresholds = {name: metric.threshold for name, metric in HEAD_METRICS.items()}
    return {
        name: unit.onset_threshold if name == unit.metric else thresholds[name]
        for name in thresholds
    }


def report_base(config: Config, curve: Curve, source: Path, folder: Path) -> dict[str, Any]:
    """Writes `files_of` into `folder`, prints the table, returns the results for the summary."""
    for name in files_of(config):
        if name.endswith(".csv"):
            shutil.copyfile(source / name, folder / name)
    thresholds, dpi = _thresholds(config.unit), config.report.dpi
    for metric, threshold in thresholds.items():
        plot_curves(curve, metric, threshold, folder / _figure(metric), dpi)
    plot_heat_maps(curve, list(HEAD_METRICS), folder / "heads.png", dpi)
    heads = {
        metric: strongest_heads(curve, metric, thresholds[metric], config.report.top_heads)
        for metric in HEAD_METRICS
    }
    last = curve[-1]
    names = ("emergence/copy_gain", "emergence/icl_score", "val/loss")
    for metric, found in heads.items():
        print_heads(metric, thresholds[metric], found)
    print("  ".join(f"{name.rsplit('/')[-1]} {last[name]:.3f}" for name in names))
    return {
        "steps": last["step"],
        "tokens": last["tokens"],
        "heads": {
            metric: [
                {"head": str(head), "score": value, "onset": asdict(onset)}
                for head, value, onset in found
            ]
            for metric, found in heads.items()
        },
        **{name: last[name] for name in names},
    }


def print_heads(metric: str, threshold: float, found: list) -> None:
    """Prints a table of the strongest heads: final score, onset step and its 95 % band."""
    table = Table(title=f"{metric.replace('_', '-')}: strongest heads", title_justify="left")
    for column in ("head", "score at the end", f"onset (score {threshold:g})", "95 % band"):
        table.add_column(column, justify="left" if column == "head" else "right")
    for head, value, onset in found:
        at = "-" if onset.step is None else f"step {onset.step:,.0f}"
        ends = [("never" if x is None else f"{x:,.0f}") for x in (onset.low, onset.high)]
        band = "-" if onset.low is None else " to ".join(ends)
        if onset.before:  # what was measured first is no onset
            at, band = f"before {at}", "-"
        table.add_row(str(head), f"{value:.3f}", at, band)
    Console().print(table)
