"""AdamW with Pythia's settings, and a learning rate that is a pure function of the step."""

from __future__ import annotations

import math

import torch

from mda.schema import TrainingConfig


def adamw(model: torch.nn.Module, settings: TrainingConfig) -> torch.optim.AdamW:
    """Returns AdamW (Loshchilov & Hutter, arXiv 1711.05101); biases and norms do not decay."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=settings.peak_lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=True,
    )


def learning_rate(step: int, settings: TrainingConfig) -> float:
    """Returns the learning rate of update `step` (0-based) under `training.schedule`.

    With peak p, floor m p (m = min_lr_ratio), W = warmup_steps and E = total_steps:

        cosine   p (step + 1) / W in the warm-up; then p (m + (1 - m) (1 + cos(pi u)) / 2), with
                 u = (step - W) / (E - W)
        neox     p step / W up to step = W; then max(m p, p (1 + cos(pi (min(step, E - W) - W) / E))
                 / 2): as GPT-NeoX computes it, whose first update has the rate 0
    """
    peak, warmup, total = settings.peak_lr, settings.warmup_steps, settings.total_steps
    floor = settings.min_lr_ratio
    if settings.schedule == "neox":
        if warmup and step <= warmup:
            return peak * step / warmup
        done = (min(step, total - warmup) - warmup) / total
        return max(floor * peak, peak / 2 * (math.cos(math.pi * done) + 1))
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
