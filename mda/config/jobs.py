"""The record of a job (job.json), and the table of jobs at the end of a sweep.

`job.json` is in every run's folder from the start: program, overrides, the resolved configuration,
commit, versions and seed, the artifacts used, and the relative path from the run's folder to the
working directory. When the job ends, its status is done, skipped (all of it was in the store) or
failed. `changes.diff` beside it holds the uncommitted changes of the code.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from mda.benchmark import cores
from mda.schema.setting import ConfigError, printable

FILE = "job.json"
CONFIG_DIR = "--config-dir="
STYLE = {"done": "green", "skipped": "cyan", "failed": "red", "unfinished": "yellow"}


class RunFolder(Callback):
    """Hydra's callback that keeps the folder of a run or sweep to one process at a time.

    `sweep` is the folder of a sweep's jobs, None outside of one.
    """

    sweep: Path | None = None
    held = contextlib.ExitStack()

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        self._take(Path(str(config.hydra.run.dir)))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        folder = Path(str(config.hydra.sweep.dir))
        self._take(folder)
        RunFolder.sweep = folder

    def on_run_end(self, config: DictConfig, **_: Any) -> None:
        RunFolder.held.close()

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        RunFolder.held.close()

    def _take(self, folder: Path) -> None:
        from mda.store.locks import Busy, hold

        try:
            RunFolder.held.enter_context(hold(folder / ".lock", waiting=None))
        except Busy:
            print(
                f"error: name={folder.name}: another process works in {folder}; "
                "expected another name, or this one when that process has ended",
                file=sys.stderr,
            )
            raise SystemExit(2) from None  # Hydra turns other exceptions here into warnings
        except OSError as error:
            print(
                f"error: {folder} cannot be made or written ({error.strerror}); expected an "
                "output_dir that can",
                file=sys.stderr,
            )
            raise SystemExit(2) from None


@dataclass(frozen=True)
class Job:
    """One job of a sweep, as recorded in its folder."""

    number: int
    folder: Path
    overrides: tuple[str, ...]
    status: str  # done, skipped, failed, unfinished
    reason: str
    command: str
    seconds: float | None


@contextlib.contextmanager
def recorded(
    folder: Path, program: str, overrides: Sequence[str], config: dict[str, Any]
) -> Iterator[None]:
    """Writes `job.json` into a run's folder before and after the block; passes errors on."""
    from mda import store  # numpy takes a moment, and --help needs none of it

    start = time.perf_counter()
    uses: dict[str, list[str]] = {}  # kind -> fingerprints
    content = {
        "program": program,
        "overrides": list(overrides),
        "command": command_of(program, overrides),
        "seed": config["seed"],
        "config": config,
        "versions": store.versions(),
        "git": store.git_state(),
        "directory": os.path.relpath(Path.cwd(), folder),
        "uses": uses,
    }
    if diff := store.git_diff():
        (folder / "changes.diff").write_bytes(diff)
    (folder / "summary.json").unlink(missing_ok=True)  # of an earlier run into the same folder

    def write(status: str, reason: str = "") -> None:
        seconds = round(time.perf_counter() - start, 3)
        ending = {"status": status, "reason": reason, "seconds": seconds}
        store.write_json(folder / FILE, content | ending)

    def note(kind: str, fingerprint: str) -> None:
        if fingerprint not in uses.setdefault(kind, []):
            uses[kind].append(fingerprint)
            write("unfinished")  # `mda store gc` keeps what it uses until it is done

    write("unfinished")
    try:
        with store.noting_uses(note):
            yield
    except BaseException as error:
        first = (str(error) or type(error).__name__).strip().splitlines()[0]
        write("failed", printable(first))
        raise
    write("skipped" if _was_there(folder) else "done")


def words_of(hydra: Any) -> list[str]:
    """Returns the words that a job was started with: any `--config-dir`, then its overrides."""
    folders = [Path(source.path) for source in hydra.runtime.config_sources
               if source.provider == "command-line"]  # fmt: skip
    here = Path.cwd()
    near = [path.relative_to(here) if path.is_relative_to(here) else path for path in folders]
    return [*(f"{CONFIG_DIR}{path}" for path in near), *hydra.overrides.task]


def side_by_side(hydra: Any) -> int:
    """Returns how many jobs of a sweep share this machine (`hydra/launcher=parallel`)."""
    n = hydra.launcher.get("n_jobs")
    if n is None:
        return 1
    return int(n) if n > 0 else max(1, cores() + 1 + int(n))


@contextlib.contextmanager
def own_gpu(sweep: Path, at_once: int) -> Iterator[None]:
    """Gives a job of `at_once` side by side its own GPU for the block, while there are enough.

    The job locks the first free GPU: assigned by job number, two jobs could share a GPU while
    another idles. The lock of a killed job is released. Raises ConfigError for GPUs of several
    kinds.
    """
    if at_once == 1:
        yield
        return
    from mda import store

    with contextlib.ExitStack() as held:
        for place in range(at_once):
            with contextlib.suppress(store.Busy):
                held.enter_context(store.hold(sweep / f".place{place}.lock", waiting=None))
                break
        try:
            store.take_gpu(place)
        except ValueError as error:
            raise ConfigError(f"jobs side by side on {error}") from error
        try:
            yield
        finally:  # the next job of this process may be given another GPU
            store.free_memory()


def own_output(hydra: Any, folder: Path) -> Path | None:
    """Returns the file for a job's output in a sweep with jobs side by side or elsewhere."""
    basic = hydra.launcher.get("_target_", "").endswith("BasicLauncher")
    return None if hydra.mode == RunMode.RUN or basic else folder / "output.log"


@functools.cache
def end_with(launcher: int) -> None:
    """Makes a worker of `hydra/launcher=parallel` end when its parent process is killed.

    Otherwise it would go on training beside the jobs of the restarted sweep. With a single worker
    the jobs run in the launching process itself, so nothing is watched.
    """
    if os.getpid() == launcher:
        return

    def watch() -> None:
        while os.getppid() == launcher:  # an orphan has another parent
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def output_to(path: Path | None) -> Iterator[None]:
    """Redirects the output of the block to a file, as jobs side by side would mix theirs."""
    if path is None:
        yield
        return
    with (
        path.open("w", encoding="utf-8", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        yield


def tell(folder: Path) -> None:
    """Prints a line to the terminal when a job has ended, wherever its own output went."""
    if not (folder / FILE).exists():
        return
    job = read_job(folder)
    reason = f": {job.reason}" if job.reason else ""
    reused = ", all of it was in the store" if job.status == "skipped" else ""
    print(
        f"job {job.number} {job.status}{reused}, {job.seconds:,.0f} s{reason}  "
        f"[{' '.join(job.overrides)}]",
        file=sys.__stdout__,
        flush=True,
    )


def read_jobs(folder: Path) -> list[Job]:
    """Returns the jobs in a sweep's folder, by their number."""
    folders = [path.parent for path in folder.glob(f"*/{FILE}") if path.parent.name.isdigit()]
    return sorted(map(read_job, folders), key=lambda job: job.number)


def read_job(folder: Path) -> Job:
    """Returns the content of a folder's `job.json`."""
    from mda import store

    job = store.read_json(folder / FILE)
    return Job(
        int(folder.name),
        folder,
        tuple(job["overrides"]),
        job["status"],
        job["reason"],
        job["command"],
        job["seconds"],
    )


def print_jobs(jobs: Sequence[Job], folder: Path, n_jobs: int) -> None:
    """Prints a table of jobs: how they differ, how each ended, and how to repeat a failed one."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    table = Table("job", "overrides", "status", "time", "reason", box=None)
    for job in jobs:
        differing = " ".join(text for text in job.overrides if text not in shared)
        spent = f"{job.seconds:,.0f} s" if job.seconds is not None else ""
        status = f"[{STYLE[job.status]}]{job.status}[/]"
        table.add_row(str(job.number), escape(differing), status, spent, escape(job.reason))
    console = Console()
    console.print(table)
    counts = {word: sum(job.status == word for job in jobs) for word in STYLE}
    counts["not started"] = n_jobs - len(jobs)
    outcome = ", ".join(f"{n} {word}" for word, n in counts.items() if n)
    console.print(f"{n_jobs} jobs: {outcome}", highlight=False)
    for job in jobs:
        if job.status in ("failed", "unfinished"):
            print(f"to run job {job.number} again:  {job.command}")
    print(folder)


def print_sweep(n_jobs: int) -> None:
    """Prints the jobs of the sweep that this process launched, if it launched one."""
    folder = RunFolder.sweep
    if folder is not None:  # a longer sweep may have left jobs of its own in the folder
        print_jobs([job for job in read_jobs(folder) if job.number < n_jobs], folder, n_jobs)


def overrides_of(folder: Path) -> list[str]:
    """Returns the overrides with which a folder's run was started."""
    from mda import store

    return list(store.read_json(folder / FILE)["overrides"])


def command_of(program: str, overrides: Sequence[str]) -> str:
    """Returns the command line that runs this one job again, into its own folder."""
    import shlex

    kept = [text for text in overrides if not text.startswith(("name=", "hydra."))]
    return shlex.join(["mda", program, *kept])


def next_command(program: str, folder: Path, *overrides: str) -> str:
    """Returns the command of another program with a run's settings and a few of its own."""
    overridden = {word.partition("=")[0] for word in overrides}
    kept = [word for word in overrides_of(folder) if word.partition("=")[0] not in overridden]
    return command_of(program, [*kept, *overrides])


def _was_there(folder: Path) -> bool:
    from mda import store

    path = folder / "summary.json"
    return path.exists() and store.read_json(path).get("times", {}).get("built") == []
