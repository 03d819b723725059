"""The data of the report page as plain values; the page's script only draws them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mda.analysis.arms import Arm, Run, band_middle, by_arm, relative, without_band
from mda.analysis.claims import Verdict
from mda.analysis.effects import Comparison
from mda.analysis.metrics import Measurements, control_of
from mda.analysis.series import CURVES, arm_curves, head_matrix, points, same_window, titles
from mda.report.style import styles
from mda.schema.metrics import HEAD_METRICS

PLOTLY_DASH = {"solid": "solid", "dashed": "dash", "dotted": "dot", "dashdot": "dashdot"}
HEAD_NUMBERS = 200_000  # of all heat maps together; above it, steps are thinned


def page_data(
    measured: Measurements, rows: Sequence[Comparison], verdicts: Sequence[Verdict]
) -> dict[str, Any]:
    """Returns curves, effects, heat maps, scatter and dose-response; numbers have 4 digits."""
    arms = list(by_arm(measured.runs))
    look = styles(arms)
    bands = [row for row in rows if row.arm.edit.is_band
             and (row.metric, row.reference) == ("unit", "control")]  # fmt: skip
    lines = styles(without_band(row.arm) for row in bands)
    return {
        "arms": [
            {
                "name": arm.name,
                "intervention": arm.edit.intervention,
                "colour": look[arm].colour,
                "dash": PLOTLY_DASH[look[arm].dash],
                "band": arm.edit.is_band,
                "random": arm.edit.is_random,
            }
            for arm in arms
        ],
        "titles": titles(measured.runs),
        "x": "training step" if same_window(measured.runs) else "steps since the window's start",
        "curves": _curves(measured, arms),
        "effects": [_effect(row, arms) for row in rows if row.effect.mean is not None],
        "heads": _heads(measured, arms),
        "points": [
            {
                "arm": arms.index(run.arm),
                "seed": run.seed,
                **dict(zip("xy", short(at), strict=True)),
            }
            for run, *at in points(measured)
        ],
        "dose": [
            {
                "line": line.name,
                "intervention": line.edit.intervention,
                "x": band_middle(row.arm),
                "colour": drawn.colour,
                "dash": PLOTLY_DASH[drawn.dash],
                **_numbers(row),
            }
            for line, drawn in lines.items()
            for row in bands
            if without_band(row.arm) == line
        ],
        "verdicts": len(verdicts),
    }


def provenance(runs: Sequence[Run], folder: Path) -> list[dict[str, Any]]:
    """Returns for each run its path relative to `folder`, its command, hashes and window."""
    return [
        {
            "arm": run.arm.name,
            "seed": run.seed,
            "unit": run.unit,
            "window": f"[{run.start}, {run.end})",
            "folder": relative(run.folder, folder),
            "command": " ".join(["mda", run.summary["program"], *run.overrides]),
            "hashes": {key: str(value) for key, value in run.summary["fingerprints"].items()},
        }
        for run in runs
    ]


def _curves(measured: Measurements, arms: list[Arm]) -> list[dict[str, Any]]:
    return [
        {
            "arm": arms.index(curve.arm),
            "curve": name,
            "n": len(curve.seeds),
            "x": curve.x.tolist(),
            "mean": short(curve.mean),
            "error": short(curve.error),
        }
        for name in CURVES
        for curve in arm_curves(measured, name)
    ]


def _effect(row: Comparison, arms: list[Arm]) -> dict[str, Any]:
    return {
        "arm": arms.index(row.arm),
        "reference": row.reference,
        "metric": row.metric,
        "n": row.effect.n,
        **_numbers(row),
    }


def _numbers(row: Comparison) -> dict[str, Any]:
    effect = row.effect
    values = {"mean": effect.mean, "low": effect.low, "high": effect.high, "p": row.p_holm}
    return {key: None if v is None else short([v])[0] for key, v in values.items()}


def _heads(measured: Measurements, arms: list[Arm]) -> list[dict[str, Any]]:
    """Returns the maps of every arm and seed over training: replicates averaged, no score bands."""
    groups = [
        (arm, seed, runs)
        for arm, seeds in by_arm(measured.runs).items()
        if not arm.edit.is_band
        for seed, runs in sorted(seeds.items())
    ]
    numbers = sum(
        len(runs[0].heads_of(metric)) * len(runs[0].curve["step"])
        for _, _, runs in groups
        for metric in _metrics(runs)
    )
    every = max(1, -(-numbers // HEAD_NUMBERS))
    found = []
    for arm, seed, runs in groups:
        steps = runs[0].curve["step"]
        kept = sorted({*range(0, len(steps), every), len(steps) - 1})
        same = [run for run in runs if np.array_equal(run.curve["step"], steps)]
        for metric in _metrics(runs):
            maps = [
                np.mean([head_matrix(run, metric, row) for run in same], axis=0) for row in kept
            ]
            found.append(
                {
                    "arm": arms.index(arm),
                    "control": arms.index(control_of(runs[0], measured.runs).arm),
                    "seed": seed,
                    "metric": metric,
                    "unit": list(runs[0].heads) if runs[0].of_heads else [],
                    "shape": list(maps[0].shape),
                    "steps": steps[kept].astype(int).tolist(),
                    "values": [short(values.ravel()) for values in maps],
                }
            )
    return found


def _metrics(runs: Sequence[Run]) -> list[str]:
    return [m for m in HEAD_METRICS if all(r.heads_of(m) for r in runs)]


def short(values: Sequence[float] | np.ndarray) -> list[float | None]:
    """Returns numbers with 4 significant digits, and None for NaN."""
    return [float(f"{v:.4g}") if np.isfinite(v) else None for v in values]
