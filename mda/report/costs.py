"""Tables of the costs of stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

HEADERS = ("stage", "times", "tokens", "operations", "time", "memory", "disk")


@dataclass(frozen=True)
class StageTotal:
    """One stage over all of its builds; unknown values are None."""

    stage: str
    times: int
    tokens: float
    flops: float | None
    seconds: float | None
    memory: float | None  # bytes, the most of any build
    disk: float | None


def cells(total: StageTotal, memory: float | None = None) -> tuple[str, ...]:
    """Returns a row of the table; a stage that needs more than `memory` is marked."""
    needed = "-" if total.memory is None else amount(total.memory, "B")
    if memory is not None and total.memory is not None and total.memory > memory:
        needed += " (too much)"
    return (
        total.stage,
        str(total.times),
        amount(total.tokens) if total.tokens else "-",
        "-" if total.flops is None else amount(total.flops),
        "-" if total.seconds is None else duration(total.seconds),
        needed,
        "-" if total.disk is None else amount(total.disk, "B"),
    )


def terminal_table(totals: Sequence[StageTotal], memory: float | None) -> Table:
    """Returns the table for a terminal."""
    table = Table(box=None)
    for i, header in enumerate(HEADERS):
        table.add_column(header, justify="right" if i else "left")
    for total in totals:
        table.add_row(*cells(total, memory))
    return table


def amount(number: float, unit: str = "") -> str:
    """Returns three significant figures with a prefix: 9.56 M, 1.2 GB."""
    prefixes: Mapping[str, float] = {"E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}
    for prefix, size in prefixes.items():
        if number >= 0.9995 * size:
            return f"{number / size:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}".strip()


def duration(seconds: float) -> str:
    """Returns a duration in a fitting unit: 12 s, 14 min, 3.5 h, 20 days."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:,.0f} min"
    return f"{seconds / 3600:,.1f} h" if seconds < 3 * 86400 else f"{seconds / 86400:,.1f} days"
