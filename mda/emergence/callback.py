"""Measures the emergence curve during training: one row of `curve.csv` at chosen steps."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import pytorch_lightning as pl

from mda.emergence.measure import Follow, Probes, measure
from mda.emergence.onset import Curve
from mda.training.module import LanguageModel
from mda.training.table import CsvTable, RowLog, read_rows, replay


class EmergenceCurve(pl.Callback):
    """Appends `measure`, and the measurements of `follow`, to `curve.csv` at the given steps.

    `held_out` are the steps at which held-out text is measured too. Where `last` is true of the
    curve so far, the run ends, and held-out text is measured as well.

    Nothing here draws random numbers or leaves the model in another mode, so a run is the same with
    and without it.
    """

    def __init__(
        self,
        path: Path,
        probes: Probes,
        steps: Collection[int],
        held_out: Collection[int],
        tokens_per_step: int,
        follow: Follow | None = None,
        last: Callable[[Curve], bool] | None = None,
    ):
        self.last = last
        self.follow = follow or (lambda model: {})
        self.table = CsvTable(path)
        self.probes, self.steps, self.held_out = probes, frozenset(steps), frozenset(held_out)
        self.tokens_per_step = tokens_per_step

    def resume(self, step: int, log: RowLog) -> None:
        """Cuts the curve back to `step` and logs its content again."""
        self.emit = log
        done = [at for at in self.steps if at <= step] if step > min(self.steps) else []
        self.measured = replay(self.table, step, log, wanted=done)

    @property
    def ended(self) -> bool:
        """True if the run ends at the last row that is there."""
        return self.last is not None and self.last(self._rows())

    def on_train_start(self, trainer: pl.Trainer, pl_module: LanguageModel) -> None:
        if pl_module.step not in self.measured:
            self._measure(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: LanguageModel, *_: object) -> None:
        self._measure(trainer, pl_module)

    def _measure(self, trainer: pl.Trainer, module: LanguageModel) -> None:
        step = module.step
        if step not in self.steps:
            return
        row = self._row(module, step in self.held_out)
        if self.last is not None and self.last([*self._rows(), row]):
            trainer.should_stop = True
            row = self._row(module, held_out=True)
        self.table.append(row)
        self.emit(row)

    def _rows(self) -> list[dict[str, float]]:
        return read_rows(self.table.path) if self.table.path.exists() else []

    def _row(self, module: LanguageModel, held_out: bool) -> dict[str, float]:
        row: dict[str, float] = {"step": module.step}
        row["tokens"] = module.step * self.tokens_per_step
        row |= measure(module.model, self.probes, held_out=held_out)
        return {**row, **self.follow(module.model)}
