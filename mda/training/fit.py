"""One process's part of a training run: building Lightning's trainer and running it."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import ClusterEnvironment  # type: ignore
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore

from mda.schema import ConfigError, TrainingConfig
from mda.training.available import check_devices
from mda.training.datamodule import Rows, StreamData
from mda.training.module import LanguageModel
from mda.training.scoped import Reach
from mda.types import Stream

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PATIENCE = timedelta(days=1)
"""How long processes wait for each other: one may be measuring; a dead one is noticed at once."""


class Process(ClusterEnvironment):
    """Process `rank` of the `world` that this run started on this machine.

    Lightning gets it explicitly, so that it does not infer other processes from the environment of
    Slurm or torchrun: a job of `sbatch -n 4` is still one process.
    """

    def __init__(self, rank: int = 0, world: int = 1, port: int = 0):
        self.rank, self.world, self.port = rank, world, port

    creates_processes_externally = True  # type: ignore[assignment]
    main_address = "127.0.0.1"  # type: ignore[assignment]

    @property
    def main_port(self) -> int:
        return self.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.world

    def set_world_size(self, size: int) -> None:
        pass

    def global_rank(self) -> int:
        return self.rank

    def set_global_rank(self, rank: int) -> None:
        pass

    def local_rank(self) -> int:
        return self.rank

    def node_rank(self) -> int:
        return 0


class ProgramSignals(pl.Callback):
    """Returns SIGTERM to the program's own handler.

    Lightning's handler ends a run with exit code 0, and talks to the other processes from within
    the handler, where they may be in the middle of another exchange.
    """

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread() and self.handler is not None:
            signal.signal(signal.SIGTERM, self.handler)


def make_trainer(
    settings: TrainingConfig, updates: int, process: Process, callbacks: Sequence[pl.Callback] = ()
) -> pl.Trainer:
    """Returns the trainer of one process.

    Raises ConfigError for devices that this machine lacks.
    """
    check_devices(settings)
    several: dict[str, Any] = {}
    if process.world > 1:
        several["strategy"] = DDPStrategy(timeout=PATIENCE, broadcast_buffers=False)
    try:
        with quiet():
            trainer = pl.Trainer(
                max_steps=updates,
                accelerator=_accelerator(settings),
                devices=_devices(settings, process),
                precision=settings.precision,  # type: ignore[arg-type]  # checked by the schema
                callbacks=[ProgramSignals(), *callbacks],
                plugins=[process],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                **several,
            )
    except MisconfigurationException as error:
        raise ConfigError(
            f"training.accelerator={settings.accelerator} training.devices={settings.devices} is "
            f"refused: {str(error).strip().splitlines()[0]}"
        ) from error
    return trainer


def _accelerator(settings: TrainingConfig) -> str:
    """Returns Lightning's accelerator for a device; `cuda` is the only GPU.

    Apple's GPUs have no float64, which measurements need.
    """
    if settings.accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cuda" if settings.accelerator == "gpu" else settings.accelerator


def _devices(settings: TrainingConfig, process: Process) -> int | list[int]:
    """Returns the configured number of devices; for one, the index of this process's GPU."""
    if process.world == 1 and settings.accelerator != "cpu" and torch.cuda.is_available():
        return [torch.cuda.current_device()]
    return settings.devices


def fit(
    trainer: pl.Trainer,
    model: PreTrainedModel,
    corpus: Rows,
    stream: Stream,
    settings: TrainingConfig,
    first: int,
    resume: Path | None,
    reach: Reach | None = None,
) -> None:
    """Trains from step `first` to the stream's end. Raises KeyboardInterrupt after Ctrl-C."""
    try:
        with quiet():
            if settings.activation_checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            module = LanguageModel(model.train(), settings, first, resume, reach)
            trainer.fit(module, StreamData(corpus, stream, first, reach))
    except SystemExit as stop:  # what Lightning makes of Ctrl-C
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


@contextmanager
def quiet() -> Iterator[None]:
    """Silences warnings of the libraries about deliberate choices (workers, steps)."""
    loggers = "pytorch_lightning", "pytorch_lightning.utilities.rank_zero"
    for name in (*loggers, "lightning_fabric.utilities.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", "`gradient_checkpointing_enable`", FutureWarning)
        yield
