"""The runtime of all stages, and sharing one build among several processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mda.schema import Config, ConfigError
from mda.schema.setting import refuse
from mda.store import Artifact, Key, Store, say, take_gpu
from mda.training.table import RowLog

SPOKEN_S = 300.0
"""Seconds from one line about a long pass to the next, where there is no terminal."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Runtime:
    """The store, the target of logged rows, and whether to draw progress bars."""

    store: Store
    log: RowLog = lambda row: None
    progress: bool = True

    def bar(self, items: Iterable[Item], name: str, total: int) -> Iterator[Item]:
        """Yields items with a progress bar and the time left, on the first process only.

        Without a terminal, as in a job of a cluster, it prints a line every few minutes.
        """
        if not self.progress or rank() > 0:
            yield from items
            return
        columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("ETA"), TimeRemainingColumn()) as bar:
            shown = bar.console.is_terminal or bar.console.is_jupyter
            tracked = bar.track(items, total=total)
            yield from tracked if shown else _spoken(tracked, name, total)


@dataclass(frozen=True)
class Context:
    """The input of the pipeline: the configuration, and the runtime."""

    config: Config
    store: Store
    log: RowLog = lambda row: None
    progress: bool = True

    @classmethod
    def of(cls, config: Config, log: RowLog = lambda row: None) -> Context:
        """Returns the context of a program: store under `output_dir`, threads as configured.

        Raises ConfigError for a GPU that the machine does not have.
        """
        if config.training.accelerator == "gpu" and not torch.cuda.is_available():
            raise refuse("training.accelerator", "gpu", "cpu, or auto: there is no CUDA here")
        if config.training.threads is not None:
            torch.set_num_threads(config.training.threads)
        return cls(config, Store(Path(config.output_dir) / "store", config.study.stamp), log)

    @property
    def at(self) -> Runtime:
        """The runtime, which is all that a stage sees of the context."""
        return Runtime(self.store, self.log, self.progress)


def _spoken(items: Iterable[Item], name: str, total: int) -> Iterator[Item]:
    """Yields items and prints the progress now and then.

    The time left is from the items since then.
    """
    since, before = time.monotonic(), 0
    for n, item in enumerate(items):
        if n > before and (spent := time.monotonic() - since) >= SPOKEN_S:
            left = timedelta(seconds=round(spent / (n - before) * (total - n)))
            say(f"{name}: {n:,} of {total:,}, {left} left")
            since, before = time.monotonic(), n
        yield item


def without(values: Mapping[str, object], *names: str) -> dict[str, object]:
    """Returns a mapping without the keys that do not enter a fingerprint."""
    return {key: value for key, value in values.items() if key not in names}


def rank() -> int:
    """Returns the number of this process among those of `torchrun`; 0 for a single one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Returns the number of processes that `torchrun` started; 1 for a single one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def mine(items: list[Item]) -> list[Item]:
    """Returns the items of this process: every world-th."""
    return items[rank() :: world()]


def barrier() -> None:
    """Waits for the other processes, if there are any."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def process_group(config: Config) -> Iterator[None]:
    """Joins the processes of `torchrun`, each with its own GPU where there are several.

    They only exchange whether there is work, which needs no GPU. The timeout is long,
    because one process may work for hours before the next exchange.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if config.training.accelerator != "cpu":
        try:
            take_gpu(int(os.environ.get("LOCAL_RANK", os.environ["RANK"])))
        except ValueError as error:
            raise ConfigError(f"torchrun on {error}") from error
    dist.init_process_group("gloo", timeout=timedelta(days=1))
    try:
        yield
    finally:
        dist.destroy_process_group()


def build_together(store: Store, key: Key, build: Callable[[Path], None]) -> Artifact:
    """Runs `store.get_or_build` with all processes working in one `.part` folder.

    The first process holds the lock. It sends the others whether there is anything to build, so
    that they neither wait for a lock it holds nor work on what another job has just finished. It
    closes the folder when all of them have built their part.
    """
    if world() == 1:
        return store.get_or_build(key, build)

    def work(folder: Path) -> None:
        build(folder)
        barrier()

    def lead(folder: Path) -> None:
        _announce(True)
        work(folder)

    if rank() == 0:
        artifact = store.get_or_build(key, lead)
        if not artifact.built:
            _announce(False)
    elif _announce(False):
        work(store.part(key))
    barrier()
    found = store.find(key)
    assert found is not None
    return found


def _announce(needed: bool) -> bool:
    """Returns the first process's answer on every process."""
    flag = torch.tensor([int(needed)])
    dist.broadcast(flag, 0)
    return bool(flag.item())
