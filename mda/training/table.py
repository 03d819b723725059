"""A CSV that grows by one row at a time and can be cut back to a step before it is resumed."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from pathlib import Path

RowLog = Callable[[Mapping[str, float]], None]


class CsvTable:
    """Rows in the order of their `step` column; floats are written so that they read back equal.

    A row is flushed when it is appended, so a killed process leaves at most one torn line, which
    `keep_until` removes together with everything after the checkpoint that is resumed.
    """

    def __init__(self, path: Path):
        self.path = path
        self.columns: list[str] = []

    def append(self, row: Mapping[str, float]) -> None:
        """Add one row. Raises ValueError when its columns are not the table's."""
        if not self.columns:
            self.columns = self._header() or list(row)
        if set(row) != set(self.columns):
            raise ValueError(f"{self.path.name}: columns changed at step {row.get('step')}")
        new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(self.columns)
            writer.writerow([repr(row[column]) for column in self.columns])

    def keep_until(self, step: int) -> list[dict[str, float]]:
        """Drop rows after `step` (and torn lines); returns the rows that are kept."""
        if not self.path.exists():
            return []
        lines = self.path.read_text("utf-8").split("\n")[:-1]
        at = lines[0].split(",").index("step") if lines else 0
        kept = lines[:1] + [line for line in lines[1:] if int(line.split(",")[at]) <= step]
        part = self.path.with_suffix(".part")
        part.write_text("".join(f"{line}\n" for line in kept), "utf-8")
        os.replace(part, self.path)
        return read_rows(self.path) if lines else []

    def _header(self) -> list[str]:
        if not self.path.exists():
            return []
        return self.path.read_text("utf-8").split("\n", 1)[0].split(",")


def read_rows(path: Path) -> list[dict[str, float]]:
    """All rows of a table; `step` and `tokens` are integers, the rest floats."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {key: int(v) if key in ("step", "tokens") else float(v) for key, v in row.items()}
            for row in csv.DictReader(file)
        ]


def replay(table: CsvTable, until: int, log: RowLog, every: int = 1) -> set[int]:
    """Cut a table back to a step, log what is left of it; returns the steps that are left.

    `every` thins out what is logged, not what is kept.
    """
    rows = table.keep_until(until)
    for row in rows:
        if row["step"] % every == 0:
            log(row)
    return {int(row["step"]) for row in rows}
