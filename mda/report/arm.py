"""The output of one arm: its edit, its curve on the base run's axes, its effect."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mda import store
from mda.analysis.arms import Arm
from mda.analysis.bearing import ABLE
from mda.analysis.folders import IN_NAME
from mda.emergence.onset import Curve, column, measured, unit_onset
from mda.intervention.changes import save_changes
from mda.intervention.window import Window
from mda.report.curves import plot_heat_maps
from mda.report.drawing import plt, save_figure
from mda.report.style import Style, style
from mda.schema import Config, UnitConfig
from mda.schema.edit import Scorer
from mda.schema.metrics import HEAD_METRICS
from mda.schema.setting import default_of
from mda.types import Changes

FILES = {
    "edit.csv": "the edit: sample, step, loss weight, replacement; position and token, if of one",
    "curve.csv": "emergence curve of the arm, from the window's start to its end",
    "train.csv": "loss and learning rate of every update",
    "curves.png": "the arm's unit against the base run's",
    "heads.png": "the metrics of every head at the window's end",
}

USUAL = "induction_head"  # the default kind of unit, which an arm's name leaves out
UNNAMED = IN_NAME | {"name", "seed", "batch_size"}
"""Settings that are in an arm's name already, or do not change the arm."""


def arm_name(config: Config) -> str:
    """Returns the name of a job's arm, the same over seeds, as in a comparison.

    It includes the settings of the estimator, the unit and the window that are not the default.
    """
    settings, estimator, arm = config.intervention, config.estimator, _arm(config)
    scored = isinstance(arm.edit.by, Scorer)
    shown = [settings, estimator] if scored else [settings]
    extra = tuple(
        f"{item.name}={value}"
        for group in shown
        for item in fields(group)
        if item.name not in UNNAMED and (value := getattr(group, item.name)) != default_of(item)
    )
    if arm.edit.match or scored:
        extra += _unit_words(config.unit)
    return replace(arm, extra=extra).name


def _unit_words(unit: UnitConfig) -> tuple[str, ...]:
    """Returns the kind of the unit, if not the default, and settings unlike its preset's."""
    kind = () if unit.name == USUAL else (f"unit={unit.name}",)
    own = {"name", "metric", "threshold", "probe", "only"}  # alone or not, its scores are its own
    return kind + tuple(
        f"unit.{item.name}={value}"
        for item in fields(unit)
        if item.name not in own and (value := getattr(unit, item.name)) != default_of(item)
    )


def report_arm(
    config: Config,
    head: str,
    window: Window,
    changes: Changes,
    base_curve: Curve,
    curve: Curve,
    source: Path,
    folder: Path,
    able: Mapping[str, float],
) -> dict[str, Any]:
    """Writes `FILES` into `folder`, prints a few lines and returns the results for the summary.

    `curve` is the arm's, whose artifact lies in `source`; `head` the unit's strongest; `able` the
    measurements of `mda.emergence.capabilities` at the window's end, which are in its row of the
    curve. A curve that goes on is that of `intervention.until`.
    """
    (last,) = (row for row in curve if row["step"] == window.end)
    rows: list[dict[str, float]] = [{**row, **able} if row is last else dict(row) for row in curve]
    store.write_csv(folder / "curve.csv", rows, list(dict.fromkeys(k for row in rows for k in row)))
    shutil.copyfile(source / "train.csv", folder / "train.csv")
    save_changes(changes, folder / "edit.csv")
    plot_heat_maps(curve, list(HEAD_METRICS), folder / "heads.png", config.report.dpi)
    metric = config.unit.metric
    name = f"emergence/{metric}/{head}"
    arm = config.intervention.name
    _plot({"base run": base_curve, arm: curve}, (name, "emergence/copy_gain"), window,
          folder / "curves.png", config.report.dpi, style(_arm(config)))  # fmt: skip
    at_end = {int(row["step"]): row for row in base_curve}.get(window.end, {})
    onset = unit_onset(curve, metric, head, config.unit.onset_threshold)
    change = f", base run {at_end[name]:.4f}" if name in at_end else ""
    print(f"window: {window.rule}")
    if onset.before:
        print(f"{head} was there before step {window.start}: it has no onset and no delay")
    edited = f"{changes.n_samples:,} samples"
    if changes.by_token:
        edited = f"{len(changes.sample_ids):,} tokens of {edited}"
    print(
        f"{arm}: {edited} edited in steps [{window.start}, {window.end}); "
        f"{head} {metric} at the end {last[name]:.4f}{change}"
    )
    if curve[-1]["step"] > window.end:
        print(f"unedited to step {curve[-1]['step']:.0f}: {head} {metric} {curve[-1][name]:.4f}")
    print(told(able))
    apart = {}
    if config.base.published and arm == "control":
        apart = from_published(curve, base_curve, (name, "val/loss"))
        print(apart_in_words(apart))
    kept = [
        "emergence/copy_gain",
        "emergence/icl_score",
        "val/loss",
        f"emergence/{metric}/strongest",
    ]
    return {
        "unit_metric": last[name],
        "onset": None if onset.before else onset.step,
        **{key: last[key] for key in kept if key in last},
        **able,
        **({"from_published": apart} if apart else {}),
        "started": store.read_json(source / "manifest.json").get("started"),
        "base_heads": base_heads(base_curve, metric, window.end),
    }


def told(able: Mapping[str, float]) -> str:
    """Returns one line on the model's abilities and their dependence on its strongest heads."""
    said = []
    for name, words in ABLE.items():
        if (key := f"capabilities/{name}") not in able:
            continue
        text = f"{words} {able[key]:.3f}"
        if (top := f"{key}/top_heads") in able:
            other = able[f"{key}/random_heads"]
            text += f" ({able[top]:+.3f} without the strongest heads, {other:+.3f} without others)"
        said.append(text)
    return "; ".join(said)


def from_published(
    curve: Curve, published: Curve, names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Returns a control's differences from the published run by step, after their shared step."""
    published_rows = {int(row["step"]): row for row in published}
    return {
        str(step): {name: row[name] - published_rows[step][name] for name in names}
        for row in curve[1:]
        if (step := int(row["step"])) in published_rows
        and all(name in published_rows[step] for name in names)
    }


def apart_in_words(apart: Mapping[str, Mapping[str, float]]) -> str:
    """Returns `from_published` in one line: the size that an effect must exceed."""
    if not apart:
        return "control and published run: none of base.steps is in the window after its start"
    said = [
        f"{', '.join(f'{name} {value:+.4f}' for name, value in values.items())} at step {step}"
        for step, values in apart.items()
    ]
    return f"control minus published run: {'; '.join(said)}"


def base_heads(base_curve: Curve, metric: str, end: int) -> dict[str, float] | None:
    """Returns the metric of every head at the base run's last measurement, if after `end`.

    Returns None otherwise. Induction heads are identified by it rather than by the control, because
    the control's value at the window's end is one side of every difference.
    """
    last = base_curve[-1]
    if last["step"] <= end:
        return None
    prefixes = tuple(f"emergence/{name}/L" for name in (metric, *HEAD_METRICS))
    return {k: v for k, v in last.items() if k.startswith(prefixes) and v == v}


def _arm(config: Config) -> Arm:
    return Arm(config.intervention.edit(config.estimator.name))


def _plot(
    curves: dict[str, Curve],
    shown: tuple[str, ...],
    window: Window,
    path: Path,
    dpi: int,
    arm: Style,
) -> None:
    looks = ({"color": "0.6"}, {"color": arm.colour, "ls": arm.dash, "lw": 2})
    fig, axes = plt.subplots(1, len(shown), figsize=(9, 3.4))
    for ax, name in zip(axes, shown, strict=True):
        for (label, curve), look in zip(curves.items(), looks, strict=True):
            rows = measured(curve, name)
            ax.plot(column(rows, "step"), column(rows, name), label=label, **look)
        ax.axvspan(window.start, window.end, color="0.94", zorder=0)
        ax.set(xlabel="training step", ylabel=name.removeprefix("emergence/"))
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
    save_figure(fig, path, dpi)
