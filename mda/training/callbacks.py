"""Checkpoints at declared steps, a rolling one to resume from, and the loss log."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl

from mda.training import checkpoint
from mda.training.module import LanguageModel
from mda.training.table import LOGGED_EVERY, CsvTable, RowLog, replay


class Checkpoints(pl.Callback):
    """Keeps the declared checkpoints, that of a run's end, and a rolling one every ten seconds.

    Rolling checkpoints are rarer where writing takes long, so that it takes at most a twentieth of
    the time. Exact resume makes the moment of the rolling checkpoint irrelevant to the result.
    """

    ROLLING_S = 10.0

    def __init__(self, root: Path, declared: Sequence[int], resumed: int | None = None):
        self.root, self.declared, self.last = root, set(declared), resumed
        self.saved_at, self.pause_s = time.monotonic(), self.ROLLING_S

    def on_train_start(self, trainer: pl.Trainer, pl_module: LanguageModel) -> None:
        if pl_module.step in self.declared:
            self._save(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: LanguageModel, *_: object) -> None:
        late = time.monotonic() - self.saved_at > self.pause_s
        if late or trainer.should_stop or pl_module.step in self.declared:
            self._save(trainer, pl_module)

    def _save(self, trainer: pl.Trainer, module: LanguageModel) -> None:
        began, scale = time.monotonic(), trainer.precision_plugin.state_dict()
        checkpoint.save(self.root, module.step, module.model, trainer.optimizers[0], scale)
        before, self.last = self.last, module.step
        if before is not None and before not in self.declared and before != self.last:
            shutil.rmtree(checkpoint.checkpoint_folder(self.root, before))
        self.saved_at = time.monotonic()
        self.pause_s = max(self.ROLLING_S, 20 * (self.saved_at - began))


class LossLog(pl.Callback):
    """Writes `train.csv`: step, tokens, loss and learning rate of every update.

    The log gets every 20th row.
    """

    def __init__(self, path: Path, tokens_per_step: int, start: int = 0):
        self.table, self.tokens_per_step, self.start = CsvTable(path), tokens_per_step, start

    def resume(self, step: int, log: RowLog) -> None:
        """Cuts the table back to `step` and logs its content again."""
        self.first, self.emit = step, log
        replay(self.table, step, log, LOGGED_EVERY, wanted=range(self.start + 1, step + 1))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: LanguageModel, outputs: dict, *_: object
    ) -> None:
        step, loss = pl_module.step, float(outputs["loss"])
        if not math.isfinite(loss):
            known = "though the weights were finite before this first update of the run"
            advice = known if step == self.first + 1 else "lower training.peak_lr"
            raise FloatingPointError(f"the loss is {loss} at step {step}: {advice}")
        row = {
            "step": step,
            "tokens": step * self.tokens_per_step,
            "train/loss": loss,
            "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
        }
        self.table.append(row)
        if step % LOGGED_EVERY == 0:
            self.emit(row)
