"""A CSV that grows by one row at a time and can be cut back to a step before a resume."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from mda.store import Torn

RowLog = Callable[[Mapping[str, float]], None]

LOGGED_EVERY = 20
"""Updates from one row of `train.csv` that is logged to the next."""


class CsvTable:
    """Rows in the order of their `step` column; floats are written without loss.

    A row is flushed when it is appended, so a killed process leaves at most one torn line, which
    `keep_until` removes together with everything after the checkpoint that is resumed.
    """

    def __init__(self, path: Path):
        self.path = path
        self.columns: list[str] = []

    def append(self, row: Mapping[str, float]) -> None:
        """Adds one row.

        Raises ValueError when its columns are not the table's. After an OSError, such as a full
        disk, the table is unchanged.
        """
        size = self.path.stat().st_size if self.path.exists() else 0
        if not self.columns or not size:
            self.columns = self._header() if size else list(row)
        if set(row) != set(self.columns):
            raise ValueError(f"{self.path.name}: columns changed at step {row.get('step')}")
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not size:
            writer.writerow(self.columns)
        writer.writerow([repr(row[column]) for column in self.columns])
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                file.write(text.getvalue())
        except OSError:
            self._cut(size)
            raise

    def keep_until(self, step: int) -> list[dict[str, float]]:
        """Drops rows after `step` and a torn last line, and returns the rows that are kept.

        Raises Torn where a line before the last cannot be read.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")[:-1]
        if not lines:  # not even the header was written
            self.path.unlink()
            return []
        kept = lines[:1] + [line for line in lines[1:] if self._step(lines[0], line) <= step]
        part = self.path.with_suffix(".part")
        part.write_bytes(b"".join(line + b"\n" for line in kept))
        os.replace(part, self.path)
        return read_rows(self.path)

    def _step(self, header: bytes, line: bytes) -> int:
        try:
            columns = next(csv.reader([header.decode()]))
            values = next(csv.reader([line.decode()]))
            row = dict(zip(columns, map(float, values), strict=True))
            return int(row["step"])
        except (csv.Error, KeyError, StopIteration, ValueError) as error:
            raise Torn(f"{self.path.name} is torn") from error

    def _header(self) -> list[str]:
        with self.path.open(newline="", encoding="utf-8") as file:
            return next(csv.reader(file), [])

    def _cut(self, size: int) -> None:
        if size:
            os.truncate(self.path, size)
        else:
            self.path.unlink(missing_ok=True)


def read_rows(path: Path) -> list[dict[str, float]]:
    """Returns all rows of a table; `step` and `tokens` are integers, the rest floats."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {key: int(v) if key in ("step", "tokens") else float(v) for key, v in row.items()}
            for row in csv.DictReader(file)
        ]


def replay(
    table: CsvTable, until: int, log: RowLog, every: int = 1, wanted: Collection[int] = ()
) -> set[int]:
    """Cuts a table back to a step, logs the rest, and returns the steps that are left.

    `every` thins out the log, not the table. `wanted` are the steps that must have a row by now.
    Raises Torn where one is missing.
    """
    rows = table.keep_until(until)
    steps = {int(row["step"]) for row in rows}
    if missing := sorted(set(wanted) - steps):
        raise Torn(f"{table.path.name} has no row of step {missing[0]}")
    for row in rows:
        if row["step"] % every == 0:
            log(row)
    return steps
