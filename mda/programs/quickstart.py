"""The whole causal result in one command: trace a head, edit its data, see whether it moved.

Trains the base run, traces its induction head with EK-FAC, and retrains the critical window with
samples removed or doubled: those of highest influence, those that repeat most, and the same number
of random ones. Then it compares: a table, verdicts, and one page. Two jobs run at a time where
there are two cores. Results are kept in the store, so a second call takes a minute and an
interrupted one resumes. One seed shows the effect; sweeps/causal_grid.yaml tests it.
"""

import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from mda.benchmark import cores
from mda.config import command_of, compose, next_command, overrides_of, prepared
from mda.schema import Config
from mda.stages.declared import CAPABILITIES, needs

NEEDS = (*needs(CAPABILITIES), "study", "report", "logger")
REMOVE, AUGMENT = "intervention=remove", "intervention=augment"
RANDOM, REPETITION = "estimator=random", "estimator=repetition"
JOBS = {  # first those that need no influence: they retrain while the trace is under way
    "trace": (),
    "control": ("intervention=control",),
    "remove-random-0": (REMOVE, RANDOM, "estimator.seed=0"),
    "remove-random-1": (REMOVE, RANDOM, "estimator.seed=1"),
    "remove-random-2": (REMOVE, RANDOM, "estimator.seed=2"),
    "augment-random-0": (AUGMENT, RANDOM, "estimator.seed=0"),
    "remove-repetition": (REMOVE, REPETITION),
    "augment-repetition": (AUGMENT, REPETITION),
    "remove-ekfac": (REMOVE, "estimator=ekfac"),
    "augment-ekfac": (AUGMENT, "estimator=ekfac"),
}
AT_ONCE = min(2, cores())


def job(folder: Path, name: str, overrides: list[str]) -> str:
    """Runs one job in a worker process, with its output in a file, and returns its name."""
    place = folder / name if name == "trace" else folder / "arms" / name
    place.mkdir(parents=True, exist_ok=True)
    with (place / "output.log").open("w", buffering=1) as log:
        sys.stdout = sys.stderr = log
        program = "trace" if name == "trace" else "run"
        run = getattr(import_module(f"mda.programs.{program}"), program)
        with prepared(program, overrides, place, NEEDS, AT_ONCE) as config:
            run(config, place)
    return name


def quickstart(config: Config, folder: Path) -> None:
    """Trains, traces, edits and compares, and writes the comparison into `folder`."""
    from mda.data.embedded import end_with_parent
    from mda.programs.compare import compared
    from mda.programs.train import train

    fixed = [word for word in overrides_of(folder) if not word.startswith("name=")]
    fixed += [f"logger.group={folder.name}"] if config.logger.name == "wandb" else []
    for name in JOBS:  # a setting that some job cannot take is refused before any work
        compose([*fixed, *JOBS[name]], NEEDS)
    print("1/3  base run")
    with prepared("train", fixed, folder / "base", NEEDS, AT_ONCE) as settings:
        train(settings, folder / "base")
    print(f"2/3  trace and {len(JOBS) - 1} arms, {AT_ONCE} at a time; each writes its output.log")
    # Spawned, because a fork would not copy the threads that torch has started by now.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(AT_ONCE, spawn, initializer=end_with_parent) as pool:
        waiting = [pool.submit(job, folder, name, [*fixed, *JOBS[name]]) for name in JOBS]
        try:
            for future in followed(waiting, config):
                print(f"     {future.result()} done")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    print("3/3  comparison")
    runs, traces = [str(folder / "arms")], [str(folder / "trace")]
    report = replace(config.report, runs=runs, traces=traces)
    summary = compared(replace(config, report=report), folder, next_command("quickstart", folder))
    print(f"\n{summary['results']['headline']}")
    print(f"figure: {folder / 'curves.png'}")
    print(f"page: {folder / 'report.html'}")
    shared = [word for word in overrides_of(folder) if not word.startswith("seed=")]
    print(f"next, in eight seeds: {command_of('plan', [*shared, 'sweeps=causal_grid'])}")
    print(folder)


def followed(waiting: Sequence[Future[str]], config: Config) -> Iterator[Future[str]]:
    """Yields the jobs as they end, with a progress bar while the arms train."""
    from rich.progress import Progress

    left = set(waiting)
    with Progress() as bar:
        task = bar.add_task("retraining", total=len(waiting))
        while left:
            done, left = wait(left, timeout=1, return_when="FIRST_COMPLETED")
            finished = len(waiting) - len(left)
            bar.update(task, completed=min(finished + under_way(config), len(waiting)))
            yield from done


def under_way(config: Config) -> float:
    """Returns the steps done by the arms in training, in units of one arm."""
    edit = config.intervention
    start, end = edit.steps or (0, edit.before_onset + edit.after_onset)
    tables = (Path(config.output_dir) / "store" / "arm").glob("*.part/train.csv")
    return sum(min(1.0, steps_of(table) / (end - start)) for table in tables)


def steps_of(table: Path) -> int:
    """Returns the number of steps in a loss table that is being written; 0 if it is missing."""
    try:
        return max(0, table.read_bytes().count(b"\n") - 1)
    except OSError:
        return 0
