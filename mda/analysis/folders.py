"""The arms of a comparison, read from the folders of a sweep and named by their settings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mda import store
from mda.analysis.arms import Arm, Run, arm_order, read_run, short
from mda.analysis.table import RUNS, read_table
from mda.schema.attribution import IN_EDIT
from mda.schema.edit import Rows, Scorer

_NUISANCE = {"name", "seed", "batch_size", "n", "tokens", "window", "before_onset", "after_onset"}
IN_NAME = IN_EDIT | {"action"}
WHICH_UNIT = {"unit.name", "unit.metric", "unit.locate", "unit.only"}


def read_runs(folders: Iterable[Path], left_out: Callable[[str], None] | None = None) -> list[Run]:
    """Returns all finished arms in and below the folders, each retrain once, by arm name and seed.

    Runs of an arm that are the same training share a fingerprint and are taken once; a training
    that two arms mean (the top tenth, the band from .9 to 1) counts for both, and one that edits
    the same samples for two units counts for each of them. Settings that distinguish otherwise
    equal arms of one seed become part of their names. Raises ValueError where there is no arm, no
    control, two base runs under one seed, or one under two seeds, and for a folder that cannot be
    read: with `left_out`, that is called with the reason instead.
    """
    folders = list(folders)
    all_runs = [run for folder in folders for run in _runs_in(folder, left_out or _refuse)]
    if not all_runs:
        raise ValueError(
            "no finished arm (a folder with summary.json of `mda run`) in "
            + ", ".join(str(folder) for folder in folders)
        )
    unique: dict[tuple[object, ...], Run] = {}
    for run in sorted(all_runs, key=lambda run: str(run.folder)):
        unique.setdefault((run.seed, run.fingerprint, run.arm, *_serves(run)), run)
    runs = _told_apart(list(unique.values()))
    for seed in sorted({run.seed for run in runs}):
        bases = sorted({run.base for run in runs if run.seed == seed})
        if len(bases) > 1:
            raise ValueError(
                f"the arms of seed {seed} come from different base runs ({', '.join(bases)}); "
                "compare one configuration at a time"
            )
    _refuse_copies(runs)
    if not any(run.arm.edit.is_control for run in runs):
        raise ValueError("no control arm among the runs; run one with intervention=control")
    return sorted(runs, key=lambda run: (arm_order(run.arm), run.seed, run.fingerprint))


def _serves(run: Run) -> tuple[object, ...]:
    """Returns the target of a run's edit: nothing for a control, the metric for a random edit."""
    if run.arm.edit.is_control:
        return ()
    if run.arm.edit.is_random and not (run.arm.edit.match or run.arm.edit.scope):
        return (run.metric,)
    return run.metric, run.unit, run.heads


def _refuse_copies(runs: Iterable[Run]) -> None:
    """Raises ValueError for two seeds with the same weights and samples, which are one."""
    first: dict[str, int] = {}
    for run in runs:
        origin = run.summary["fingerprints"].get("origin")
        if origin and first.setdefault(origin, run.seed) != run.seed:
            raise ValueError(
                f"seeds {first[origin]} and {run.seed} are copies of each other: they start from "
                "the same weights and see the same samples in the same order; expected one of "
                "them, or seeds with another base run or another order"
            )


def _runs_in(folder: Path, left_out: Callable[[str], None]) -> list[Run]:
    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist")
    runs: list[Run] = []
    for path in [*sorted(folder.rglob(RUNS)), *sorted(folder.rglob("summary.json"))]:
        try:
            runs += read_table(path.parent) if path.name == RUNS else _arm_in(path)
        except ValueError as error:
            left_out(str(error))
    return runs


def _arm_in(path: Path) -> list[Run]:
    """Returns the run of a summary, or None for one of another program. Raises ValueError."""
    try:
        content = store.read_object(path)
    except ValueError as error:
        raise ValueError(
            f"{path.parent} is not the folder of a finished program: {error}"
        ) from error
    return [read_run(path.parent)] if {"intervention", "window"} <= content.keys() else []


def _refuse(reason: str) -> None:
    raise ValueError(reason)


def _told_apart(runs: list[Run]) -> list[Run]:
    """Adds to names the settings that differ between runs of one arm, such as windows or units."""
    groups: dict[Arm, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.arm].append(run)
    named = []
    for group in groups.values():
        varying = _varying([_settings(run) for run in group])
        of_each_seed = ("window", "unit", "rows")  # of each seed
        varying -= {key for key in of_each_seed if not _varies_within_a_seed(group, key)}
        for run in group:
            settings = _settings(run)
            extra = tuple(
                f"{key}={settings.get(key)}" for key in sorted(varying) if _told(settings, key)
            )
            named.append(replace(run, arm=replace(run.arm, extra=extra)))
    return named


def _settings(run: Run) -> dict[str, str]:
    edit, estimator = run.summary["intervention"], run.summary.get("estimator") or {}
    settings = {
        key: value
        for part in (edit, estimator if isinstance(run.arm.edit.by, Scorer) else {})
        for key, value in part.items()
        if key not in _NUISANCE | IN_NAME
    }
    settings["window"] = f"{run.start}-{run.end}"
    if isinstance(run.arm.edit.by, Rows):  # its name has no folder
        settings["rows"] = edit.get("rows")
    # A control serves every unit of its seed. A random edit does too, but has one unit's score; a
    # matched one is drawn for a unit.
    arm_edit = run.arm.edit
    if not arm_edit.is_control:
        settings["metric"] = run.metric
    if not arm_edit.is_control and (arm_edit.match or not arm_edit.is_random):
        settings["unit"] = run.unit
        settings |= _unit_settings(run.summary.get("unit_settings") or {})
    return {key: short(str(value)) for key, value in settings.items()}


def _unit_settings(settings: Mapping[str, Any], group: str = "unit") -> dict[str, Any]:
    """Returns the settings of the unit by key, without those that select the unit."""
    by_key: dict[str, Any] = {}
    for name, value in settings.items():
        key = f"{group}.{name}"
        if isinstance(value, Mapping):
            by_key |= _unit_settings(value, key)
        elif key not in WHICH_UNIT:
            by_key[key] = value
    return by_key


def _varying(settings: list[dict[str, str]]) -> set[str]:
    keys = {key for of_run in settings for key in of_run}
    return {
        key
        for key in keys
        if len({of_run.get(key) for of_run in settings if _told(of_run, key)}) > 1
    }


def _told(settings: Mapping[str, str], key: str) -> bool:
    """Returns whether a setting is recorded, be it as none: older tables lack the unit's."""
    return key in settings or not key.startswith("unit.")


def _varies_within_a_seed(runs: list[Run], key: str) -> bool:
    # Each seed has its own strongest head and onset: only a choice beside them needs a name.
    values: dict[tuple[int, str], set[str | None]] = defaultdict(set)
    for run in runs:
        values[run.seed, run.metric].add(_settings(run).get(key))
    return any(len(distinct) > 1 for distinct in values.values())
