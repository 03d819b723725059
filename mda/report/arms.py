"""Run folders read into frozen records, and grouped into the arms of a comparison.

An arm is an edit as an experiment names it (remove, the top 10 % by EK-FAC); a run is one
training of it with one seed. The unedited stream is the arm `control`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mda import store
from mda.types import HeadId

CONTROL = "control"
_NUISANCE = {"name", "seed", "batch_size", "n", "tokens", "window", "before_onset", "after_onset"}
_IN_NAME = {"mode", "action", "select", "fraction", "count", "lower", "upper", "match", "label"}


@dataclass(frozen=True)
class Arm:
    """What identifies an arm, over all seeds; `name` is how tables and figures call it."""

    intervention: str  # remove, augment or control
    mode: str = ""  # mask, drop, replace, duplicate, upweight, insert
    estimator: str = ""
    select: str = ""  # top, bottom, band 0.1-0.2, random, ids
    amount: str = ""  # "10 %", or a number of samples
    match: str = ""  # label or loss, where a random set was matched to the targeted one
    extra: tuple[str, ...] = ()  # settings that differ between otherwise equal arms

    @property
    def name(self) -> str:
        if self.intervention == CONTROL:
            return " ".join([CONTROL, *self.extra])
        match = f"matched by {self.match}" if self.match else ""
        # Random scores have no top: every selection from them is a random set.
        select = "" if self.estimator == "random" else self.select
        amount = "" if self.is_band else self.amount
        parts = (self.intervention, self.mode, self.estimator, select, amount, match)
        return " ".join([part for part in (*parts, *self.extra) if part])

    @property
    def is_band(self) -> bool:
        return self.select.startswith("band")

    @property
    def is_random(self) -> bool:
        return self.estimator == "random" or self.select == "random"


@dataclass(frozen=True)
class Run:
    """One finished training: where it lies, what it was, its emergence curve."""

    folder: Path
    arm: Arm
    seed: int
    unit: str
    metric: str  # mu of the unit, such as prefix_matching
    start: int
    end: int
    tokens_per_step: int
    base: str  # fingerprint of the base run it started from
    fingerprint: str
    curve: dict[str, np.ndarray] = field(repr=False)  # column -> values, one a measured step
    summary: dict[str, Any] = field(repr=False)

    def at_end(self, column: str) -> float | None:
        """Value of a column at the window's end; None where the curve has no such column."""
        if column not in self.curve:
            return None
        return float(self.curve[column][self.end_row])

    @property
    def end_row(self) -> int:
        return int(np.flatnonzero(self.curve["step"] == self.end)[0])

    def heads(self, metric: str) -> list[HeadId]:
        """The heads that the curve has this metric of."""
        prefix = f"emergence/{metric}/L"
        names = [column.rsplit("/", 1)[1] for column in self.curve if column.startswith(prefix)]
        return sorted(HeadId.parse(name) for name in names)


def read_run(folder: Path, metric: str = "prefix_matching") -> Run:
    """One arm's folder. Raises ValueError, naming the folder, for one that is no finished arm.

    `metric` is the unit's where `summary.json` does not say.
    """
    try:
        summary = store.read_json(folder / "summary.json")
        edit, estimator = dict(summary["intervention"]), dict(summary.get("estimator") or {})
        window, prints = summary["window"], summary["fingerprints"]
        run = Run(
            folder=folder,
            arm=_arm(edit, estimator),
            seed=int(summary["seed"]),
            unit=str(summary["unit"]),
            metric=str(summary.get("metric", metric)),
            start=int(window["start"]),
            end=int(window["end"]),
            tokens_per_step=int(summary["batch_size"]) * int(summary["seq_len"]),
            base=str(prints["base"]),
            fingerprint=str(prints["arm"]),
            curve=_read_curve(folder / summary.get("curve", "curve.csv")),
            summary=summary,
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{folder} is not the folder of a finished arm: {reason}") from error
    if run.end not in run.curve["step"]:
        raise ValueError(f"the curve of {folder} does not reach the window's end, step {run.end}")
    return run


def read_runs(folders: Iterable[Path], metric: str = "prefix_matching") -> list[Run]:
    """All finished arms in and below the folders, each retrain once, by arm name and seed.

    Arms that mean the same training share a fingerprint and are taken once. Settings that tell
    otherwise equal arms of one seed apart become part of their names. Raises ValueError where
    there is no arm, no control, or two base runs under one seed.
    """
    found = sorted({path for folder in folders for path in _arm_folders(folder)})
    if not found:
        raise ValueError(
            "no finished arm (a folder with summary.json of experiments/run.py) in "
            + ", ".join(str(folder) for folder in folders)
        )
    unique: dict[tuple[int, str], Run] = {}
    for folder in found:
        run = read_run(folder, metric)
        unique.setdefault((run.seed, run.fingerprint), run)
    runs = _told_apart(list(unique.values()))
    for seed in sorted({run.seed for run in runs}):
        bases = sorted({run.base for run in runs if run.seed == seed})
        if len(bases) > 1:
            raise ValueError(
                f"the arms of seed {seed} come from different base runs ({', '.join(bases)}); "
                "compare one configuration at a time"
            )
    if not any(run.arm.intervention == CONTROL for run in runs):
        raise ValueError("no control arm among the runs; run one with intervention=control")
    return sorted(runs, key=lambda run: (arm_order(run.arm), run.seed, run.fingerprint))


def arm_order(arm: Arm) -> tuple:
    """Control first, then by intervention, with random edits after the targeted ones."""
    return (arm.intervention != CONTROL, arm.intervention, arm.is_random, arm.name)


def by_arm(runs: Sequence[Run]) -> dict[Arm, dict[int, list[Run]]]:
    """arm -> seed -> its runs; a random arm may have several in one seed."""
    groups: dict[Arm, dict[int, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        groups[run.arm][run.seed].append(run)
    return {arm: dict(seeds) for arm, seeds in groups.items()}


def _arm(edit: dict[str, Any], estimator: dict[str, Any]) -> Arm:
    if edit["name"] == CONTROL:
        return Arm(CONTROL)
    select = str(edit.get("select") or "")
    if edit.get("lower") is not None and edit.get("upper") is not None:
        select = f"band {edit['lower']:g}-{edit['upper']:g}"
    if edit.get("label"):
        select = f"{select} {edit['label']}"
    match = str(edit.get("match") or "none")
    return Arm(
        intervention=str(edit["name"]),
        mode=str(edit.get("mode") or edit.get("action") or ""),
        estimator=str(estimator.get("name") or ""),
        select=select,
        amount=_amount(edit, select),
        match="" if match == "none" else match,
    )


def _amount(edit: dict[str, Any], select: str) -> str:
    if edit.get("lower") is not None and edit.get("upper") is not None:
        return f"{100 * (edit['upper'] - edit['lower']):g} %"
    if select not in ("ids", "") and edit.get("fraction") is not None:
        return f"{100 * edit['fraction']:g} %"
    return f"{edit['count' if edit.get('count') is not None else 'n']} samples"


def _told_apart(runs: list[Run]) -> list[Run]:
    """Names settings that differ between runs of one arm: windows, units, estimator settings."""
    groups: dict[Arm, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.arm].append(run)
    named = []
    for group in groups.values():
        varying = _varying([_settings(run) for run in group])
        varying -= {key for key in ("window", "unit") if not _varies_within_a_seed(group, key)}
        for run in group:
            settings = _settings(run)
            extra = tuple(f"{key}={settings.get(key)}" for key in sorted(varying))
            named.append(replace(run, arm=replace(run.arm, extra=extra)))
    return named


def _settings(run: Run) -> dict[str, str]:
    edit, estimator = run.summary["intervention"], run.summary.get("estimator") or {}
    settings = {
        key: value
        for part in (edit, {} if run.arm.intervention == CONTROL else estimator)
        for key, value in part.items()
        if key not in _NUISANCE | _IN_NAME
    }
    settings["window"] = f"{run.start}-{run.end}"
    # Control and random edits do not know the unit: they serve every unit of their seed.
    if run.arm.intervention != CONTROL and not run.arm.is_random:
        settings |= {"unit": run.unit, "metric": run.metric}
    return {key: str(value) for key, value in settings.items()}


def _varying(settings: list[dict[str, str]]) -> set[str]:
    keys = {key for one in settings for key in one}
    return {key for key in keys if len({one.get(key) for one in settings}) > 1}


def _varies_within_a_seed(runs: list[Run], key: str) -> bool:
    # Each seed has its own strongest head and onset: only a choice beside them needs a name.
    values: dict[tuple[int, str], set[str | None]] = defaultdict(set)
    for run in runs:
        values[run.seed, run.metric].add(_settings(run).get(key))
    return any(len(found) > 1 for found in values.values())


def _arm_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    return [
        path.parent
        for path in sorted(folder.rglob("summary.json"))
        if "intervention" in (content := store.read_json(path)) and "window" in content
    ]


def _read_curve(path: Path) -> dict[str, np.ndarray]:
    rows = store.read_csv(path)
    if not rows or "step" not in rows[0]:
        raise ValueError(f"{path.name} has no rows with a step")
    curve = {key: np.array([float(row[key] or "nan") for row in rows]) for key in rows[0]}
    if (np.diff(curve["step"]) <= 0).any():
        raise ValueError(f"the steps of {path.name} do not rise")
    return curve
