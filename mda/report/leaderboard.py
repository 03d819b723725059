"""The leaderboard in Markdown: the page of a run, that of committed tables, the README's part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mda import store
from mda.analysis.leaderboard import (
    ABOUT,
    RERUN,
    SIDE_BY_SIDE,
    Row,
    Tables,
    comparisons,
    leaderboard,
    read_tables,
)
from mda.report.page import DASH, number, percent
from mda.report.readme import fill
from mda.schema import ReportConfig

PLACE, README_PRESET = "leaderboard", "default"  # in the README
NAMES = {RERUN: "*rerun of the same sets*"}
VERDICTS = {"yes": ": **better**", "no": ": **worse**", "open": ""}
OUTCOMES, PAIR = ("metric", "measurement"), ("outcome", "one", "other")
QUESTIONS = {  # heading without a share, what was counted
    "lds_at_random": ("LDS, random sets", "sets"),
    "lds": ("LDS, all sets", "sets"),
    "remove": ("removal", "seeds"),
    "augment": ("doubling", "seeds"),
    "transfer": ("transfer", "seeds"),
}
EDITS = tuple(f"{kind}/" for kind, (_, counted) in QUESTIONS.items() if counted == "seeds")
COMPARED = """\
Differences, with an interval and over how many sets or seeds. **Better** or **worse** stands where
the interval leaves out 0; all others are not shown to differ."""
MEANINGS = """\
LDS: Spearman's rank correlation of minus the summed scores of a removed set with the unit's metric
after training without it (arXiv 2303.14186), mean over shares of the window and runs, with a \
{percent}
percentile bootstrap over the sets. Random sets differ little from each other. Half of the sets are
therefore drawn within a third of the window by the scores of unrolled, EK-FAC or repetition: that
spreads these estimators' predictions, so that over all sets the rows also say which estimators are
like those three. Sets of one band share up to nine tenths of their samples and are resampled
together. Effects: the metric at the window's end after an edit minus that of the control. Transfer:
the set removed in a run from other initial weights that sees the same order, where the unit is that
run's own. Rerun: the rank correlation of two trainings without the same set, one from a start with
a little noise; under independent noise, scores that know the expected effect would reach its square
root. For heads, unrolled is the derivative of the metric itself, the other influences are those of
the measurement, so that both are compared below. Comparisons by LDS have a bootstrap over the sets
and speak of these runs alone; those by effects have Student's interval over seeds, from three seeds
on. Each stands alone, uncorrected for their number. With exact: Spearman's correlation of the
scores with those of the Gauss-Newton matrix itself. Cost: in trainings of the window, by processor
time where training is on a CPU (other work on the machine raises it too, though less than time by
the clock), a fitted curvature included whoever fitted it; a dash where scores were computed in
pieces."""


def meanings(config: ReportConfig) -> str:
    """What the columns of a page are."""
    return MEANINGS.format(percent=percent(config.confidence))


def all_comparisons(tables: Tables, config: ReportConfig) -> list[Row]:
    """Comparisons by the metric, and then by the measurement."""
    found = (comparisons(tables, one, config.confidence, config.resamples) for one in OUTCOMES)
    return [row for rows in found for row in rows]


def page(tables: Tables, board: Sequence[Row], compared: Sequence[Row]) -> list[str]:
    """Lines of Markdown: what was done, a table for each unit, comparisons, highest samples."""
    lines = [f"- {said(about)}" for about in tables.about]
    lines += [f"- Warning: {text}" for about in tables.about for text in about["warnings"]]
    lines += [""]
    for unit in dict.fromkeys(row["unit"] for row in board):
        rows = [row for row in board if row["unit"] == unit]
        if not columns(rows):  # nothing of it has been measured yet
            continue
        lines += [f"### {unit}", "", *table(rows), ""]
        lines += comparison_table([row for row in compared if row["unit"] == unit])
        lines += side_by_side(tables, unit, samples=unit == board[0]["unit"])
    return lines


def is_complete(tables: Tables) -> bool:
    """Whether every run did all that its settings ask for."""
    return all(about["done"] == about["planned"] for about in tables.about)


def said(about: Mapping[str, Any]) -> str:
    """One run in a sentence."""
    units = ", ".join(f"{name} {located}" for name, located in about["units"].items())
    start, end = about["window"]
    whole = "" if about["done"] == about["planned"] else "; **partial**"
    return (
        f"Seed {about['seed']}, window [{start:,}, {end:,}), {about['samples']:,} samples; "
        f"{units}; {counted(about)}{whole}."
    )


def counted(about: Mapping[str, Any]) -> str:
    """How much of what was asked for was done."""
    planned = about["planned"].items()
    return ", ".join(f"{about['done'][what]} of {n} {what}" for what, n in planned if n)


def columns(board: Sequence[Row]) -> dict[str, str]:
    """Key -> heading of what the rows have, in order."""
    keys = dict.fromkeys(("lds_at_random", "lds"))
    keys |= {key: None for row in board for key in row if _is_question(key)}
    headings = {key: _heading(key) for key in keys}
    headings |= {"roc_auc": "AUC", "recall_at_k": "recall at k"}
    headings |= {"with_exact": "with exact", "cost": "cost"}
    return {k: h for k, h in headings.items() if any(row.get(k) is not None for row in board)}


def _is_question(key: str) -> bool:
    """Whether a key is one of `QUESTIONS`, of a share or of all: no part of an answer as its n."""
    kind, _, share = key.partition("/")
    return kind in QUESTIONS and (not share or share.replace(".", "").isdigit())


def _heading(key: str) -> str:
    kind, _, share = key.partition("/")
    heading, _ = QUESTIONS[kind]
    return f"{heading.split(',')[0]} {percent(float(share))}" if share else heading


def table(board: Sequence[Row]) -> list[str]:
    """A Markdown table of one unit's rows, of those that have a number."""
    shown = columns(board)
    board = [row for row in board if any(row.get(key) is not None for key in shown)]
    lines = [f"| estimator | {' | '.join(shown.values())} |", "|---" * (len(shown) + 1) + "|"]
    for row in board:
        name = NAMES.get(row["estimator"], row["estimator"])
        lines.append(f"| {name} | {' | '.join(cell(row, key, board) for key in shown)} |")
    return lines


def cell(row: Row, key: str, board: Sequence[Row]) -> str:
    """A number, with its interval where it has one; where others have more of it, of how much."""
    if (value := row.get(key)) is None:
        return DASH
    n, most = row.get(f"{key}/n"), max(other.get(f"{key}/n") or 0 for other in board)
    counted = "sets" if key.startswith("lds") else "runs"
    fewer = f" ({n} of {most} {counted})" if n and n < most else ""
    low, high = row.get(f"{key}/low"), row.get(f"{key}/high")
    interval = f" [{_two(low)}, {_two(high)}]" if low is not None and high is not None else ""
    text = _two(value) if key.startswith(("lds", "roc", "recall", "with")) else number(value)
    return text + interval + fewer


def comparison_table(compared: Sequence[Row]) -> list[str]:
    """What two estimators differ by, a row for each pair and outcome; none without a comparison."""
    if not compared:
        return []
    by = {tuple(row[key] for key in (*PAIR, "what")): row for row in compared}
    asked = {row["what"]: None for row in compared}
    asked = [what for what in columns([dict.fromkeys(asked, True)]) if what in asked]
    lines = [COMPARED, "", f"| by the | difference | {' | '.join(map(_heading, asked))} |"]
    lines += ["|---" * (len(asked) + 2) + "|"]
    for outcome, one, other in dict.fromkeys(tuple(row[key] for key in PAIR) for row in compared):
        cells = [difference(by.get((outcome, one, other, what))) for what in asked]
        lines.append(f"| {outcome} | {one} minus {other} | {' | '.join(cells)} |")
    return [*lines, ""]


def difference(row: Row | None) -> str:
    """A difference with its interval, over how much, and the verdict."""
    if row is None or row["difference"] is None:
        return DASH
    _, counted = QUESTIONS[row["what"].partition("/")[0]]
    value, n = number(row["difference"]), f"{row['n']} {counted[: None if row['n'] != 1 else -1]}"
    if row["low"] is None:
        return f"{value}, {n}: not tested"
    interval = f"[{number(row['low'])}, {number(row['high'])}]"
    return f"{value} {interval}, {n}{VERDICTS[row['better']]}"


def side_by_side(tables: Tables, unit: str, samples: bool) -> list[str]:
    """Highest samples of two estimators in one table, if asked, and labels of highest tenths."""
    tops = [row for row in tables.rows["tops"] if row["unit"] == unit]
    labels = [row for row in tables.rows["labels"] if row["unit"] == unit]
    shown = {(row["seed"], row["estimator"]) for row in tops}
    both = [seed for seed, _ in sorted(shown) if {(seed, name) for name in SIDE_BY_SIDE} <= shown]
    if not both:
        return []
    seed, lines = both[0], []
    if samples:
        lines = [f"Highest samples, seed {seed}:", "", f"| | {' | '.join(SIDE_BY_SIDE)} |",
                 "|---|---|---|"]  # fmt: skip
        by = {(row["rank"], row["estimator"]): row for row in tops if row["seed"] == seed}
        for rank in sorted({rank for rank, _ in by}):
            cells = (_sample(by[rank, name]) for name in SIDE_BY_SIDE)
            lines.append(f"| {rank} | {' | '.join(cells)} |")
        lines.append("")
    lines += ["Labels of the highest tenth, mean over runs:", "",
              f"| label | window | {' | '.join(SIDE_BY_SIDE)} |", "|---|---|---|---|"]  # fmt: skip
    for label in dict.fromkeys(row["label"] for row in labels):
        own = [row for row in labels if row["label"] == label]
        shares = [_percent(row["share_of_window"] for row in own)]
        for name in SIDE_BY_SIDE:
            shares.append(_percent(r["share_of_top"] for r in own if r["estimator"] == name))
        lines.append(f"| {label} | {' | '.join(shares)} |")
    return [*lines, ""]


def label_sentence(tables: Tables, unit: str) -> list[str]:
    """The label that EK-FAC's highest tenth has most of beyond its share, and that of unrolled."""
    labels = [row for row in tables.rows["labels"] if row["unit"] == unit]
    shares: dict[tuple[str, str], list[float]] = {}
    for row in labels:
        shares.setdefault(("window", row["label"]), []).append(row["share_of_window"])
        shares.setdefault((row["estimator"], row["label"]), []).append(row["share_of_top"])
    means = {key: float(np.mean(values)) for key, values in shares.items()}
    theirs = {label: mean - means["window", label]
              for (name, label), mean in means.items() if name == SIDE_BY_SIDE[1]}  # fmt: skip
    label = max(theirs, key=theirs.__getitem__, default=None)
    if label is None or (SIDE_BY_SIDE[0], label) not in means:
        return []
    own = ", ".join(f"{100 * means[name, label]:.0f} % by {name}" for name in SIDE_BY_SIDE)
    window = f"{100 * means['window', label]:.0f} %"
    return [f"Of the highest tenth {own} are {label}, of the window {window}."]


def leader_table(tables: Tables, board: Sequence[Row]) -> list[str]:
    """The README's table: the first unit, how much stands behind it, and its highest samples.

    Of the shares of an edit it has the largest. How far two estimators differ is on the page.
    """
    if not board:
        return ["No result has been committed yet."]
    first = board[0]["unit"]
    seeds = sorted({about["seed"] for about in tables.about})
    state = ""
    if not is_complete(tables):
        state = " **Partial and exploratory**: the page of results says how much was done."
    head = f"{first}, {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
    removed = [about["seed"] for about in tables.about if about["done"]["sets"]]
    if removed and len(removed) < len(seeds):
        head += f"; LDS of {', '.join(map(str, sorted(removed)))}"
    rows = [row for row in board if row["unit"] == first]
    edits = {key.split("/")[1] for row in rows for key in row if key.startswith(EDITS)}
    largest = max(edits, key=float, default="")

    def in_short(key: str) -> bool:
        return key.split("/")[1] == largest if key.startswith(EDITS) else "lds/0" not in key

    narrow = [{key: value for key, value in row.items() if in_short(key)} for row in rows]
    return [f"{head}.{state}", "", *table(narrow), "", *label_sentence(tables, first)]


def leaderboard_pages(results: Path, readme: Path, config: ReportConfig) -> dict[Path, str]:
    """The page of the committed tables in the folders of `results`, and the README with its table.

    Runs of one preset make a leaderboard; the README has that of `default`. Returns what each of
    the two files has to hold. Raises ValueError for a README without `PLACE`.
    """
    presets: dict[str, list[Path]] = {README_PRESET: []}
    for place in sorted(path.parent for path in results.glob(f"*/{ABOUT}")):
        presets.setdefault(store.read_json(place / ABOUT)["settings"]["name"], []).append(place)
    made = "Made by `python experiments/results.py` from the tables that lie here; do not edit."
    lines = ["# Leaderboard", "", made, "", meanings(config), ""]
    first: list[str] = []
    for preset, places in presets.items():
        tables = read_tables(places)
        refuse_mixed(preset, tables)
        board = leaderboard(tables, "metric", config.confidence, config.resamples)
        first = first or leader_table(tables, board)
        body = page(tables, board, all_comparisons(tables, config)) if board else first
        lines += [f"## `truth={preset}`", "", *body]
    shown = fill(readme.read_text("utf-8"), PLACE, first)
    return {results / "README.md": "\n".join([*lines, ""]), readme: shown}


def refuse_mixed(preset: str, tables: Tables) -> None:
    """Raise ValueError where a seed was measured twice, or runs saw different corpora.

    Two seeds that start from the same weights and see the same samples in turn are one seed.
    """
    seeds = [about["seed"] for about in tables.about]
    if twice := [seed for seed in sorted(set(seeds)) if seeds.count(seed) > 1]:
        raise ValueError(f"truth={preset}: seed {twice[0]} has two folders; accepted: one")
    origins = [origin for about in tables.about if (origin := about["fingerprints"].get("origin"))]
    if len(set(origins)) < len(origins):
        raise ValueError(f"truth={preset}: two seeds are copies of each other; accepted: one")
    if len({about["fingerprints"]["corpus"] for about in tables.about}) > 1:
        raise ValueError(f"truth={preset}: runs of different corpora; accepted: truth.name=another")


def _sample(row: Row) -> str:
    text = " ".join(row["text"].split())[:90].replace("|", "\\|").replace("`", "'")
    return f"{row['label']}, step {row['step']:,}: `{text}`"


def _percent(shares: Iterable[float]) -> str:
    found = list(shares)
    return f"{100 * np.mean(found):.1f} %" if found else DASH


def _two(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
