"""Training on several devices of one machine: one process each, joined by Lightning's DDP.

The process that calls `train` is the first. It alone reads the corpus, measures, logs and writes;
it starts the others, which know the model's shape, the stream and the settings, and get weights
and rows from it. They end with it, and it ends with an error when one of them dies.

Several processes give the gradient of one process up to the order of addition: within 1e-5 of its
largest entry in float32, and losses of the first updates within a relative 1e-4. Rounding
differences grow over many updates, as they do between numbers of threads, so an arm and its control
need the same number of devices.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist

from mda.data.embedded import end_with_parent
from mda.schema import ConfigError, TrainingConfig
from mda.training.fit import Process, fit, make_trainer
from mda.types import Stream

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

GRACE_S = 20.0
"""How long the first process may take to notice by itself that another one died."""

_ASKING = threading.Lock()
"""One thread at a time reads an exit code, because the system returns it only once."""


@dataclass(frozen=True)
class Job:
    """The inputs of every process but the first."""

    architecture: type[PreTrainedModel]
    config: PreTrainedConfig
    seq_len: int
    stream: Stream
    settings: TrainingConfig
    first: int
    resume: Path | None


@dataclass(frozen=True)
class RowsToCome:
    """A placeholder for the corpus, with room for the rows that the first process sends."""

    seq_len: int

    def rows(self, sample_ids: np.ndarray) -> torch.Tensor:
        return torch.empty(len(sample_ids), self.seq_len + 1, dtype=torch.int64)


def refuse_nested(world: int) -> None:
    """Raises ConfigError where this process cannot start others."""
    accepted = "training.devices=1, or"
    if dist.is_initialized():
        raise ConfigError(
            f"training.devices={world} under torchrun; expected {accepted} no torchrun"
        )
    if multiprocessing.get_start_method() not in multiprocessing.get_all_start_methods():
        raise ConfigError(
            f"training.devices={world} in a sweep of parallel jobs; expected {accepted} one job "
            "at a time"
        )


@contextmanager
def joined(world: int, job: Job) -> Iterator[Process]:
    """Starts processes 1 .. world - 1, which train their shares, and yields this one's role.

    Raises ChildProcessError when one of them dies. If this process waits for the dead one inside
    the communication library, and so cannot notice, it ends with exit code 1.
    """
    port = _free_port()
    context = multiprocessing.get_context("spawn")
    others = [
        context.Process(target=_follow, args=(job, Process(rank, world, port)), daemon=True)
        for rank in range(1, world)
    ]
    environment, threads = os.environ.copy(), torch.get_num_threads()
    over = threading.Event()
    try:
        for other in others:
            other.start()
        threading.Thread(target=_watch, args=(others, over), daemon=True).start()
        yield Process(0, world, port)
        for other in others:
            other.join()
    except Exception as error:
        if (death := _death(others)) is not None:
            raise ChildProcessError(death) from error
        raise
    finally:
        for other in others:
            other.kill()
        if dist.is_initialized():
            dist.destroy_process_group()
        over.set()
        for name in os.environ.keys() - environment.keys():  # what Lightning set for the group
            del os.environ[name]
        os.environ.update(environment)
        torch.set_num_threads(threads)


def _follow(job: Job, process: Process) -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first one ends the rest
    model = job.architecture(job.config)
    trainer = make_trainer(job.settings, job.stream.end - job.first, process)
    rows = RowsToCome(job.seq_len)
    fit(trainer, model, rows, job.stream, job.settings, job.first, job.resume)
    dist.destroy_process_group()


def _watch(others: list, over: threading.Event) -> None:
    running = list(others)
    while running and not over.is_set():
        ended = wait([other.sentinel for other in running], timeout=1.0)
        running = [other for other in running if other.sentinel not in ended]
        if ended and (death := _death(others)) is not None:
            if not over.wait(GRACE_S):
                print(f"error: {death}", file=sys.stderr, flush=True)
                os._exit(1)
            return


def _death(others: list) -> str | None:
    for other in others:
        with _ASKING:
            other.join(timeout=1.0 if other.exitcode is None else 0)
            code = other.exitcode
        if code:
            rank = others.index(other) + 1
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            return (
                f"process {rank} of training.devices={len(others) + 1} {how}; the same command "
                "goes on from the last checkpoint"
            )
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
