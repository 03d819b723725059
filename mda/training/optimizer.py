"""AdamW as Pythia is trained with it, and a learning rate that is a pure function of the step."""

from __future__ import annotations

import math

import torch

from mda.schema import TrainingConfig


def adamw(model: torch.nn.Module, settings: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101); biases and norms do not decay."""
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
    """Learning rate of update `step` (0-based): linear warm-up, then cosine to the floor.

    warm-up: peak (step + 1) / warmup; then peak (m + (1 - m) (1 + cos(pi u)) / 2) with
    m = min_lr_ratio and u the fraction of the remaining steps that is done.
    """
    peak, warmup = settings.peak_lr, settings.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, settings.total_steps - warmup)
    floor = settings.min_lr_ratio
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
