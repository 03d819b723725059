"""The leaderboard of the committed tables, and its part of the main README.

`experiments/results.py` writes both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from study_pages import fill

from mda import store
from mda.analysis.leaderboard import ABOUT, SIDE_BY_SIDE, Row, Tables, leaderboard, read_tables
from mda.report.leaderboard import QUESTIONS, all_comparisons, is_complete, meanings, page, table
from mda.schema import ReportConfig

PLACE, README_PRESET = "leaderboard", "default"  # in the README
EDITS = tuple(f"{kind}/" for kind, (_, counted) in QUESTIONS.items() if counted == "seeds")


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
