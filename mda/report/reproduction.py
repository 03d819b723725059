"""Two runs of one configuration, metric by metric: equality, or their difference."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mda.report.terminal import shown
from mda.schema import ConfigError
from mda.schema.old_words import FILES, metric_now

TABLES = ("curve.csv", "train.csv", "scores.csv", "edit.csv", "revisions.csv")
LIMIT = 100_000_000  # bytes of a table: two million scores

Tables = dict[str, dict[str, list[str]]]  # name -> column -> values as they were written


@dataclass(frozen=True)
class Agreement:
    """One column of a table that both runs have."""

    table: str
    column: str
    rows: int
    largest: float  # |difference|; infinite where text or the number of rows differs
    equal: bool


def read_tables(run: Path) -> Tables:
    """Returns those of `TABLES` that a run has.

    Raises ConfigError where there is none, or where one is not a regular file of at most `LIMIT`
    bytes with as many values in every row.
    """
    tables = {
        FILES.get(name, name): _columns(run / name)
        for name in (*TABLES, *FILES)
        if os.path.lexists(run / name)
    }
    if not tables:
        raise ConfigError(f"{run} is invalid; expected a run with one of {', '.join(TABLES)}")
    return tables


def agreement(old: Tables, new: Tables) -> list[Agreement]:
    """Compares every column of every table of the old run with the new run's.

    Values are compared as written, to the last bit.
    """
    return [
        _column(name, column, values, new.get(name, {}).get(column, []))
        for name, columns in old.items()
        for column, values in columns.items()
    ]


def print_agreement(found: Sequence[Agreement]) -> bool:
    """Prints the columns that differ, and a line on the whole. Returns True where all are equal."""
    different = [row for row in found if not row.equal]
    if different:
        table = Table("table", "metric", "rows", "largest difference", box=None)
        for row in different:
            largest = "not comparable" if math.isinf(row.largest) else f"{row.largest:.3g}"
            table.add_row(row.table, shown(row.column), f"{row.rows:,}", largest)
        Console().print(table)
    numbers = sum(row.rows for row in found)
    told = "all equal, to the last bit" if not different else f"{len(different)} of them differ"
    print(f"{len(found)} logged metrics, {numbers:,} values: {told}")
    return not different


def _column(name: str, column: str, a: list[str], b: list[str]) -> Agreement:
    if a == b:
        return Agreement(name, column, len(a), 0.0, True)
    try:
        apart = [abs(float(x) - float(y)) for x, y in zip(a, b, strict=True) if x != y]
    except ValueError:  # text, or another number of rows
        apart = [math.inf]
    largest = math.inf if any(map(math.isnan, apart)) else max(apart)  # measured in one alone
    return Agreement(name, column, len(a), largest, False)


def _columns(path: Path) -> dict[str, list[str]]:
    try:
        if not path.is_file():  # nor a device or a pipe, which never end
            raise ValueError("it is no file")
        with path.open("rb") as file:
            content = file.read(LIMIT + 1)
        if len(content) > LIMIT:
            raise ValueError(f"it has more than {LIMIT:,} bytes")
        lines = content.decode().splitlines()
        header, *rows = [*csv.reader(line for line in lines if not line.startswith("#"))] or [[]]
        columns = map(list, zip(*rows, strict=True))
        return dict(zip(map(metric_now, header), columns, strict=True)) if rows else {}
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{path} is invalid; expected a table of a run ({error})") from error
