"""Timing with a measure of the machine's load, and the number of cores.

Compared sides take turns, each as short as possible, so that a busy spell affects all sides alike.
A `Clock` adds up the wall and CPU time of one side's turns. A `Load` measures the share of the
cores that others took meanwhile: above 10 %, wall times and their ratios are not reliable, and the
ratio of the CPU times is the better figure (for sides that do not wait).
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

RELIABLE = 0.1
"""Share of the cores that others may take."""


def cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Clock:
    """Own wall and CPU time in seconds, added up over every `with clock:` block."""

    def __init__(self) -> None:
        self.wall_s = self.cpu_s = 0.0

    def __enter__(self) -> Clock:
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.wall_s += time.perf_counter() - self._start[0]
        self.cpu_s += time.process_time() - self._start[1]

    def __sub__(self, other: Clock) -> Clock:
        """Returns the time of this clock without that of one that ran inside its blocks."""
        rest = Clock()
        rest.wall_s, rest.cpu_s = self.wall_s - other.wall_s, self.cpu_s - other.cpu_s
        return rest


class Load:
    """The share of the machine's cores that other processes take, from its creation on."""

    def __init__(self) -> None:
        self.start = time.perf_counter(), time.process_time(), _busy_s()

    def others(self) -> float | None:
        """Returns the share so far, 0 to 1; None where the system does not report it."""
        wall, own, busy = self.start
        now = _busy_s()
        if busy is None or now is None:
            return None
        taken = (now - busy) - (time.process_time() - own)
        cores = os.cpu_count() or 1
        return min(1.0, max(0.0, taken / (cores * (time.perf_counter() - wall))))


@dataclass(frozen=True)
class Ratio:
    """The ratio of two sides' times: median, least and most over rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @classmethod
    def of(cls, above: Sequence[float], below: Sequence[float]) -> Ratio:
        """Returns the ratios of two sides' seconds, one per round.

        Raises ValueError for unequal lengths.
        """
        ratios = [a / b for a, b in zip(above, below, strict=True)]
        return cls(statistics.median(ratios), min(ratios), max(ratios))


def verdict(others: float | None) -> str:
    """Returns one sentence on the reliability of the figures."""
    if others is None:
        return "how busy the machine was is not known on this system"
    said = f"other processes took {others:.0%} of the cores"
    return said if others <= RELIABLE else f"{said}: not reliable"


def _busy_s() -> float | None:
    """Returns the CPU seconds of all processes of this machine since it started."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    fields = stat.read_text().splitlines()[0].split()[1:9]
    user, nice, system, _, _, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
