"""Monitoring metrics (mu) of attention heads, which locate units and follow their emergence.

Every metric takes attention patterns A [M, H, T, T] (queries, then keys) and gives one value for
each sequence and head, float [M, H], between 0 and 1. No gradient is needed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from mda.schema.metrics import HEAD_METRICS
from mda.schema.plugins import implementation

Metric = Callable[[torch.Tensor, int], torch.Tensor]


def prefix_matching(attention_MHTT: torch.Tensor, length: int) -> torch.Tensor:
    """Returns the induction score on a random sequence repeated after `length` tokens, [M, H].

    Mean over the second copy's positions t of A[t, t - length + 1]: the attention from each
    token to the one AFTER its first occurrence (Olsson et al. 2022, arXiv 2209.11895).
    """
    t = torch.arange(length, 2 * length, device=attention_MHTT.device)
    return attention_MHTT[:, :, t, t - length + 1].mean(-1)


def previous_token(attention_MHTT: torch.Tensor, length: int) -> torch.Tensor:
    """Returns the mean over the positions t >= 1 of A[t, t - 1], [M, H]; `length` is unused."""
    return attention_MHTT.diagonal(-1, 2, 3).mean(-1)


def second_previous_token(attention_MHTT: torch.Tensor, length: int) -> torch.Tensor:
    """Returns the mean over the positions t >= 2 of A[t, t - 2], [M, H]; `length` is unused."""
    return attention_MHTT.diagonal(-2, 2, 3).mean(-1)


def metric_function(name: str) -> Metric:
    """Returns the function of a metric in `mda.schema.metrics.HEAD_METRICS`."""
    return implementation(HEAD_METRICS[name].function)
