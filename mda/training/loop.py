"""Trains a model on a stream with Lightning: resumable at any moment, exact on CPU.

Everything lives in one folder: `checkpoints/step_<n>/`, `train.csv`, and what other callbacks (the
emergence curve) keep there. Called again on the same folder, it resumes from the newest complete
checkpoint; tables are cut back to it, so the finished folder does not depend on how often the run
was killed.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mda.schema import TrainingConfig
from mda.store import Torn
from mda.training import checkpoint
from mda.training.callbacks import Checkpoints, LossLog
from mda.training.datamodule import Rows
from mda.training.devices import Job, joined, refuse_nested
from mda.training.fit import Process, fit, make_trainer
from mda.training.progress import StepBar
from mda.training.scoped import Reach
from mda.training.table import RowLog
from mda.types import Stream

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Resumable(Protocol):
    """A callback that keeps a table, which is cut back where a run resumes, and may end the run.

    It ends a run by `trainer.should_stop`; `ended` says whether it has, by its table.
    """

    def resume(self, step: int, log: RowLog) -> None: ...

    @property
    def ended(self) -> bool: ...


def train(
    folder: Path,
    model: PreTrainedModel,
    corpus: Rows,
    stream: Stream,
    settings: TrainingConfig,
    *,
    checkpoints: Sequence[int],
    start_from: Path | None = None,
    curves: Sequence[Resumable] = (),
    log: RowLog = lambda row: None,
    progress: str | None = "training",
    reach: Reach | None = None,
) -> None:
    """Runs the updates of `stream` and completes `folder`.

    `model` holds the initial weights; `start_from` is the checkpoint folder of the stream's start
    (weights and optimizer), None for a run from step 0. `curves` are callbacks that keep tables of
    their own. Each call sends every row of a curve and every 20th update's loss to `log` exactly
    once, including those of an earlier, killed call. `progress` names the progress bar, None hides
    it. `reach` is for an edit of some parameters only; it needs a single device.
    """
    root = folder / "checkpoints"
    done = [step for step in checkpoint.steps(root) if stream.start <= step <= stream.end]
    first = done[-1] if done else stream.start
    resume = checkpoint.checkpoint_folder(root, first) if done else start_from
    if lost := [step for step in checkpoints if stream.start <= step < first and step not in done]:
        raise Torn(f"the checkpoint of step {lost[0]} is missing")
    for step in set(done) - {first, *checkpoints}:  # rolling ones that a kill left behind
        shutil.rmtree(checkpoint.checkpoint_folder(root, step))
    for step in checkpoint.steps(root):
        checkpoint.verify(checkpoint.checkpoint_folder(root, step))
    folder.mkdir(parents=True, exist_ok=True)
    # The curve is measured before the checkpoint is written, so that what a checkpoint says is
    # done has its row.
    tables = [
        *curves,
        LossLog(folder / "train.csv", stream.batch_size * corpus.seq_len, stream.start),
    ]
    for callback in tables:
        callback.resume(first, log)
    if first == stream.end or any(curve.ended for curve in curves):
        return
    keep = Checkpoints(root, checkpoints, resumed=first if done else None)
    bar = [StepBar(progress, stream.end)] if progress else []
    callbacks = [*tables, keep, *bar]
    if settings.devices == 1:
        trainer = make_trainer(settings, stream.end - first, Process(), callbacks)
        return fit(trainer, model, corpus, stream, settings, first, resume, reach)
    refuse_nested(settings.devices)
    job = Job(type(model), model.config, corpus.seq_len, stream, settings, first, resume)
    with joined(settings.devices, job) as process:
        trainer = make_trainer(settings, stream.end - first, process, callbacks)
        fit(trainer, model, corpus, stream, settings, first, resume)
