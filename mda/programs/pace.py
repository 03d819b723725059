"""Says, every half minute, what jobs in other processes are doing and how long is left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path

from mda.report.costs import duration
from mda.schema import Config

SAID_S = 30.0
"""Seconds from one line to the next."""


def followed(
    jobs: Mapping[Future[str], str], config: Config, at_once: int, later: int = 0
) -> Iterator[str]:
    """Yields a line as each job ends, and one every half minute.

    The time left is from the steps of training that were done since the first call. A job without
    steps, the trace, counts as an arm. `later` is the number of arms that follow these jobs.
    """
    left, grown, at = set(jobs), Growth(config), time.monotonic()
    began = at
    while left:
        done, left = wait(left, timeout=1, return_when="FIRST_COMPLETED")
        grown.look()
        yield from (f"{future.result()} done" for future in done)
        if left and (now := time.monotonic()) - at >= SAID_S:
            at = now
            names = [name for future, name in jobs.items() if future in left]
            yield _line(names[:at_once], len(left), grown, (now - began, at_once), later)


class Growth:
    """The steps of the runs in training: how many each has done, and how many were seen to pass."""

    def __init__(self, config: Config) -> None:
        self.config, self.seen = config, 0
        self.store = Path(config.output_dir) / "store"
        self.now = self._count()

    def _count(self) -> dict[Path, int]:
        tables = [
            t for kind in ("base", "arm") for t in self.store.glob(f"{kind}/*.part/train.csv")
        ]
        return {table: steps_of(table) for table in tables}

    def look(self) -> None:
        """Counts the steps again."""
        before, self.now = self.now, self._count()
        self.seen += sum(max(0, n - before.get(table, 0)) for table, n in self.now.items())

    @property
    def arm(self) -> int:
        """The steps of an arm, about; an automatic window begins at a checkpoint before."""
        edit = self.config.intervention
        start, end = edit.steps or (0, edit.before_onset + edit.after_onset)
        return end - start

    def end_of_base(self) -> tuple[int, bool]:
        """Returns the last step of the base run, and whether it is known rather than a bound."""
        from mda.stages.ending import Ending
        from mda.training.table import read_rows

        training, every = self.config.training, self.config.emergence.every
        rule = Ending.of(training, self.config.unit, self.config.intervention)
        if rule is None:
            return training.last_step, True
        for table in self.store.glob("base/*.part/curve.csv"):
            with suppress(OSError, ValueError, TypeError, IndexError):
                if (end := rule.end(read_rows(table))) is not None:
                    return min(-(-end // every) * every, training.last_step), True
        return training.last_step, False


def _line(names: list[str], n_left: int, grown: Growth, pace: tuple[float, int], later: int) -> str:
    elapsed, at_once = pace
    done = sum(grown.now.values())
    if later:  # the base run goes by itself, the rest side by side
        end, known = grown.end_of_base()
        steps = max(0, end - done) + later * grown.arm / at_once
        said = f"base run: step {done:,} of {'' if known else 'at most '}{end:,}"
    else:
        known, steps = True, max(0, n_left * grown.arm - done)
        said = f"{' and '.join(names)} under way, {n_left} left to finish"
    if not grown.seen:
        return said
    seconds = steps * elapsed / grown.seen
    return f"{said}; {'about' if known else 'at most'} {duration(seconds)} left"


def steps_of(table: Path) -> int:
    """Returns the number of steps in a loss table that is being written; 0 if it is missing."""
    try:
        return max(0, table.read_bytes().count(b"\n") - 1)
    except OSError:
        return 0
