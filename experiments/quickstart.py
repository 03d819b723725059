"""The whole causal result in one command: trace a head, edit its data, see whether it moved.

Trains the base run, traces its induction head with EK-FAC, retrains the critical window with the
samples of highest influence removed or doubled and with random edits of the same size, and
compares: a table, verdicts, and one page. Two arms run at a time where there are two cores.
Everything is found again in the store, so a second call takes a minute and a killed one goes on.
One seed shows the effect; it takes sweeps/causal_grid.yaml to test it.
"""

import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from mda.config import main, prepare
from mda.schema import Config

NEEDS = (
    "data", "model", "training", "emergence", "unit", "estimator", "intervention", "report",
    "logger",
)  # fmt: skip
ARMS = {
    "control": ("intervention=control",),
    "remove-ekfac": ("intervention=remove", "estimator=ekfac"),
    "augment-ekfac": ("intervention=augment", "estimator=ekfac"),
    "remove-random-0": ("intervention=remove", "estimator=random", "estimator.seed=0"),
    "augment-random-0": ("intervention=augment", "estimator=random", "estimator.seed=0"),
    "remove-random-1": ("intervention=remove", "estimator=random", "estimator.seed=1"),
    "remove-random-2": ("intervention=remove", "estimator=random", "estimator.seed=2"),
}


def arm(folder: Path, overrides: list[str]) -> str:
    """Run one arm in a worker process; returns its name."""
    from run import NEEDS, run

    with (folder.parent / f"{folder.name}.log").open("w", buffering=1) as log:
        sys.stdout = sys.stderr = log
        run(prepare(overrides, folder, NEEDS), folder)
    return folder.name


def quickstart(config: Config, folder: Path) -> None:

    from compare import compare

    from mda.data.embedded import end_with_parent

    start = time.perf_counter()
    fixed = [word for word in sys.argv[1:] if "=" in word and not word.startswith("name=")]
    print("1/3  base run and trace")
    traced = folder / "trace"
    program = [sys.executable, str(Path(__file__).with_name("trace.py"))]
    subprocess.run([*program, *fixed, f"hydra.run.dir={traced}"], check=True)
    jobs = max(1, min(2, os.cpu_count() or 1))
    (folder / "arms").mkdir(exist_ok=True)
    print(f"2/3  {len(ARMS)} arms, {jobs} at a time; each writes {folder}/arms/<arm>.log")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, initializer=end_with_parent) as pool:
        waiting = [
            pool.submit(arm, folder / "arms" / name, [*fixed, *overrides])
            for name, overrides in ARMS.items()
        ]
        for done, future in enumerate(as_completed(waiting), 1):
            minutes = (time.perf_counter() - start) / 60
            print(f"     {done}/{len(ARMS)} {future.result()} ({minutes:.1f} min)", flush=True)
    print("3/3  comparison")
    config.report.runs, config.report.traces = [str(folder / "arms")], [str(traced)]
    compare(config, folder)


if __name__ == "__main__":
    main(quickstart, NEEDS)
