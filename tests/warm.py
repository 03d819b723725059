"""Starts Python programs in processes whose heavy packages are imported already.

A fresh interpreter spends six seconds of CPU on importing torch, transformers and Lightning; a fork
of a server that did so once spends none. The forked process is real: its own folder, command line,
streams and exit code, and it imports everything of this project itself. What it shares with its
siblings is the seed of string hashes and variables that are read on import, so a test of either, of
the environment or of what a program imports starts an interpreter of its own.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

_PRELOAD = (
    "torch", "transformers.modeling_utils", "transformers.models.gpt_neox.modeling_gpt_neox",
    "pytorch_lightning", "matplotlib.pyplot", "scipy.stats", "hydra", "omegaconf",
)  # fmt: skip
# Not wandb: on import it makes a temporary folder, which the first program to end would delete.
# Elsewhere what torch loads may not survive a fork: there every program is a new interpreter.
_forks = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
_forks.set_forkserver_preload(list(_PRELOAD))


def _program(args: Sequence[str], cwd: str, streams: tuple[str, str]) -> None:
    """In the forked process: become `python <args>`."""
    for descriptor, path in zip((1, 2), streams, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(cwd)
    sys.stdin = open(os.devnull)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    code = 0
    try:
        if args[0] == "-m":
            sys.path.insert(0, cwd)
            sys.argv = list(args[1:])
            runpy.run_module(args[1], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(args[0]).resolve().parent))
            sys.argv = list(args)
            runpy.run_path(args[0], run_name="__main__")
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
        if isinstance(exit.code, str):
            print(exit.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.exit(code)


def start(args: Sequence[str | Path], cwd: Path, streams: tuple[str, str] = (os.devnull,) * 2):
    """A running `python ...` (args[0] is this interpreter) whose output goes to two files."""
    assert args[0] == sys.executable
    words = [str(word) for word in args[1:]]
    process = _forks.Process(target=_program, args=(words, str(cwd), streams))
    process.start()
    return process


def run(
    args: Sequence[str | Path], cwd: Path, timeout: float | None = None
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run(args, cwd=cwd, capture_output=True, text=True)` of this interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        streams = (f"{folder}/stdout", f"{folder}/stderr")
        process = start(args, cwd, streams)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(args, timeout or 0)
        out, err = (Path(stream).read_text() for stream in streams)
    return subprocess.CompletedProcess(args, process.exitcode, out, err)
