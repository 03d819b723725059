"""Arms and runs: frozen records of what was edited and of what came out.

An arm is an edit as an experiment names it (remove, the top 10 % by EK-FAC); a run is one
training of it with one seed. The unedited stream is the arm `control`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from mda import store
from mda.intervention.plan import BY_TOKEN
from mda.schema import ArmConfig
from mda.types import HeadId

CONTROL = "control"


@dataclass(frozen=True)
class Arm:
    """What identifies an arm, over all seeds; `name` is how tables and figures call it."""

    intervention: str  # remove, augment or control
    mode: str = ""  # mask, drop, replace, duplicate, upweight, insert, mask_tokens, spans fresh
    estimator: str = ""  # ekfac, tracin, random (also where select=random); what rows are inserted
    select: str = ""  # top, bottom, band 0.1-0.2, random, ids
    amount: str = ""  # "10 %", a number of samples, or "1 % of tokens"
    label: str = ""  # class that the selection was restricted to
    match: str = ""  # label, loss or sample: a random set with this distribution of the chosen one
    match_targeted: str = ""  # exclude or allow: whether that set may hold selected samples
    extra: tuple[str, ...] = ()  # settings that differ between otherwise equal arms

    @property
    def name(self) -> str:
        select = "" if self.estimator == "random" else self.select
        amount = "" if self.is_band else self.amount
        words = [self.intervention, self.mode, self.estimator, select, self.label, amount]
        if self.match:
            words.insert(2, "random, as")
            words.append(f"by {self.match},")
            allowed = self.match_targeted == "allow"
            whose = "its tokens" if self.match == "sample" else "its samples"
            words.append(f"{whose} allowed" if allowed else f"without {whose}")
        return " ".join([word for word in (*words, *self.extra) if word])

    def same_as(self, other: Arm) -> bool:
        """Whether two arms are one but for the settings that tell them apart in a comparison."""
        return replace(self, extra=()) == replace(other, extra=())

    @property
    def is_band(self) -> bool:
        return self.select.startswith("band")

    @property
    def is_random(self) -> bool:
        """A random set of samples, be it drawn freely or matched to a targeted one."""
        return self.estimator == "random" or bool(self.match)


@dataclass(frozen=True)
class Run:
    """One finished training: where it lies, what it was, its emergence curve."""

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
        """Value of a column at the window's end; None where the curve has no such column."""
        if column not in self.curve:
            return None
        return float(self.curve[column][self.end_row])

    def of_unit(self, heads: Sequence[str], metric: str) -> np.ndarray | None:
        """Curve of a unit's metric, its mean over the unit's heads; None where not measured."""
        columns = [f"emergence/{metric}/{head}" for head in heads]
        if not columns or any(column not in self.curve for column in columns):
            return None
        return np.mean([self.curve[column] for column in columns], axis=0)

    @property
    def end_row(self) -> int:
        return int(np.flatnonzero(self.curve["step"] == self.end)[0])

    def heads_of(self, metric: str) -> list[HeadId]:
        """The heads that the curve has this metric of."""
        prefix = f"emergence/{metric}/L"
        names = [column.rsplit("/", 1)[1] for column in self.curve if column.startswith(prefix)]
        return sorted(HeadId.parse(name) for name in names)


def read_run(folder: Path) -> Run:
    """One arm's folder. Raises ValueError, naming the folder, for one that is no finished arm."""
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
    """A run from its summary and curve. Raises ValueError, KeyError or TypeError for bad ones."""
    edit, estimator = dict(summary["intervention"]), dict(summary.get("estimator") or {})
    window, prints, results = summary["window"], summary["fingerprints"], summary.get("results", {})
    arm = arm_of(edit, estimator)
    drawn = edit if edit.get("select") == "random" or arm.match else estimator
    run = Run(
        folder=folder,
        arm=arm,
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
        summary=dict(summary),
    )
    if run.end not in run.curve["step"]:
        raise ValueError(f"its curve does not reach the window's end, step {run.end}")
    return run


def read_curve(rows: Sequence[Mapping[str, str]]) -> dict[str, np.ndarray]:
    """Column -> values of a curve's CSV, NaN where a cell is empty. Raises ValueError."""
    if not rows or "step" not in rows[0]:
        raise ValueError("its curve has no rows with a step")
    curve = {key: np.array([float(row[key] or "nan") for row in rows]) for key in rows[0]}
    for key, values in curve.items():
        if np.isinf(values).any():
            raise ValueError(f"{key} of its curve is infinite")
    if (np.diff(curve["step"]) <= 0).any():
        raise ValueError("the steps of its curve do not rise")
    return curve


def arm_as(config: ArmConfig) -> Arm:
    """The arm that a study names."""
    return Arm(**asdict(config))


def arm_order(arm: Arm) -> tuple:
    """Control first, then by intervention, with random edits after the targeted ones."""
    return (arm.intervention != CONTROL, arm.intervention, arm.is_random, arm.name)


def by_arm(runs: Sequence[Run]) -> dict[Arm, dict[int, list[Run]]]:
    """arm -> seed -> its runs; a random arm may have several in one seed."""
    groups: dict[Arm, dict[int, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        groups[run.arm][run.seed].append(run)
    return {arm: dict(seeds) for arm, seeds in groups.items()}


def band_edges(arm: Arm) -> tuple[float, float]:
    """Quantiles of a score band, from its arm: (0.9, 1.0) is the top decile."""
    low, _, high = arm.select.split()[1].partition("-")
    return float(low), float(high)


def without_band(arm: Arm) -> Arm:
    """What the bands of one dose-response share."""
    return replace(arm, select="", amount="")


def band_middle(arm: Arm) -> float:
    """Percentile in the middle of a score band."""
    return 50 * sum(band_edges(arm))


def relative(path: Path, folder: Path) -> str:
    """A path as seen from a folder, with forward slashes, on any system."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def arm_of(edit: Mapping[str, Any], estimator: Mapping[str, Any]) -> Arm:
    """The arm that settings of intervention and estimator mean; `edit` has the number n too."""
    if edit["name"] == CONTROL:
        return Arm(CONTROL)
    if edit.get("mode") == "insert":  # what its rows are stands where others name an estimator
        amount = f"{edit['n']} rows" if edit.get("n") else ""
        return Arm("augment", "insert", Path(str(edit["rows"])).stem, amount=amount)
    select, match = str(edit.get("select") or ""), str(edit.get("match") or "none")
    if band := edit.get("band"):
        low, high = (np.format_float_positional(round(edge, 9), trim="-") for edge in band)
        select = f"band {low}-{high}"
        amount = f"{100 * (band[1] - band[0]):.4g} %"
    elif select in ("ids", "") or edit.get("fraction") is None:
        amount = f"{edit['n']} samples"
    else:
        amount = f"{100 * edit['fraction']:g} %"
    mode = str(edit.get("mode") or edit.get("action") or "")
    if mode in BY_TOKEN:
        share = edit.get("fraction")
        amount = f"{edit['count']} tokens" if share is None else f"{amount} of tokens"
        if within := edit.get("within"):
            amount += f" within {100 * within:g} % of samples"
        mode = f"{mode} {edit['spans']}" if mode == "spans" else mode
    name = "random" if select == "random" else str(estimator.get("name") or "")
    if name == "random" and select in ("top", "bottom"):
        select = "random"  # random scores have no top: every selection from them is a random set
    if match == "none":
        match = ""
    return Arm(
        intervention=str(edit["name"]),
        mode=mode,
        estimator=name,
        select=select,
        amount=amount,
        label=str(edit.get("label") or ""),
        match=match,
        match_targeted=str(edit.get("match_targeted") or "exclude") if match else "",
    )


def _refuse_changed(folder: Path, hashes: Mapping[str, str]) -> None:
    """Raise ValueError where a table that a comparison rests on is not what the run has left."""
    if "curve.csv" not in hashes:
        raise ValueError("its summary has no hash of curve.csv")
    for name in ("curve.csv", "plan.csv"):
        if name in hashes and store.hash_file(folder / name) != hashes[name]:
            raise ValueError(f"{name} has changed since the run left it")


def _moment(text: str | None) -> datetime | None:
    if not text:
        return None
    when = datetime.fromisoformat(text)
    return when if when.tzinfo else when.replace(tzinfo=UTC)
