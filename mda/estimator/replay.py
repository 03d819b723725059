"""Repeating a window of training: its states, as often as needed, without storing them.

Shapes: P parameters, all of the model's in one vector.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from mda.estimator.score import Rows
from mda.schema import TrainingConfig
from mda.training import checkpoint
from mda.training.loss import accumulate_gradients
from mda.training.optimizer import adamw, learning_rate
from mda.types import Stream

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TrainingWindow:
    """A part of training that can be repeated; the model gives its shape, not its weights.

    Raises ValueError for dropout and mixed precision, which cannot be repeated in float32.
    """

    model: PreTrainedModel
    stream: Stream
    rows: Rows
    settings: TrainingConfig

    def __post_init__(self) -> None:
        if self.settings.precision != "32-true":
            raise ValueError(f"precision={self.settings.precision}; expected 32-true")
        for name, module in self.model.named_modules():
            if isinstance(module, torch.nn.Dropout) and module.p > 0:
                raise ValueError(f"dropout of {module.p} in {name}; expected 0")

    @cached_property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The model's parameters in their order."""
        return list(self.model.parameters())

    @cached_property
    def decay_P(self) -> Tensor:
        """The weight decay of every parameter, as in the optimizer."""
        groups = adamw(self.model, self.settings).param_groups
        decay = {p: group["weight_decay"] for group in groups for p in group["params"]}
        return flat(torch.full_like(p, decay[p], requires_grad=False) for p in self.parameters)

    def split(self, vector_P: Tensor) -> list[Tensor]:
        """Returns one vector as views in the shapes of the parameters."""
        parts = vector_P.split([parameter.numel() for parameter in self.parameters])
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Returns tokens [B, T + 1] and loss weights [B] of one step."""
        sample_ids, weights = self.stream.at(step)
        weights_B = torch.from_numpy(weights).to(self.model.device, self.model.dtype)
        return self.rows(sample_ids).to(self.model.device), weights_B

    def rows_of(self, steps: range) -> slice:
        """Returns the slice of the stream's arrays that holds consecutive steps."""
        first, last = (
            self.stream.offsets[at - self.stream.start] for at in (steps.start, steps.stop)
        )
        return slice(first, last)

    def load(self, weights_P: Tensor) -> None:
        """Copies these weights into the model."""
        with torch.no_grad():
            for parameter, part in zip(self.parameters, self.split(weights_P), strict=True):
                parameter.copy_(part)


@dataclass(frozen=True)
class TrainingState:
    """Weights and AdamW's moments after `updates` updates, each one vector."""

    updates: int
    weights_P: Tensor
    exp_avg_P: Tensor
    exp_avg_sq_P: Tensor


def load_state(folder: Path, model: PreTrainedModel, settings: TrainingConfig) -> TrainingState:
    """Returns the state of a checkpoint folder, which is loaded into `model`."""
    optimizer = adamw(model, settings)
    checkpoint.load(folder, model, optimizer)
    for p in model.parameters():
        if not optimizer.state[p]:  # before the first update
            zeros = torch.zeros_like(p, requires_grad=False)
            optimizer.state[p] = {"step": 0, "exp_avg": zeros, "exp_avg_sq": zeros}
    return _state(optimizer, list(model.parameters()))


def replay(
    window: TrainingWindow, state: TrainingState, steps: range, keep: Collection[int] | None = None
) -> dict[int, TrainingState]:
    """Trains on `steps` from `state` and returns the states before the steps in `keep`.

    `steps.stop` may be among them; None keeps all. The operations are those of `mda.training`, so
    that on a CPU the states are the same bit for bit.
    """
    keep = range(steps.start, steps.stop + 1) if keep is None else keep
    kept = {steps.start: state} if steps.start in keep else {}
    settings = window.settings
    optimizer = adamw(window.model.train(), settings)
    # The norm is summed in the optimizer's order, as in training: rounding depends on it.
    clipped = [p for group in optimizer.param_groups for p in group["params"]]
    window.load(state.weights_P)
    _load_moments(optimizer, state, window)
    for step in steps:
        optimizer.zero_grad()
        accumulate_gradients(
            window.model, *window.batch(step), window.stream.batch_size, settings.micro_batch_size
        )
        if settings.grad_clip:
            clip_grad_norm_(clipped, settings.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        optimizer.step()
        if step + 1 in keep:
            kept[step + 1] = _state(optimizer, window.parameters)
    optimizer.zero_grad()
    return kept


def perturbed(
    window: TrainingWindow, state: TrainingState, size: float, seed: int, run: int
) -> TrainingState:
    """Returns `state` with normal noise in the weights, `size` times each parameter's spread.

    A pure function of seed and run. The spread is the standard deviation; a parameter with equal
    entries is unchanged.
    """
    generator = np.random.default_rng([seed, run])
    noise_P = torch.from_numpy(generator.standard_normal(len(state.weights_P)))
    spread_P = torch.cat(
        [part.std(correction=0).expand(part.numel()) for part in window.split(state.weights_P)]
    )
    return replace(state, weights_P=state.weights_P + size * spread_P * noise_P.to(spread_P))


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """Returns tensors as one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _state(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> TrainingState:
    """Returns a copy of weights and moments."""
    moments = [optimizer.state[parameter] for parameter in parameters]
    return TrainingState(
        updates=int(moments[0]["step"]),
        weights_P=flat(parameters).detach(),
        exp_avg_P=flat(moment["exp_avg"] for moment in moments),
        exp_avg_sq_P=flat(moment["exp_avg_sq"] for moment in moments),
    )


def _load_moments(
    optimizer: torch.optim.Optimizer, state: TrainingState, window: TrainingWindow
) -> None:
    moments = zip(
        window.parameters,
        window.split(state.exp_avg_P),
        window.split(state.exp_avg_sq_P),
        strict=True,
    )
    for parameter, exp_avg, exp_avg_sq in moments:
        optimizer.state[parameter] = {
            "step": torch.tensor(float(state.updates), device=parameter.device),
            "exp_avg": exp_avg.clone(),
            "exp_avg_sq": exp_avg_sq.clone(),
        }
