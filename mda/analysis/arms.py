"""Arms and runs: frozen records of edits and of their results.

An arm is an edit of an experiment (remove, the top 10 % by EK-FAC); a run is one training of it
with one seed. The unedited stream is the arm `control`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from mda import store
from mda.schema import StudyArm
from mda.schema.edit import Band, Bottom, Count, Edit, Ids, Rows, Share, Top, edit_from
from mda.schema.old_words import FILES, groups_now, metric_now, read_summary
from mda.types import HeadId


@dataclass(frozen=True)
class Arm:
    """An edit of an experiment, over all seeds."""

    edit: Edit
    extra: tuple[str, ...] = ()  # settings that differ between otherwise equal arms, as words
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    # Of a run all by their keys, such as estimator.damping; of a study's arm those that it names.

    @property
    def name(self) -> str:
        """The arm's name in tables and figures."""
        return " ".join([*words_of(self.edit), *self.extra])

    def fits(self, meant: Arm) -> bool:
        """Returns whether the arm is the one that a study means, whatever its other settings."""
        mine, other = self.edit, meant.edit
        if other.amount is None and isinstance(other.by, Rows):  # a study need not count the rows
            mine = replace(mine, amount=None)
        missing = object()
        named = meant.settings.items()
        return mine == other and all(self.settings.get(k, missing) == v for k, v in named)


def words_of(edit: Edit) -> list[str]:
    """Returns the words of an arm's name, which are never parsed."""
    words = [edit.intervention, edit.mode, edit.spans]
    words += ["random, as"] if edit.match else []
    words += [chooser(edit), _choice(edit), edit.label or ""]
    words += [amount(edit.amount)] if edit.amount else []
    if edit.match:
        whose = "its tokens" if edit.match.of == "sample" else "its samples"
        words.append(f"by {edit.match.of},")
        words.append(f"{whose} allowed" if edit.match.targeted else f"without {whose}")
    words.append({"unit": "in the unit alone", "others": "but in the unit"}.get(edit.scope, ""))
    return [word for word in words if word]


def chooser(edit: Edit) -> str:
    """Returns the chooser of the edited samples: an estimator, `random`, or inserted rows' name."""
    return edit.by.name if isinstance(edit.by, Rows) else edit.source


def amount(size: Share | Count | None, whose: str = "") -> str:
    """Returns the amount that is edited: "10 %", "500 samples", or "1 % of tokens"."""
    if size is None:
        return ""
    if isinstance(size, Count):
        words = f"{size.value} {size.of}"
    else:
        words = f"{100 * size.value:g} %"
        words += f" of {whose}{size.of}" if whose or size.of != "samples" else ""
    within = f" within {100 * size.within:g} % of samples" if size.within else ""
    return words + within


def _choice(edit: Edit) -> str:
    match edit.choose:
        case Band(low, high):
            edges = (np.format_float_positional(round(x, 9), trim="-") for x in (low, high))
            return f"band {'-'.join(edges)}"
        case Ids(ids):
            return f"ids {short(','.join(map(str, ids)))}"
        case Top() | Bottom() as choice:
            return type(choice).__name__.lower()
    return ""


def short(text: str) -> str:
    """Returns a text of at most 40 characters, else its beginning and an identifying suffix."""
    if len(text) <= 40:
        return text
    return f"{text[:24]}... ({sha256(text.encode()).hexdigest()[:6]})"


@dataclass(frozen=True)
class Run:
    """One finished training: its folder, its settings, its emergence curve."""

    folder: Path
    arm: Arm
    seed: int
    unit: str
    heads: tuple[str, ...]  # of the unit; several for a mechanism
    metric: str  # mu of the unit, such as prefix_matching
    threshold: float  # of that metric, from which a head counts as emerged
    start: int
    end: int
    tokens_per_step: int
    base: str  # fingerprint of the base run it started from
    fingerprint: str
    replicate: int  # seed of a random edit's draw
    started: datetime | None  # when the training began; None where nobody wrote it down
    base_heads: Mapping[str, float] | None  # metric of each head after the window, in the base run
    overrides: tuple[str, ...]
    curve: dict[str, np.ndarray] = field(repr=False)  # column -> values, one a measured step
    summary: dict[str, Any] = field(repr=False)

    def at_end(self, column: str) -> float | None:
        """Returns the value of a column at the window's end; None for a missing column."""
        if column not in self.curve:
            return None
        return float(self.curve[column][self.end_row])

    def of_unit(self, heads: Sequence[str], metric: str) -> np.ndarray | None:
        """Returns the curve of a unit's metric, its mean over the unit's heads, or None."""
        columns = [f"emergence/{metric}/{head}" for head in heads]
        if not columns or any(column not in self.curve for column in columns):
            return None
        return np.mean([self.curve[column] for column in columns], axis=0)

    @property
    def end_row(self) -> int:
        return int(np.flatnonzero(self.curve["step"] == self.end)[0])

    @property
    def of_heads(self) -> bool:
        """True if its unit is an attention head, or several."""
        return all(HeadId.names(name) for name in self.heads)

    def heads_of(self, metric: str) -> list[HeadId]:
        """Returns the heads for which the curve has this metric."""
        prefix = f"emergence/{metric}/L"
        names = [column.rsplit("/", 1)[1] for column in self.curve if column.startswith(prefix)]
        return sorted(HeadId.parse(name) for name in names)


def read_run(folder: Path) -> Run:
    """Returns the run in an arm's folder.

    Raises ValueError, naming the folder, for one that is not a finished arm.
    """
    try:
        summary = store.read_object(folder / "summary.json")
        job = store.read_object(folder / "job.json") if (folder / "job.json").exists() else {}
        _refuse_changed(folder, summary["hashes"])
        curve = read_curve(store.read_csv(folder / "curve.csv"))
        return run_of(folder, summary, curve, job.get("overrides", ()))
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{folder} is not the folder of a finished arm: {reason}") from error


def run_of(
    folder: Path,
    summary: Mapping[str, Any],
    curve: dict[str, np.ndarray],
    overrides: Sequence[str] = (),
) -> Run:
    """Returns a run from its summary and curve.

    Raises ValueError, KeyError or TypeError for invalid ones.
    """
    summary = groups_now(summary)
    settings, estimator = dict(summary["intervention"]), dict(summary.get("estimator") or {})
    window, prints, results = summary["window"], summary["fingerprints"], summary.get("results", {})
    has_edit = "edit" in summary
    edit = edit_from(summary["edit"]) if has_edit else read_summary(settings, estimator)
    drawn = settings if settings.get("select") == "random" or edit.match else estimator
    run = Run(
        folder=folder,
        arm=Arm(edit, settings=_by_key(intervention=settings, estimator=estimator)),
        seed=int(summary["seed"]),
        unit=str(summary["unit"]),
        heads=tuple(str(head) for head in summary["heads"]),
        metric=str(summary["metric"]),
        threshold=float(summary["threshold"]),
        start=int(window["start"]),
        end=int(window["end"]),
        tokens_per_step=int(summary["batch_size"]) * int(summary["seq_len"]),
        base=str(prints["base"]),
        fingerprint=str(prints["arm"]),
        replicate=int(drawn.get("seed") or 0),
        started=_moment(results.get("started")),
        base_heads=results.get("base_heads"),
        overrides=tuple(str(item) for item in overrides),
        curve=curve,
        summary=summary,
    )
    if run.end not in run.curve["step"]:
        raise ValueError(f"its curve does not reach the window's end, step {run.end}")
    return run


def read_curve(rows: Sequence[Mapping[str, str]]) -> dict[str, np.ndarray]:
    """Returns a curve's CSV by column, NaN for an empty cell. Raises ValueError."""
    if not rows or "step" not in rows[0]:
        raise ValueError("its curve has no rows with a step")
    curve = {
        metric_now(key): np.array([float(row[key] or "nan") for row in rows]) for key in rows[0]
    }
    for key, values in curve.items():
        if np.isinf(values).any():
            raise ValueError(f"{key} of its curve is infinite")
    if (np.diff(curve["step"]) <= 0).any():
        raise ValueError("the steps of its curve do not rise")
    return curve


def arm_as(study_arm: StudyArm) -> Arm:
    """Returns the arm that a study names."""
    return Arm(study_arm.edit, settings=study_arm.settings)


def arm_order(arm: Arm) -> tuple:
    """Returns the sort key of arms: control, then by intervention, random edits last."""
    edit = arm.edit
    return (not edit.is_control, edit.intervention, edit.is_random, arm.name)


def by_arm(runs: Sequence[Run]) -> dict[Arm, dict[int, list[Run]]]:
    """Returns runs by arm and seed; a random arm may have several in one seed."""
    groups: dict[Arm, dict[int, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        groups[run.arm][run.seed].append(run)
    return {arm: dict(seeds) for arm, seeds in groups.items()}


def band_of(arm: Arm) -> Band:
    """Returns the band of scores that an arm edits. Raises TypeError for any other arm."""
    if not isinstance(arm.edit.choose, Band):
        raise TypeError(f"{arm.name} edits no band of scores")
    return arm.edit.choose


def without_band(arm: Arm) -> Arm:
    """Returns the part of an arm that the bands of one dose-response share."""
    return replace(arm, edit=replace(arm.edit, choose=None))


def band_middle(arm: Arm) -> float:
    """Returns the percentile in the middle of a score band."""
    return 50 * (band_of(arm).low + band_of(arm).high)


def relative(path: Path, folder: Path) -> str:
    """Returns a path relative to a folder, with forward slashes on any system."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def _by_key(**groups: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{group}.{name}": value
        for group, settings in groups.items()
        for name, value in settings.items()
    }


def _refuse_changed(folder: Path, hashes: Mapping[str, str]) -> None:
    """Raises ValueError for a table that has changed since its run wrote it."""
    if "curve.csv" not in hashes:
        raise ValueError("its summary has no hash of curve.csv")
    for name in ("curve.csv", "edit.csv", *FILES):
        if name in hashes and store.hash_file(folder / name) != hashes[name]:
            raise ValueError(f"{name} has changed since the run left it")


def _moment(text: str | None) -> datetime | None:
    if not text:
        return None
    when = datetime.fromisoformat(text)
    return when if when.tzinfo else when.replace(tzinfo=UTC)
