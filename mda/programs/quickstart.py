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
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from mda.benchmark import cores
from mda.config import command_of, compose, next_command, overrides_of, prepared
from mda.programs.pace import followed
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
            told(followed(started(["base"]), settings, AT_ONCE, later=len(JOBS)))
            arms = len(JOBS) - 1
            print(f"2/3  trace and {arms} arms, {AT_ONCE} at a time", flush=True)
            told(followed(started(list(JOBS)), settings, AT_ONCE))
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


def told(lines: Iterator[str]) -> None:
    """Prints lines as they come, to a terminal or into a file."""
    for line in lines:
        print(f"     {line}", flush=True)
