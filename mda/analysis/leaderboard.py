"""The benchmark's tables, read back from files, and the leaderboard made from them.

A folder of tables is one run of the benchmark: a seed, its window and units. The leaderboard is
made of any number of them, so that seeds measured on other days or machines count together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mda import store
from mda.analysis.statistics import student_interval
from mda.analysis.truth import (
    Correlation,
    Group,
    fit,
    rank_correlation,
    rank_correlation_gain,
    rerun_ceiling,
)
from mda.intervention.subsets import AT_RANDOM

Row = dict[str, Any]
TABLES = ("subsets", "edits", "planted", "estimators", "tops", "labels")
TEXTS = {"unit", "located", "estimator", "draw", "edit", "label", "text"}
"""Columns that are words; the others are numbers."""
ABOUT = "about.json"
RERUN = "rerun"
"""The row of the ceiling: what trainings of the same sets from perturbed starts say of noise."""
OUTCOMES = ("metric", "measurement")
"""What is predicted: what is plotted of a unit, and what influence differentiates."""
TOP, OTHERS, EXACT = "unrolled", ("ekfac", "repetition"), "exact"
LOWERING = ("remove", "transfer")
SIDE_BY_SIDE = (TOP, "ekfac")
"""Estimators whose highest samples are shown as text."""


@dataclass(frozen=True)
class Tables:
    """All rows of some runs of the benchmark."""

    rows: dict[str, list[Row]]  # by table
    about: list[dict[str, Any]]  # of each run


def write_tables(tables: Tables, folder: Path) -> None:
    """Writes the tables of one run, CSV each, and their description."""
    (about,) = tables.about
    for name, rows in tables.rows.items():
        (folder / f"{name}.csv").unlink(missing_ok=True)  # one of an earlier time
        if rows:
            columns = list(dict.fromkeys(key for row in rows for key in row))
            store.write_csv(folder / f"{name}.csv", rows, columns)
    store.write_json(folder / ABOUT, about)


def read_tables(folders: Iterable[Path]) -> Tables:
    """Returns the tables of some folders as one."""
    rows: dict[str, list[Row]] = {name: [] for name in TABLES}
    about = []
    for folder in folders:
        about.append(store.read_json(folder / ABOUT))
        for name in TABLES:
            if (path := folder / f"{name}.csv").exists():
                rows[name] += [
                    {key: text if key in TEXTS else _number(text) for key, text in row.items()}
                    for row in store.read_csv(path)
                ]
    return Tables(rows, about)


def leaderboard(tables: Tables, confidence: float = 0.95, resamples: int = 9999) -> list[Row]:
    """Returns a row for each unit and estimator, and one for each unit's ceiling, `RERUN`.

    `metric_lds` is the mean over runs and shares of the rank correlation with the unit's metric,
    `metric_lds/<share>` over runs alone, `metric_lds_at_random` that of the sets which no scores
    had a part in drawing; `measurement_lds` and so on are those with the measurement. The row of
    the ceiling has in their place what a perfect score would reach (`truth.rerun_ceiling`), and
    `/of_ceiling` of every other row is its share of that. `metric_fit/slope`, `/intercept`, `/r2`,
    `/sign` are of the random sets. Effects are the unit's metric after the edit minus that of the
    control, in its own units, mean over runs; `transfer/` is a removal in runs from other initial
    weights; `with_exact` is the rank correlation of the scores with those of `exact`, and `cost` is
    in trainings of the window, both means over runs. Returns None for what was not measured; sets
    whose outcome is missing or not finite are counted by `/left_out`, where there are any.
    """
    rows, board = tables.rows, []
    shares = sorted({row["fraction"] for row in rows["subsets"]})
    for unit, name in _pairs(tables):
        answers: Row = {"unit": unit, "estimator": name, "seeds": _seeds(tables, unit, name)}
        for outcome in OUTCOMES:
            answers |= _predicted(tables, unit, name, outcome, confidence, resamples)
        for key, values in effects_of(rows["edits"], unit, name).items():
            answers |= {key: float(np.mean(list(values.values()))), f"{key}/n": len(values)}
        for column in ("roc_auc", "recall_at_k"):
            answers[column] = _mean(rows["planted"], unit, name, column)
        answers["with_exact"] = _mean(rows["estimators"], unit, name, f"spearman/{EXACT}")
        answers["cost"] = _mean(rows["estimators"], unit, name, "cost")
        board.append(answers)
    ceilings = {row["unit"]: row for row in board if row["estimator"] == RERUN}
    for row in board:
        highest = ceilings.get(row["unit"], {})
        for key in [f"{outcome}_{what}" for outcome in OUTCOMES for what in _asked(tables, shares)]:
            if row["estimator"] != RERUN and row.get(key) is not None and highest.get(key):
                row[f"{key}/of_ceiling"] = row[key] / highest[key]
    columns = list(dict.fromkeys(key for row in board for key in row))
    return [{key: row.get(key) for key in columns} for row in board]


def _predicted(
    tables: Tables, unit: str, name: str, outcome: str, confidence: float, resamples: int
) -> Row:
    """Returns rank correlations with an outcome by choice of sets, and the fit of random sets."""
    answers: Row = {}
    shares = sorted({row["fraction"] for row in tables.rows["subsets"]})
    for what, (sets, asked_shares) in _asked(tables, shares).items():
        groups = list(groups_of(sets, unit, name, asked_shares, outcome).values())
        if name == RERUN:
            reruns = [row["reruns"] for row in sets if row["unit"] == unit and row["reruns"]]
            k = float(np.mean(reruns)) if reruns else 1.0
            said = rerun_ceiling(groups, k, confidence, resamples)
        else:
            said = rank_correlation(groups, confidence, resamples)
        key = f"{outcome}_{what}"
        answers |= {key: said.mean, f"{key}/low": said.low, f"{key}/high": said.high,
                f"{key}/n": said.n}  # fmt: skip
        if left_out := sum(group.left_out for group in groups):
            answers[f"{key}/left_out"] = left_out
        if what == "lds_at_random" and name != RERUN:
            line = fit(groups)._asdict()
            answers |= {f"{outcome}_fit/{part}": value for part, value in line.items()}
    return answers


def _asked(tables: Tables, shares: Sequence[float]) -> dict[str, tuple[list[Row], Sequence[float]]]:
    """Returns the sets and shares of each rank correlation, by its name."""
    asked: dict[str, tuple[list[Row], Sequence[float]]]
    asked = {what: (sets, shares) for what, sets in _sets(tables).items()}
    return asked | {f"lds/{share}": (tables.rows["subsets"], [share]) for share in shares}


def groups_of(
    rows: Sequence[Row], unit: str, name: str, shares: Sequence[float], outcome: str = "metric"
) -> dict[tuple[int, float], Group]:
    """Returns predictions and measured values: a group for each run, by its seed, and share.

    The prediction of an estimator is minus the scores that were removed; that of a rerun is the
    measurement from a perturbed start. Sets whose outcome or prediction is missing or not finite
    are left out and counted.
    """

    def predicted(row: Row) -> float | None:
        if name == RERUN:
            return row.get(f"rerun_{outcome}")
        removed = row.get(f"removed/{name}")
        return None if removed is None else -removed

    groups = {}
    for seed in sorted({row["seed"] for row in rows}):
        for share in shares:
            key = (seed, unit, share)
            of_group = [r for r in rows if (r["seed"], r["unit"], r["fraction"]) == key]
            asked = [row for row in of_group if predicted(row) is not None]
            pairs = np.array([(predicted(row), row[outcome]) for row in asked], np.float64)
            finite = np.asarray(np.isfinite(pairs.reshape(-1, 2)).all(1))
            if complete := [row for row, good in zip(asked, finite, strict=True) if good]:
                x, y = pairs[finite].T
                before = complete[0].get(f"control_{outcome}") or 0.0
                groups[seed, share] = Group(
                    x, y, _bands(complete), len(asked) - len(complete), before
                )
    return groups


def _bands(rows: Sequence[Row]) -> np.ndarray:
    """Returns a number for each band of scores; each set drawn at random has its own."""
    names = [row["draw"] if row["draw"] != AT_RANDOM else f"{row['subset']}" for row in rows]
    return np.unique(names, return_inverse=True)[1]


def effects_of(
    rows: Sequence[Row], unit: str, name: str, outcome: str = "metric"
) -> dict[str, dict[tuple[int, int], float]]:
    """Returns the unit after an edit minus after none, by outcome and pair of seeds.

    Outcomes are `remove/0.1`, `augment/0.1`, `transfer/0.1`; a pair is the seed of the scores and
    that of the edited run.
    """
    effects: dict[str, dict[tuple[int, int], float]] = {}
    for row in rows:
        if (row["unit"], row["estimator"]) == (unit, name):
            edit = "transfer" if row["to_seed"] != row["seed"] else row["edit"]
            after, before = (row[f"{which}{outcome}"] for which in ("", "control_"))
            if after is not None and before is not None and np.isfinite(after - before):
                runs = effects.setdefault(f"{edit}/{row['fraction']}", {})
                runs[row["seed"], row["to_seed"]] = after - before
    return effects


def comparisons(
    tables: Tables, outcome: str = "metric", confidence: float = 0.95, resamples: int = 9999
) -> list[Row]:
    """Compares `unrolled` with EK-FAC and repetition: a row for each unit, rival and question.

    All measured settings of `unrolled` are compared, by one `outcome`. `lds`: its rank correlation
    minus theirs over the same sets of the same runs, with a bootstrap over the sets, for these runs
    only; `lds_at_random` is that over the sets drawn without scores. `remove/0.1`, `augment/0.1`,
    `transfer/0.1`: its effect minus theirs in the same runs, with Student's interval over the seeds
    whose scores chose the samples, None for fewer than three: an edit of two other runs counts
    once. More of `lds` is better, less after a removal, more after doubling; `better` is yes or no
    where the interval leaves out 0, else open. Intervals are not corrected for their number.
    """
    rows = []
    asked = [(unit, name) for unit, name in _pairs(tables) if name.partition(" ")[0] == TOP]
    for unit, top in asked:
        for other in OTHERS:
            pair = (top, other)
            for what, said in _differences(tables, unit, pair, outcome, confidence, resamples):
                sign = -1 if what.startswith(LOWERING) else 1
                rows.append({"unit": unit, "one": top, "other": other, "what": what,
                              "outcome": outcome, "difference": said.mean, "low": said.low,
                              "high": said.high, "n": said.n,
                              "better": _better(said, sign)})  # fmt: skip
    return rows


def _differences(
    tables: Tables, unit: str, pair: Sequence[str], outcome: str, confidence: float, resamples: int
) -> Iterator[tuple[str, Correlation]]:
    shares = sorted({row["fraction"] for row in tables.rows["subsets"]})
    for what, rows in _sets(tables).items():
        first, second = (groups_of(rows, unit, name, shares, outcome) for name in pair)
        if both := [key for key in first if key in second]:
            ours, theirs = ([groups[key] for key in both] for groups in (first, second))
            yield what, rank_correlation_gain(ours, theirs, confidence, resamples)
    mine, other = (effects_of(tables.rows["edits"], unit, name, outcome) for name in pair)
    for what in sorted(set(mine) & set(other)):
        by_seed: dict[int, list[float]] = {}
        for run in sorted(set(mine[what]) & set(other[what])):
            by_seed.setdefault(run[0], []).append(mine[what][run] - other[what][run])
        if by_seed:
            yield (
                what,
                _over_seeds([float(np.mean(gains)) for gains in by_seed.values()], confidence),
            )


def _sets(tables: Tables) -> dict[str, list[Row]]:
    """Returns all sets that were removed, and those drawn without scores."""
    rows = tables.rows["subsets"]
    return {"lds": rows, "lds_at_random": [row for row in rows if row["draw"] == AT_RANDOM]}


def _over_seeds(values: Sequence[float], confidence: float) -> Correlation:
    """Returns the mean over seeds, and Student's interval."""
    n, mean = len(values), float(np.mean(values))
    if n < 3:
        return Correlation(n, mean, None, None)
    return Correlation(n, mean, *student_interval(values, confidence))


def _better(said: Correlation, sign: int) -> str:
    if said.low is None or said.high is None or said.low <= 0 <= said.high:
        return "open"
    return "yes" if sign * said.low > 0 else "no"


def _pairs(tables: Tables) -> list[tuple[str, str]]:
    """Returns units and estimators in the order of the runs' settings, a unit's ceiling first."""
    pairs: dict[tuple[str, str], None] = {}
    for about in tables.about:
        for unit in about["units"]:
            if any(row["unit"] == unit for row in tables.rows["subsets"]):
                pairs[unit, RERUN] = None
            pairs |= {(unit, name): None for name in about["estimators"]}
    return list(pairs)


def _seeds(tables: Tables, unit: str, name: str) -> int:
    rows = tables.rows["estimators"]
    seeds = {row["seed"] for row in rows if (row["unit"], row["estimator"]) == (unit, name)}
    return len(seeds or {row["seed"] for row in tables.rows["subsets"]})


def _mean(rows: Sequence[Row], unit: str, name: str, column: str) -> float | None:
    values = [row.get(column) for row in rows if (row["unit"], row["estimator"]) == (unit, name)]
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else None


def _number(text: str) -> float | None:
    if not text:
        return None
    return int(text) if text.lstrip("-").isdigit() else float(text)
