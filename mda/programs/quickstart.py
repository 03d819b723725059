"""The whole causal result in one command: trace a head, edit its data, see whether it moved.

Trains the base run, traces its induction head with EK-FAC, and retrains the critical window with
samples removed or doubled: those of highest influence, those that repeat most, and the same number
of random ones. Then it compares: a table, verdicts, and one page. To be short, the base run ends
with the window (`training.ends=window`), and the window 1,000 steps after the onset. Two jobs run
at a time where there are two cores. Results are kept in the store, so a second call takes a minute
and an interrupted one resumes. One seed shows the effect; sweeps/causal_grid.yaml tests it.
"""

import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from mda.benchmark import cores
from mda.config import command_of, compose, next_command, overrides_of, prepared
from mda.schema import Config, HeadConfig, InterventionConfig
from mda.stages.declared import CAPABILITIES, needs

NEEDS = (*needs(CAPABILITIES), "study", "report", "logger")
REMOVE, AUGMENT = "intervention=remove", "intervention=augment"
RANDOM, REPETITION = "estimator=random", "estimator=repetition"
JOBS = {  # first those that need no influence: they retrain while the trace is under way
    "trace": (),
    "control": ("intervention=control",),
    "remove-random-0": (REMOVE, RANDOM, "estimator.seed=0"),
    "remove-random-1": (REMOVE, RANDOM, "estimator.seed=1"),
    "augment-random-0": (AUGMENT, RANDOM, "estimator.seed=0"),
    "remove-repetition": (REMOVE, REPETITION),
    "augment-repetition": (AUGMENT, REPETITION),
    "remove-ekfac": (REMOVE, "estimator=ekfac"),
    "augment-ekfac": (AUGMENT, "estimator=ekfac"),
}
AT_ONCE = min(2, cores())
SAID_S = 30.0
"""Seconds from one line about the work to the next."""
AFTER_ONSET = 1000
"""Steps to the window's end. In the eight seeds of the study causal_grid, the effect of removing
EK-FAC's samples on the head is as clear there as at 1,500."""


def shorter(config: Config, words: Sequence[str]) -> list[str]:
    """Returns the settings that make the quickstart short, where no other was chosen."""
    chosen = []
    typed = any(word.startswith("training.ends=") for word in words)
    if isinstance(config.unit, HeadConfig) and config.training.devices == 1 and not typed:
        chosen.append("training.ends=window")
    if config.intervention.after_onset == InterventionConfig.after_onset:
        chosen.append(f"intervention.after_onset={AFTER_ONSET}")
    return chosen


def job(folder: Path, name: str, overrides: list[str]) -> str:
    """Runs one job in a worker process, with its output in a file, and returns its name."""
    program = {"base": "train", "trace": "trace"}.get(name, "run")
    place = folder / "arms" / name if program == "run" else folder / name
    place.mkdir(parents=True, exist_ok=True)
    with (place / "output.log").open("w", buffering=1) as log:
        sys.stdout = sys.stderr = log
        run = getattr(import_module(f"mda.programs.{program}"), program)
        with prepared(program, overrides, place, NEEDS, AT_ONCE) as config:
            run(config, place)
    return name


def quickstart(config: Config, folder: Path) -> None:
    """Trains, traces, edits and compares, and writes the comparison into `folder`."""
    from mda.data.embedded import end_with_parent
    from mda.programs.compare import compared

    given = [word for word in overrides_of(folder) if not word.startswith("name=")]
    fixed = [*given, *shorter(config, given)]
    fixed += [f"logger.group={folder.name}"] if config.logger.name == "wandb" else []
    for name in JOBS:  # a setting that some job cannot take is refused before any work
        compose([*fixed, *JOBS[name]], NEEDS)
    settings = compose(fixed, NEEDS)
    # Spawned, because a fork would not copy the threads that torch has started by now.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(AT_ONCE, spawn, initializer=end_with_parent) as pool:

        def started(names: Sequence[str]) -> dict[Future[str], str]:
            words = {name: [*fixed, *JOBS.get(name, ())] for name in names}
            return {pool.submit(job, folder, name, words[name]): name for name in names}

        try:
            print("1/3  base run; every job writes its output.log", flush=True)
            follow(started(["base"]), settings)
            print(f"2/3  trace and {len(JOBS) - 1} arms, {AT_ONCE} at a time", flush=True)
            follow(started(list(JOBS)), settings)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    print("3/3  comparison", flush=True)
    runs, traces = [str(folder / "arms")], [str(folder / "trace")]
    report = replace(config.report, runs=runs, traces=traces)
    summary = compared(replace(config, report=report), folder, next_command("quickstart", folder))
    print(f"\n{summary['results']['headline']}")
    print(f"figure: {folder / 'curves.png'}")
    print(f"page: {folder / 'report.html'}")
    shared = [word for word in overrides_of(folder) if not word.startswith("seed=")]
    print(f"next, in eight seeds: {command_of('plan', [*shared, 'sweeps=causal_grid'])}")
    print(folder)


def follow(jobs: Mapping[Future[str], str], config: Config) -> None:
    """Waits for jobs, and prints a line as each ends, and every half minute."""
    left, began, before = set(jobs), time.monotonic(), steps_under_way(config)
    said, seen = began, 0
    while left:
        done, left = wait(left, timeout=1, return_when="FIRST_COMPLETED")
        now, steps = time.monotonic(), steps_under_way(config)
        seen += sum(max(0, n - before.get(table, 0)) for table, n in steps.items())
        before, began = steps, began if seen else now  # a corpus comes before any step
        for future in done:
            print(f"     {future.result()} done", flush=True)
        if left and now - said >= SAID_S:
            said, rate = now, seen / (now - began)
            names = [name for future, name in jobs.items() if future in left]
            print(f"     {progress(names, sum(steps.values()), rate, config)}", flush=True)


def progress(names: Sequence[str], done: int, rate: float, config: Config) -> str:
    """Returns what is being done, and how long is left at `rate` steps of training a second.

    `names` are the jobs that have not ended, `done` the steps of the runs among them. The trace
    counts as an arm.
    """
    from mda.report.costs import duration

    edit, most = config.intervention, ""
    start, end = edit.steps or (0, edit.before_onset + edit.after_onset)
    if names == ["base"]:  # it trains by itself, the rest side by side
        last, known = end_of_base(config)
        most = "" if known else "at most "
        said = f"base run, step {done:,} of {most}{last:,}" if done else "corpus and base run"
        steps = max(0, last - done) + len(JOBS) * (end - start) / AT_ONCE
    else:
        said = f"{' and '.join(names[:AT_ONCE])}; {len(names)} of {len(JOBS)} have not ended"
        steps = max(0, len(names) * (end - start) - done)
    return f"{said}; {most or 'about '}{duration(steps / rate)} left" if rate else said


def end_of_base(config: Config) -> tuple[int, bool]:
    """Returns the last step of the base run in training, and whether that is known by its curve."""
    from mda.stages.ending import Ending
    from mda.training.table import read_rows

    last, every = config.training.last_step, config.emergence.every
    rule = Ending.of(config.training, config.unit, config.intervention)
    if rule is None:
        return last, True
    for table in tables(config, "base", "curve.csv"):
        with suppress(OSError, ValueError, TypeError):  # its last line may be half written
            if (end := rule.end(read_rows(table))) is not None:
                return min(-(-end // every) * every, last), True
    return last, False


def steps_under_way(config: Config) -> dict[Path, int]:
    """Returns the number of steps done by each run that is in training, by its table of losses."""
    found = [*tables(config, "base", "train.csv"), *tables(config, "arm", "train.csv")]
    return {table: steps_of(table) for table in found}


def tables(config: Config, kind: str, name: str) -> list[Path]:
    """Returns the tables of a name of runs that are in training."""
    return list((Path(config.output_dir) / "store" / kind).glob(f"*.part/{name}"))


def steps_of(table: Path) -> int:
    """Returns the number of steps in a loss table that is being written; 0 if it is missing."""
    try:
        return max(0, table.read_bytes().count(b"\n") - 1)
    except OSError:
        return 0
