"""Train a model on a schedule with Lightning: resumable at any moment, exact on CPU.

Everything lives in one folder: `checkpoints/step_<n>/`, `train.csv`, and what other callbacks
(the emergence curve) keep there. Called again on the same folder it goes on from the newest
complete checkpoint; tables are cut back to it, so the finished folder does not depend on how
often the run was killed.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytorch_lightning as pl
import torch
from transformers import PreTrainedModel

from mda.data.stream import Corpus
from mda.schema import TrainingConfig
from mda.store import Torn
from mda.training import checkpoint
from mda.training.callbacks import Checkpoints, LossLog
from mda.training.datamodule import ScheduleData
from mda.training.module import LanguageModel
from mda.training.progress import StepBar
from mda.training.table import RowLog
from mda.types import Schedule


class Resumable(Protocol):
    """A callback that keeps a table and can be told where the run goes on."""

    def resume(self, step: int, log: RowLog) -> None: ...


class Training(LanguageModel):
    """The module, started from a checkpoint folder where there is one."""

    def __init__(self, model, settings: TrainingConfig, first_step: int, resume: Path | None):
        super().__init__(model, settings, first_step)
        self.resume = resume

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = super().configure_optimizers()
        if self.resume is not None:
            checkpoint.load(self.resume, self.model, optimizer)
        return optimizer


def train(
    folder: Path,
    model: PreTrainedModel,
    corpus: Corpus,
    plan: Schedule,
    settings: TrainingConfig,
    *,
    checkpoints: Sequence[int],
    start_from: Path | None = None,
    curves: Sequence[Resumable] = (),
    log: RowLog = lambda row: None,
    progress: str | None = "training",
) -> None:
    """Run the updates of `plan` and leave `folder` finished.

    `model` holds the initial weights; `start_from` is the checkpoint folder of step `plan.start`
    (weights and optimizer), None for a run from its very beginning. `curves` are callbacks that
    keep tables of their own. Every row of every table goes to `log` exactly once a call, those
    of an earlier, killed call included. `progress` names the progress bar, None hides it.
    """
    root = folder / "checkpoints"
    done = [step for step in checkpoint.steps(root) if plan.start <= step <= plan.end]
    first = done[-1] if done else plan.start
    resume = checkpoint.checkpoint_folder(root, first) if done else start_from
    if lost := [step for step in checkpoints if plan.start <= step < first and step not in done]:
        raise Torn(f"the checkpoint of step {lost[0]} is missing")
    for step in set(done) - {first, *checkpoints}:  # rolling ones that a kill left behind
        shutil.rmtree(checkpoint.checkpoint_folder(root, step))
    folder.mkdir(parents=True, exist_ok=True)
    # The curve is measured before the checkpoint is written, so that what a checkpoint says is
    # done has its row.
    tables = [*curves, LossLog(folder / "train.csv", plan.batch_size * corpus.seq_len, plan.start)]
    for callback in tables:
        callback.resume(first, log)
    if first == plan.end:
        return
    keep = Checkpoints(root, checkpoints, resumed=first if done else None)
    bar = [StepBar(progress, plan.end)] if progress else []
    with _quiet():
        trainer = pl.Trainer(
            max_steps=plan.end - first,
            accelerator=settings.accelerator,
            devices=settings.devices,
            precision=settings.precision,  # type: ignore[arg-type]  # checked by the schema
            gradient_clip_val=settings.grad_clip or None,
            callbacks=[*tables, keep, *bar],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(
            Training(model.train(), settings, first, resume), ScheduleData(corpus, plan, first)
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Lightning's advice on things that are so by design (workers, loggers, steps)."""
    for name in ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        yield
