"""Influence through the training itself: the exact derivative of a measurement at a window's end.

A window is a function of its samples' loss weights w. Step t takes the gradient g = sum_j w_j grad
l_j / batch_size, clips it and updates (arXiv 1711.05101):

    h  = g min(1, clip / (|g| + 1e-6))
    m' = beta1 m + (1 - beta1) h                    v' = beta2 v + (1 - beta2) h^2
    theta' = (1 - rate decay) theta - rate (m' / c1) / (sqrt(v' / c2) + eps)

with c = 1 - beta^k after k updates, the rate of the step, and decay on matrices only. For a
measurement f of the weights at the end, the score of a sample is df/dw_j: score > 0 means that
up-weighting the sample raises f. The adjoints df/dtheta, df/dm, df/dv go backwards through the
updates (Maclaurin et al. 2015, arXiv 1502.03492; Engstrom et al. 2025, arXiv 2504.16430). Given a =
df/dg, one double backward of <a, g(theta, w)> gives both what a step needs: the Hessian-vector
product for df/dtheta, and <a, grad l_j> / batch_size, which is df/dw_j.

The states that this needs come from training again, with the training's own kernels and optimizer:
on a CPU bit for bit what was trained. The double backward writes attention out (`PlainAttention`),
because the fused kernel has no second derivative; its gradients agree up to rounding.

Shapes: P parameters, all of the model's in one vector; N rows of the stream; U measurements.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mda.estimator.replay import TrainingState, TrainingWindow, flat, perturbed, replay
from mda.model.loss import plain_losses
from mda.model.plain_attention import PlainAttention
from mda.training.optimizer import learning_rate
from mda.unit.kind import Measurement

CLIP_EPS = 1e-6  # what `clip_grad_norm_` adds to the norm


@dataclass(frozen=True)
class Adjoint:
    """Derivatives of every measurement with respect to a training state."""

    weights_UP: Tensor
    exp_avg_UP: Tensor
    exp_avg_sq_UP: Tensor

    def to(self, device: torch.device) -> Adjoint:
        parts = (self.weights_UP, self.exp_avg_UP, self.exp_avg_sq_UP)
        return Adjoint(*(part.to(device) for part in parts))


@dataclass(frozen=True)
class Progress:
    """The state of an unfinished differentiation, with the scores so far.

    Of run `run` (0 but for perturbed ones) all steps from `step` on are done. `values_NU` holds the
    mean over all runs, where runs to come count as 0.
    """

    run: int
    step: int
    adjoint: Adjoint
    values_NU: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Returns the state as named tensors, for a safetensors file."""
        return {
            "run": torch.tensor(self.run),
            "step": torch.tensor(self.step),
            "weights": self.adjoint.weights_UP,
            "exp_avg": self.adjoint.exp_avg_UP,
            "exp_avg_sq": self.adjoint.exp_avg_sq_UP,
            "values": self.values_NU,
        }

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Progress:
        """Returns the state from the tensors of `tensors`."""
        adjoint = Adjoint(tensors["weights"], tensors["exp_avg"], tensors["exp_avg_sq"])
        return cls(int(tensors["run"]), int(tensors["step"]), adjoint, tensors["values"])


def unrolled_influence(
    window: TrainingWindow,
    states: Mapping[int, TrainingState],
    measurements: Sequence[Measurement],
    *,
    segment: int | None = None,
    last_steps: int | None = None,
    n_perturbed: int = 0,
    perturbation: float = 0.01,
    seed: int = 0,
    resume: Progress | None = None,
) -> Iterator[Progress]:
    """Yields df/dw of every row of the stream and every measurement, last segment first.

    The `values_NU` of the last item are the scores, in the stream's order. `states` are known
    ones by step: that before the stream's first step, and any others (a run's checkpoints).

    From one known state to the next training is repeated, and `segment` steps at a time are
    differentiated. In memory are their states, 3 P numbers each, and one for each segment between
    the two. None keeps all states from one known state to the next; fewer means that all but the
    last segment are trained once more.

    `last_steps` differentiates only the end of the window; rows of earlier steps get 0. With
    `n_perturbed` the scores are the mean over as many windows, each started from weights with noise
    added (`perturbed`), in place of the window as it was trained.

    With a saved item as `resume`, the computation continues bit for bit, at the cost of training
    there from a known state. The model's weights are overwritten. Raises ValueError for a `segment`
    or `last_steps` that does not fit the window.
    """
    stream, n_runs = window.stream, max(1, n_perturbed)
    n_steps = stream.end - stream.start
    last_steps = n_steps if last_steps is None else last_steps
    segment = n_steps if segment is None else segment
    for name, value in (("last_steps", last_steps), ("segment", segment)):
        if not 1 <= value <= n_steps:
            raise ValueError(f"{name}={value}; expected 1 to the window's {n_steps} steps")
    first = stream.end - last_steps
    values = states[stream.start].weights_P.new_zeros(len(stream.sample_ids), len(measurements))
    if resume is not None:
        values = resume.values_NU.to(values).clone()
    for run in range(resume.run if resume else 0, n_runs):
        origins = states
        if n_perturbed:
            origins = {
                stream.start: perturbed(window, states[stream.start], perturbation, seed, run)
            }
        end, adjoint = stream.end, None
        if resume is not None and run == resume.run:
            end, adjoint = resume.step, resume.adjoint.to(values.device)
        parts = _segments_back(window, origins, range(first, end), segment, measurements, adjoint)
        for steps, adjoint, values_BU in parts:
            values[window.rows_of(steps)] += values_BU / n_runs
            yield Progress(run, steps.start, adjoint, values.clone())


def _segments_back(
    window: TrainingWindow,
    origins: Mapping[int, TrainingState],
    steps: range,
    segment: int,
    measurements: Sequence[Measurement],
    adjoint: Adjoint | None,
) -> Iterator[tuple[range, Adjoint, Tensor]]:
    """Yields each segment's steps, last one first, the adjoint before it, and df/dw of its rows.

    `adjoint` is the adjoint after `steps`; None starts from the measurements there.
    """
    end = steps.stop
    for origin in sorted(origins, reverse=True):
        begins = range(max(steps.start, origin), end, segment)
        if not begins:
            continue
        keep = {*begins, *range(begins[-1], end + 1)}
        kept = replay(window, origins[origin], range(origin, end), keep)
        adjoint = adjoint or _measured(window, kept[end], measurements)
        for begin in reversed(begins):
            if begin + 1 not in kept:
                kept |= replay(window, kept[begin], range(begin, end - 1))
            values_BU: list[Tensor] = []
            for step in reversed(range(begin, end)):
                after = kept.pop(step + 1)
                adjoint, here_BU = step_back(window, step, kept[step], after, adjoint)
                values_BU.insert(0, here_BU)
            yield range(begin, end), adjoint, torch.cat(values_BU)
            end = begin


def step_back(
    window: TrainingWindow, step: int, before: TrainingState, after: TrainingState, adjoint: Adjoint
) -> tuple[Adjoint, Tensor]:
    """Returns the adjoint before update `step` from that after it, and df/dw of its samples.

    df/dw is [B, U]. A batch trained in micro-batches is differentiated in micro-batches too: first
    the gradient of the batch, then that of each micro-batch again.
    """
    window.load(before.weights_P)
    tokens_BS, weights_B = window.batch(step)
    size = window.settings.micro_batch_size or len(tokens_BS)
    parts: list[tuple[Tensor, Tensor]] = []
    if len(tokens_BS):  # else an edit dropped every sample: an update with a gradient of zero
        parts = list(zip(tokens_BS.split(size), weights_B.split(size), strict=True))
    held = [_gradient(window, *part) for part in parts] if len(parts) == 1 else None
    gradient_P = torch.zeros_like(before.weights_P)
    for gradient in held or (_gradient(window, *part) for part in parts):
        gradient_P += flat(gradient.by_parameter).detach()
    adjoint, through_UP = adamw_adjoint(window, step, gradient_P, after, adjoint)
    values = [through_UP.new_zeros(0, len(through_UP))]
    for gradient in held or (_gradient(window, *part) for part in parts):
        values.append(_through(window, gradient, through_UP, adjoint.weights_UP))
    return adjoint, torch.cat(values)


class _Gradient(NamedTuple):
    """The gradient of a micro-batch's loss, ready to be differentiated."""

    by_parameter: tuple[Tensor, ...]
    weights_B: Tensor


def _gradient(window: TrainingWindow, tokens_BS: Tensor, weights_B: Tensor) -> _Gradient:
    """Returns the gradient of training.

    Loss and attention are written out, to have a second derivative.
    """
    weights_B = weights_B.clone().requires_grad_()
    with PlainAttention():
        losses_B = plain_losses(window.model, tokens_BS).mean(1)
    loss = (weights_B * losses_B).sum() / window.stream.batch_size
    by_parameter = torch.autograd.grad(
        loss, window.parameters, create_graph=True, materialize_grads=True
    )
    return _Gradient(by_parameter, weights_B)


def _through(
    window: TrainingWindow, gradient: _Gradient, through_UP: Tensor, weights_UP: Tensor
) -> Tensor:
    """Returns df/dw of a micro-batch, [B, U], and adds Hessian-vector products to `weights_UP`."""
    values_BU = []
    for u, through_P in enumerate(through_UP):
        *products, value_B = torch.autograd.grad(
            gradient.by_parameter,
            [*window.parameters, gradient.weights_B],
            window.split(through_P),
            retain_graph=u + 1 < len(through_UP),
            materialize_grads=True,
        )
        weights_UP[u] += flat(products)
        values_BU.append(value_B)
    return torch.stack(values_BU, 1)


def adamw_adjoint(
    window: TrainingWindow, step: int, gradient_P: Tensor, after: TrainingState, adjoint: Adjoint
) -> tuple[Adjoint, Tensor]:
    """Takes one update backwards, with the gradient held fixed.

    Returns the adjoint before it, and df/dg, [U, P]. `gradient_P` is g, before clipping; `after` is
    the state that the update left.
    """
    settings, k = window.settings, after.updates
    rate, beta1, beta2 = learning_rate(step, settings), settings.beta1, settings.beta2
    size, root_c2 = rate / (1 - beta1**k), (1 - beta2**k) ** 0.5
    norm, clip = gradient_P.norm(), 1.0
    if settings.grad_clip:
        clip = min(clip, float(settings.grad_clip / (norm + CLIP_EPS)))
    root_P = after.exp_avg_sq_P.sqrt()
    denominator_P = root_P / root_c2 + settings.eps
    # A weight that never had a gradient has v' = 0, and m' = 0 beside it.
    slope_P = after.exp_avg_P / (2 * root_c2 * root_P * denominator_P.square())
    slope_P = torch.where(root_P > 0, slope_P, 0.0)

    exp_avg_UP = adjoint.exp_avg_UP - adjoint.weights_UP * (size / denominator_P)
    exp_avg_sq_UP = adjoint.exp_avg_sq_UP + adjoint.weights_UP * (size * slope_P)
    through_UP = (1 - beta1) * exp_avg_UP
    through_UP += exp_avg_sq_UP * (2 * (1 - beta2) * clip * gradient_P)
    if clip < 1:  # then the clipped gradient depends on the norm as well
        radial_U = through_UP @ gradient_P / (norm * (norm + CLIP_EPS))
        through_UP -= radial_U[:, None] * gradient_P
    weights_UP = adjoint.weights_UP * (1 - rate * window.decay_P)
    return Adjoint(weights_UP, beta1 * exp_avg_UP, beta2 * exp_avg_sq_UP), clip * through_UP


def _measured(
    window: TrainingWindow, state: TrainingState, measurements: Sequence[Measurement]
) -> Adjoint:
    """Returns the adjoint at the end: the measurements' gradients, and 0 for the moments."""
    window.load(state.weights_P)
    weights_UP = torch.stack(
        [
            flat(torch.autograd.grad(f(window.model), window.parameters, materialize_grads=True))
            for f in measurements
        ]
    )
    return Adjoint(weights_UP, torch.zeros_like(weights_UP), torch.zeros_like(weights_UP))
