"""A job derived from its settings, and the cost of a stage: the types of this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from mda.cost.passes import FLOAT, Shape
from mda.emergence.measure import TOKENS
from mda.schema import Config, HeadConfig
from mda.schema.rules import checkpoints, last_step
from mda.training.loss import logits_at_once
from mda.types import ParameterBlock, Unit


@dataclass(frozen=True)
class Cost:
    """The cost of one stage; None where the settings do not determine it.

    `tokens` are those that go through the model, for a corpus those that are written; `memory` is
    without that of the process itself; `disk` is what remains after the stage.
    """

    stage: str
    tokens: float = 0.0
    flops: Mapping[str, float] | None = field(default_factory=dict)  # kind of work -> operations
    memory: float | None = 0.0  # bytes
    disk: float | None = 0.0  # bytes


@dataclass(frozen=True)
class Job:
    """A job's settings with what follows from them: the model's shape, and the scored units."""

    config: Config
    shape: Shape
    units: Sequence[Unit]

    @property
    def rows(self) -> dict[ParameterBlock, int]:
        """The number of directions [I, J] that each block is multiplied with."""
        rows_of: dict[ParameterBlock, set[int]] = {}
        for unit in self.units:
            for block, row in unit.parts:
                rows_of.setdefault(block, set()).add(row)
        return {block: len(rows) for block, rows in rows_of.items()}

    @property
    def last_step(self) -> int:
        """The step at which the base run ends, or the last published checkpoint."""
        return last_step(self.config)

    @property
    def checkpoints(self) -> list[int]:
        """The steps that have a checkpoint."""
        return checkpoints(self.config)

    @property
    def window(self) -> tuple[int, int]:
        """The number of steps of the arm: as given, or the most of an automatic window."""
        edit, last = self.config.intervention, self.last_step
        if edit.steps is not None:
            return edit.steps
        length = edit.before_onset + edit.after_onset + self.config.training.checkpoint_every // 2
        return max(0, last - length), last

    @property
    def samples(self) -> int:
        """Samples of the window."""
        return (self.window[1] - self.window[0]) * self.config.training.batch_size

    @property
    def device(self) -> torch.device:
        """See `job_device`."""
        return job_device(self.config)

    @property
    def in_mlp(self) -> bool:
        """True if captured maps are in MLPs too, and not in attention alone."""
        beyond = self.config.estimator.requires.scope != "unit"
        return beyond or not isinstance(self.config.unit, HeadConfig)


def job_device(config: Config) -> torch.device:
    """Returns the device of this machine or of the assumed card; only its type matters."""
    has_gpu = config.plan.hardware != "this" or torch.cuda.is_available()
    return torch.device("cuda" if has_gpu and config.training.accelerator != "cpu" else "cpu")


def measurement_bytes(job: Job) -> float:
    """Returns the bytes of one chunk of tokens in a layer, its logits, and all layers' patterns."""
    shape, settings = job.shape, job.config.emergence
    tokens = max(TOKENS, job.config.data.seq_len)
    hidden = tokens * (8 * shape.d_model + 2 * shape.d_ff)
    logits = 2 * min(tokens * shape.vocab_size, logits_at_once(job.device))
    rows, size = min(settings.n_sequences, TOKENS // (2 * settings.length)), 2 * settings.length
    patterns = (shape.n_layers + 2) * rows * shape.n_heads * size**2
    return FLOAT * max(hidden + logits, hidden // 2 + patterns)
