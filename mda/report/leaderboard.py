"""The leaderboard of a run in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mda.analysis.leaderboard import (
    OUTCOMES,
    RERUN,
    SIDE_BY_SIDE,
    Row,
    Tables,
    comparisons,
)
from mda.report.page import DASH, markdown, number, percent
from mda.schema import ReportConfig

NAMES = {RERUN: "*ceiling, by reruns*"}
VERDICTS = {"yes": ": **better**", "no": ": **worse**", "open": ""}
PAIR = ("outcome", "one", "other")
QUESTIONS = {  # heading without a share, what was counted
    "lds_at_random": ("LDS, random sets", "sets"),
    "lds": ("LDS, all sets", "sets"),
    "remove": ("removal", "seeds"),
    "augment": ("doubling", "seeds"),
    "transfer": ("transfer", "seeds"),
}
FIT = {"slope": "slope", "intercept": "intercept", "r2": "R²", "sign": "sign"}
COMPARED = """\
Differences, with an interval and the number of sets or seeds. **Better** or **worse** means that
the interval excludes 0; all others are not shown to differ."""
MEANINGS = """\
- **LDS**, the linear datamodeling score (arXiv 2303.14186): Spearman's rank correlation between
  minus the summed scores of a removed set and the unit after training without it. It is a mean
  over shares of the window and over runs, with a {percent} percentile bootstrap over the sets.
- **Metric, measurement**: each LDS is given for two outcomes. The metric is what is plotted, and
  what `unrolled` differentiates for heads; the measurement is what the other estimators
  differentiate.
- **Random sets, all sets**: random sets differ little from each other. Half of the sets are
  therefore drawn by the scores of unrolled, EK-FAC or repetition, each within a third of the
  window. This spreads the predictions of these three estimators, so over all sets an estimator
  also gains by being like them. Sets of one band share up to nine tenths of their samples and are
  resampled together.
- **Ceiling**: the LDS that the expected outcome itself would reach. It is estimated by training
  the same sets again from slightly perturbed starts: the square root of the rank correlation
  between reruns, if their noise is independent.
- **Removal, doubling**: the metric at the window's end after the edit, minus that of the control.
  **Transfer**: the same set removed in a run from other initial weights that sees the same order,
  measured on that run's own unit.
- **With exact**: Spearman's correlation of the scores with those of the exact Gauss-Newton
  matrix.
- **Cost**: in trainings of the window, by processor time where training is on a CPU. It includes
  the curvature, whichever estimator fitted it. Other work on the machine raises it, though less
  than time by the clock. A dash means that the scores were computed in pieces, or by another
  tool.
- **Slope, intercept, R², sign**: the change that a random set makes, fitted by least squares on
  minus its summed scores within each run and share; sign is the share of sets that change as
  predicted. A slope has the units of the outcome divided by those of the scores, so only scores
  in units of the outcome can have slope 1.
- **Comparisons** by LDS have a bootstrap over the sets and hold for these runs alone. Comparisons
  by effects have Student's interval over seeds, from three seeds on. Each is uncorrected for
  their number."""


def meanings(config: ReportConfig) -> str:
    """Returns the explanations of a page's columns."""
    return MEANINGS.format(percent=percent(config.confidence))


def all_comparisons(tables: Tables, config: ReportConfig) -> list[Row]:
    """Returns the comparisons by the metric, and then by the measurement."""
    by_outcome = (comparisons(tables, one, config.confidence, config.resamples) for one in OUTCOMES)
    return [row for rows in by_outcome for row in rows]


def page(tables: Tables, board: Sequence[Row], compared: Sequence[Row]) -> list[str]:
    """Returns lines of Markdown: the run, a table per unit, comparisons, highest samples."""
    lines = [f"- {said(about)}" for about in tables.about]
    lines += [f"- Warning: {text}" for about in tables.about for text in about["warnings"]]
    lines += [""]
    for unit in dict.fromkeys(row["unit"] for row in board):
        rows = [row for row in board if row["unit"] == unit]
        if not columns(rows):  # nothing of it has been measured yet
            continue
        lines += [f"### {unit}", "", *table(rows), "", *fit_table(rows)]
        lines += comparison_table([row for row in compared if row["unit"] == unit])
        lines += side_by_side(tables, unit, samples=unit == board[0]["unit"])
    return lines


def is_complete(tables: Tables) -> bool:
    """Returns whether every run finished all that its settings ask for."""
    return all(about["done"] == about["planned"] for about in tables.about)


def said(about: Mapping[str, Any]) -> str:
    """Returns one sentence that describes a run."""
    units = ", ".join(f"{name} {located}" for name, located in about["units"].items())
    start, end = about["window"]
    whole = "" if about["done"] == about["planned"] else "; **partial**"
    return (
        f"Seed {about['seed']}, window [{start:,}, {end:,}), {about['samples']:,} samples; "
        f"{units}; {counted(about)}{whole}."
    )


def counted(about: Mapping[str, Any]) -> str:
    """Returns how many of the requested retrainings are done."""
    planned = about["planned"].items()
    return ", ".join(f"{about['done'][what]} of {n} {what}" for what, n in planned if n)


def columns(board: Sequence[Row]) -> dict[str, str]:
    """Returns the headings of the rows' columns by key, in order."""
    told = ("lds_at_random", "lds")
    keys = dict.fromkeys(
        f"{by}{what}" for what in told for by in ("", *map("{}_".format, OUTCOMES))
    )
    keys |= {key: None for row in board for key in row if _is_question(key)}
    headings = {key: _heading(key) for key in keys}
    headings |= {"roc_auc": "AUC", "recall_at_k": "recall at k"}
    headings |= {"with_exact": "with exact", "cost": "cost"}
    return {k: h for k, h in headings.items() if any(row.get(k) is not None for row in board)}


def _is_question(key: str) -> bool:
    """Returns whether a key is one of `QUESTIONS`, not a part of an answer such as its n."""
    _, kind, share = _parts(key)
    return kind in QUESTIONS and (not share or share.replace(".", "").isdigit())


def _parts(key: str) -> tuple[str, str, str]:
    """Returns a key's outcome, its kind of `QUESTIONS` and its share; empty where it has none."""
    kind, _, share = key.partition("/")
    outcome, _, rest = kind.partition("_")
    return (outcome, rest, share) if outcome in OUTCOMES else ("", kind, share)


def _heading(key: str) -> str:
    outcome, kind, share = _parts(key)
    heading, comma, sets = QUESTIONS[kind][0].partition(",")
    heading += f" {outcome}" if outcome else ""
    return f"{heading} {percent(float(share))}" if share else heading + comma + sets


def table(board: Sequence[Row]) -> list[str]:
    """Returns a Markdown table of one unit's rows, leaving out rows without a number."""
    shown = columns(board)
    board = [row for row in board if row["estimator"] == RERUN
             or any(row.get(key) is not None for key in shown)]  # fmt: skip
    rows = []
    for row in board:
        name: str = row["estimator"]
        rows.append((NAMES.get(name, name), *(cell(row, key, board) for key in shown)))
    return markdown(("estimator", *shown.values()), rows)


def cell(row: Row, key: str, board: Sequence[Row]) -> str:
    """Returns a number with its interval, if any, and its count where other rows have more."""
    n, most = row.get(f"{key}/n"), max(other.get(f"{key}/n") or 0 for other in board)
    is_lds = _parts(key)[1].startswith("lds")
    if (value := row.get(key)) is None:
        unknown = row["estimator"] == RERUN and is_lds
        return f"not known: {n or 0} of {most} sets rerun" if unknown else DASH
    counted = "sets" if is_lds else "runs"
    fewer = f" ({n} of {most} {counted})" if n and n < most else ""
    if left_out := row.get(f"{key}/left_out"):
        fewer += f" ({left_out} without an outcome left out)"
    low, high = row.get(f"{key}/low"), row.get(f"{key}/high")
    interval = f" [{_two(low)}, {_two(high)}]" if low is not None and high is not None else ""
    text = _two(value) if is_lds or key.startswith(("roc", "recall", "with")) else number(value)
    return text + interval + fewer


def fit_table(board: Sequence[Row]) -> list[str]:
    """Returns a table of each estimator's fit to both outcomes, over the random sets."""
    if not any(row.get(f"{outcome}_lds_at_random") for row in board for outcome in OUTCOMES):
        return []
    rows = []
    for row, outcome in ((row, outcome) for row in board for outcome in OUTCOMES):
        key = f"{outcome}_lds_at_random"
        if row["estimator"] == RERUN or row.get(key) is None:
            continue
        share = row.get(f"{key}/of_ceiling")
        slope, intercept, r2, sign = (row[f"{outcome}_fit/{part}"] for part in FIT)
        parts = (_of(share), number(slope), number(intercept), _of(r2), _of(sign))
        rows.append((row["estimator"], outcome, cell(row, key, board), *parts))
    heads = ("estimator", "by the", "LDS, random sets", "of the ceiling", *FIT.values())
    return [*markdown(heads, rows), ""]


def comparison_table(compared: Sequence[Row]) -> list[str]:
    """Returns the differences of two estimators, a row per pair and outcome; [] without any."""
    if not compared:
        return []
    by = {tuple(row[key] for key in (*PAIR, "what")): row for row in compared}
    asked = {row["what"]: None for row in compared}
    asked = [what for what in columns([dict.fromkeys(asked, True)]) if what in asked]
    rows = []
    for outcome, one, other in dict.fromkeys(tuple(row[key] for key in PAIR) for row in compared):
        cells = (difference(by.get((outcome, one, other, what))) for what in asked)
        rows.append((outcome, f"{one} minus {other}", *cells))
    heads = ("by the", "difference", *map(_heading, asked))
    return [COMPARED, "", *markdown(heads, rows), ""]


def difference(row: Row | None) -> str:
    """Returns a difference with its interval, its count and the verdict."""
    if row is None or row["difference"] is None:
        return DASH
    _, counted = QUESTIONS[row["what"].partition("/")[0]]
    value, n = number(row["difference"]), f"{row['n']} {counted[: None if row['n'] != 1 else -1]}"
    if row["low"] is None:
        return f"{value}, {n}: not tested"
    interval = f"[{number(row['low'])}, {number(row['high'])}]"
    return f"{value} {interval}, {n}{VERDICTS[row['better']]}"


def side_by_side(tables: Tables, unit: str, samples: bool) -> list[str]:
    """Returns the highest samples of two estimators in one table, and labels of the top 10 %."""
    tops = [row for row in tables.rows["tops"] if row["unit"] == unit]
    labels = [row for row in tables.rows["labels"] if row["unit"] == unit]
    shown = {(row["seed"], row["estimator"]) for row in tops}
    both = [seed for seed, _ in sorted(shown) if {(seed, name) for name in SIDE_BY_SIDE} <= shown]
    if not both:
        return []
    seed, lines = both[0], []
    if samples:
        by = {(row["rank"], row["estimator"]): row for row in tops if row["seed"] == seed}
        rows = [
            (f"{rank}", *(_sample(by[rank, name]) for name in SIDE_BY_SIDE))
            for rank in sorted({rank for rank, _ in by})
        ]
        heads = ("", *SIDE_BY_SIDE)
        lines = [f"Highest samples, seed {seed}:", "", *markdown(heads, rows), ""]
    rows = []
    for label in dict.fromkeys(row["label"] for row in labels):
        own = [row for row in labels if row["label"] == label]
        shares = [_percent(row["share_of_window"] for row in own)]
        for name in SIDE_BY_SIDE:
            shares.append(_percent(r["share_of_top"] for r in own if r["estimator"] == name))
        rows.append((label, *shares))
    shown = markdown(("label", "window", *SIDE_BY_SIDE), rows)
    return [*lines, "Labels of the highest tenth, mean over runs:", "", *shown, ""]


def _sample(row: Row) -> str:
    text = " ".join(row["text"].split())[:90].replace("|", "\\|").replace("`", "'")
    return f"{row['label']}, step {row['step']:,}: `{text}`"


def _percent(shares: Iterable[float]) -> str:
    values = list(shares)
    return f"{100 * np.mean(values):.1f} %" if values else DASH


def _of(share: float | None) -> str:
    return DASH if share is None else _two(share)


def _two(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
