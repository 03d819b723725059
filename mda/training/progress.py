"""One progress bar for a training run: step, speed, loss, time left."""

from __future__ import annotations

import pytorch_lightning as pl
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mda.training.module import LanguageModel


class StepBar(pl.Callback):
    """Counts the run's own steps, so that a resumed run starts where it stopped."""

    def __init__(self, name: str, last_step: int):
        self.name, self.last_step = name, last_step
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("step {task.completed:,.0f}/{task.total:,.0f}  loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: LanguageModel) -> None:
        self.bar.start()
        self.task = self.bar.add_task(
            self.name, total=self.last_step, completed=pl_module.step, loss="-"
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: LanguageModel, outputs: dict, *_: object
    ) -> None:
        if pl_module.step % 10 == 0 or pl_module.step == self.last_step:
            loss = f"{float(outputs['loss']):.3f}"
            self.bar.update(self.task, completed=pl_module.step, loss=loss)

    def on_train_end(self, trainer: pl.Trainer, pl_module: LanguageModel) -> None:
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: LanguageModel, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar.live.is_started:  # a run may end before its first update
            self.bar.stop()
