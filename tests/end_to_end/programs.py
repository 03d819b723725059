"""Runs the programs of experiments/ as a user does: each in a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import warm

ROOT = Path(__file__).parents[2]


def command(program: str, out: Path, *overrides: str) -> list[str]:
    """The smoke-sized command line of a program with its store under `out`."""
    return [
        sys.executable,
        f"experiments/{program}.py",
        "experiment=smoke",
        f"output_dir={out}",
        *overrides,
    ]


def run(program: str, out: Path, *overrides: str, prefix: Sequence[str] = ()) -> Path:
    """Run to the end; returns the folder that the last line names."""
    args = command(program, out, *overrides)
    if prefix:
        args = [*prefix, *args[1:]]
        done = subprocess.run(args, cwd=ROOT, capture_output=True, text=True)
    else:
        done = warm.run(args, ROOT)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().splitlines()[-1])


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def kill_when(args: Sequence[str], reached: Callable[[], bool], limit_s: float = 120) -> None:
    """Start a program and kill it (SIGKILL) as soon as `reached`; it must still be running."""
    process = warm.start(args, ROOT)
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and process.is_alive() and not reached():
        time.sleep(0.01)
    assert process.is_alive(), "the program ended before it could be killed"
    process.kill()
    process.join()


def leet(run_folder: Path) -> list[dict]:
    """The records of a W&B offline run, by W&B's own reader."""
    reader = [Path(sys.executable).parent / "wandb", "leet", "inspect", "--json", run_folder]
    done = subprocess.run(reader, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]


def processes_with(word: str) -> list[int]:
    """Processes that have a file below a folder open."""
    found = []
    for links in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(word in os.readlink(link) for link in links.iterdir()):
                found.append(int(links.parent.name))
        except OSError:  # it ended meanwhile, or is somebody else's
            continue
    return found


def kill_parent_alone(args: Sequence[str], out: Path, started: str, limit_s: float = 300) -> None:
    """Kill a program, not its workers, once a file is there; wait until they have ended too."""
    process = warm.start(args, ROOT)
    deadline = time.monotonic() + limit_s
    while not list(out.glob(started)):
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    while alive := processes_with(str(out)):
        assert time.monotonic() < deadline, f"{alive} still work"
        time.sleep(0.1)
