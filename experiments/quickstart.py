"""The whole causal result in one command: trace a head, edit its data, see whether it moved.

Trains the base run, traces its induction head with EK-FAC, retrains the critical window with the
samples of highest influence removed or doubled and with random edits of the same size, and
compares: a table, verdicts, and one page. Two jobs run at a time where there are two cores.
Everything is found again in the store, so a second call takes a minute and a killed one goes on.
One seed shows the effect; it takes sweeps/causal_grid.yaml to test it.
"""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import import_module
from pathlib import Path

from mda.config import compose, cores, main, overrides_of, prepared
from mda.schema import Config

NEEDS = (
    "base", "data", "model", "training", "emergence", "unit", "estimator", "intervention", "study",
    "report", "logger",
)  # fmt: skip
REMOVE_RANDOM = ("intervention=remove", "estimator=random")
AUGMENT_RANDOM = ("intervention=augment", "estimator=random")
JOBS = {  # first those that need no scores: they retrain while the trace is under way
    "trace": (),
    "control": ("intervention=control",),
    "remove-random-0": (*REMOVE_RANDOM, "estimator.seed=0"),
    "remove-random-1": (*REMOVE_RANDOM, "estimator.seed=1"),
    "remove-random-2": (*REMOVE_RANDOM, "estimator.seed=2"),
    "augment-random-0": (*AUGMENT_RANDOM, "estimator.seed=0"),
    "remove-ekfac": ("intervention=remove", "estimator=ekfac"),
    "augment-ekfac": ("intervention=augment", "estimator=ekfac"),
}
AT_ONCE = min(2, cores())


def job(folder: Path, name: str, overrides: list[str]) -> str:
    """Run one job in a worker process, its output in a file; returns its name."""
    place = folder / name if name == "trace" else folder / "arms" / name
    place.mkdir(parents=True, exist_ok=True)
    with (place / "output.log").open("w", buffering=1) as log:
        sys.stdout = sys.stderr = log
        program = "trace" if name == "trace" else "run"
        run = getattr(import_module(program), program)  # of this folder, where Python looks first
        with prepared(program, overrides, place, NEEDS, AT_ONCE) as config:
            run(config, place)
    return name


def quickstart(config: Config, folder: Path) -> None:
    from compare import compare
    from rich.progress import track
    from train import train

    from mda.data.embedded import end_with_parent

    fixed = [word for word in overrides_of(folder) if not word.startswith("name=")]
    fixed += [f"logger.group={folder.name}"] if config.logger.name == "wandb" else []
    for name in JOBS:  # a setting that some job cannot take is refused before any work
        compose([*fixed, *JOBS[name]], NEEDS)
    print("1/3  base run")
    with prepared("train", fixed, folder / "base", NEEDS, AT_ONCE) as settings:
        train(settings, folder / "base")
    print(f"2/3  trace and {len(JOBS) - 1} arms, {AT_ONCE} at a time; each writes its output.log")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(AT_ONCE, spawn, initializer=end_with_parent) as pool:
        waiting = [pool.submit(job, folder, name, [*fixed, *JOBS[name]]) for name in JOBS]
        try:
            for future in track(as_completed(waiting), "retraining", total=len(JOBS)):
                print(f"     {future.result()} done")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    print("3/3  comparison")
    config.report.runs = [str(folder / "arms")]
    config.report.traces = [str(folder / "trace")]
    compare(config, folder)


if __name__ == "__main__":
    main(quickstart, NEEDS)
