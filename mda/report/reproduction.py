"""Two runs of one configuration, metric by metric: equal, or by how much they differ."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

TABLES = ("curve.csv", "train.csv", "scores.csv", "plan.csv", "revisions.csv")


@dataclass(frozen=True)
class Agreement:
    """One column of a table that both runs have."""

    table: str
    column: str
    rows: int
    largest: float  # |difference|; infinite where text or the number of rows differs
    equal: bool


def agreement(old: Path, new: Path) -> list[Agreement]:
    """Every column of every table of `TABLES` that the old run has, against the new run's.

    Values are compared as they were written, which is to the last bit. Raises ValueError where
    the old run has none of the tables.
    """
    tables = [name for name in TABLES if (old / name).exists()]
    if not tables:
        raise ValueError(f"{old} has none of {', '.join(TABLES)}: there is nothing to compare")
    return [row for name in tables for row in _compare(name, old / name, new / name)]


def print_agreement(found: Sequence[Agreement]) -> bool:
    """Table of the columns that differ, and a line on the whole; True where all are equal."""
    different = [row for row in found if not row.equal]
    if different:
        table = Table("table", "metric", "rows", "largest difference", box=None)
        for row in different:
            largest = "not comparable" if math.isinf(row.largest) else f"{row.largest:.3g}"
            table.add_row(row.table, row.column, f"{row.rows:,}", largest)
        Console().print(table)
    numbers = sum(row.rows for row in found)
    told = "all equal, to the last bit" if not different else f"{len(different)} of them differ"
    print(f"{len(found)} logged metrics, {numbers:,} values: {told}")
    return not different


def _compare(name: str, old: Path, new: Path) -> list[Agreement]:
    ours = _columns(old)
    theirs = _columns(new) if new.exists() else {}
    return [_column(name, column, a, theirs.get(column, [])) for column, a in ours.items()]


def _column(name: str, column: str, a: list[str], b: list[str]) -> Agreement:
    if a == b:
        return Agreement(name, column, len(a), 0.0, True)
    try:
        largest = max(abs(float(x) - float(y)) for x, y in zip(a, b, strict=True))
    except ValueError:  # text, or another number of rows
        largest = math.inf
    return Agreement(name, column, len(a), largest, False)


def _columns(path: Path) -> dict[str, list[str]]:
    lines = path.read_text("utf-8").splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    return {column: [row[column] for row in rows] for column in (rows[0] if rows else {})}
