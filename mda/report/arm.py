"""What one arm leaves for people: its plan, its curve on the base run's axes, its effect."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mda.emergence.onset import column, head_onset
from mda.intervention.plan import save_plan
from mda.pipeline import Arm
from mda.schema import Config

FILES = {
    "plan.csv": "the edit: sample, step, loss weight, replacement",
    "curve.csv": "emergence curve of the arm, from the window's start to its end",
    "train.csv": "loss and learning rate of every update",
    "curves.png": "the arm's unit against the base run's",
}


def report_arm(config: Config, arm: Arm, folder: Path) -> dict[str, Any]:
    """Write `FILES` into `folder`, print one line, return the results for the summary."""
    for name in ("curve.csv", "train.csv"):
        shutil.copyfile(arm.run.folder / name, folder / name)
    save_plan(arm.edited.plan, folder / "plan.csv")
    _plot(config, arm, folder / "curves.png")
    metric, head, end = config.unit.metric, arm.unit.heads[0], arm.unit.window.end
    name = f"emergence/{metric}/{head}"
    at_end = {int(row["step"]): row for row in arm.base.curve}.get(end, {})
    last = arm.run.curve[-1]
    onset = head_onset(arm.run.curve, metric, head, config.unit.threshold)
    change = f", base run {at_end[name]:.4f}" if name in at_end else ""
    print(
        f"{config.intervention.name}: {len(arm.edited.plan.sample_ids):,} samples edited in steps "
        f"[{arm.unit.window.start}, {end}); {head} {metric} at the end {last[name]:.4f}{change}"
    )
    kept = ("emergence/copy_gain", "emergence/icl_score", "val/loss", f"emergence/{metric}/max")
    return {"unit_metric": last[name], "onset": onset.step, **{key: last[key] for key in kept}}


def _plot(config: Config, arm: Arm, path: Path) -> None:
    metric, window = config.unit.metric, arm.unit.window
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    shown = [f"emergence/{metric}/{arm.unit.heads[0]}", "emergence/copy_gain"]
    for ax, name in zip(axes, shown, strict=True):
        for curve, label, style in (
            (arm.base.curve, "base run", {"color": "0.6"}),
            (arm.run.curve, config.intervention.name, {"color": "tab:red", "lw": 2}),
        ):
            ax.plot(column(curve, "step"), column(curve, name), label=label, **style)
        ax.axvspan(window.start, window.end, color="0.94", zorder=0)
        ax.set(xlabel="training step", ylabel=name.removeprefix("emergence/"))
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
    fig.tight_layout()
    part = path.with_suffix(".part.png")
    fig.savefig(part, dpi=config.report.dpi)
    plt.close(fig)
    part.replace(path)
