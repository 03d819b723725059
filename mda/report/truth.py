"""The output of the benchmark of estimators: tables, a page, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mda import store
from mda.analysis.leaderboard import Row, Tables, groups_of, leaderboard, write_tables
from mda.report.drawing import plt, save_figure
from mda.report.leaderboard import all_comparisons, cell, columns, is_complete, meanings, page
from mda.report.page import percent
from mda.schema import ReportConfig

FILES = {
    "leaderboard.csv": "a row for each unit and estimator: LDS, edits, planted causes, cost",
    "comparisons.csv": "unrolled against EK-FAC and repetition",
    "leaderboard.md": "the same for people, with the highest samples side by side",
    "subsets.csv": "every set that was removed: what was predicted, what was measured",
    "edits.csv": "the unit after each edit of highest scores, and of the control",
    "planted.csv": "planted causes that each estimator finds",
    "estimators.csv": "seconds of each estimator, and its rank correlation with the others",
    "tops.csv": "samples of highest score as text",
    "labels.csv": "labels of the top 10 % by score",
    "about.json": "settings, window, units, and how much of the whole was done",
    "lds.png": "predicted against measured, a point for every set",
}


def report_truth(tables: Tables, folder: Path, config: ReportConfig) -> dict[str, Any]:
    """Writes all files, prints the leaderboard and returns the results for summary.json."""
    write_tables(tables, folder)
    board = leaderboard(tables, config.confidence, config.resamples)
    compared = all_comparisons(tables, config)
    for name, rows in (("leaderboard", board), ("comparisons", compared)):
        if rows:
            store.write_csv(folder / f"{name}.csv", rows)
    lines = ["# Leaderboard", "", meanings(config), "", *page(tables, board, compared)]
    with store.replacing(folder / "leaderboard.md") as file:
        file.write("\n".join(lines))
    draw(tables, folder / "lds.png", config.dpi)
    show(board)
    return {"complete": is_complete(tables), "leaderboard": board, "comparisons": compared}


def draw(tables: Tables, path: Path, dpi: int) -> None:
    """Plots predicted against measured values for every unit (rows) and estimator (columns)."""
    rows = tables.rows["subsets"]
    if not rows:
        return
    units = list(dict.fromkeys(row["unit"] for row in rows))
    names = list(dict.fromkeys(key.removeprefix("removed/") for row in rows for key in row
                               if key.startswith("removed/")))  # fmt: skip
    shares = sorted({row["fraction"] for row in rows})
    figure, axes = plt.subplots(
        len(units), len(names), figsize=(2.2 * len(names), 2.2 * len(units)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for unit, line in zip(units, axes, strict=True):
        for name, ax in zip(names, line, strict=True):
            for share in shares:
                for group in groups_of(rows, unit, name, [share]).values():
                    ax.plot(
                        group.predicted,
                        group.measured,
                        "o",
                        ms=3,
                        label=f"{percent(share)} removed",
                    )
            ax.set_title(name, fontsize=8)
            ax.tick_params(labelsize=6)
        line[0].set_ylabel(f"{unit}, measured", fontsize=7)
    axes[0][0].legend(fontsize=6)
    figure.supxlabel("minus the summed scores of the removed set", fontsize=8)
    save_figure(figure, path, dpi)


def show(board: Sequence[Row]) -> None:
    """Prints the leaderboard."""
    for unit in dict.fromkeys(row["unit"] for row in board):
        rows = [row for row in board if row["unit"] == unit]
        shown = columns(rows)
        printed = Table("estimator", *shown.values(), title=unit, box=None)
        for row in rows:
            printed.add_row(row["estimator"], *(cell(row, key, rows) for key in shown))
        Console().print(printed)
