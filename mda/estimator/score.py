"""Scores of samples, given a direction for every unit: the pass that EK-FAC and TracIn share.

Up-weighting sample z by eps moves the parameters by -eps M grad L(z), with M the inverse curvature
(EK-FAC), the learning rate (TracIn) or Adam's step sizes, and with them the measurement f by
-eps <grad f, M grad L(z)>. With the direction P = M grad f, which does not depend on z, the score
of z is -<P, grad L(z)>: score > 0 means that up-weighting the sample raises the measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mda.unit.blocks import Directions
from mda.unit.capture import capture, modules_of

Rows = Callable[[np.ndarray], Tensor]
"""Sample ids -> their tokens, int64 [B, T + 1]; for a corpus, its method `rows`."""


class SampleScores(NamedTuple):
    """Scores and losses of samples, in the order of their ids."""

    values_NU: Tensor  # float32 on the CPU (float64 from a float64 model)
    losses_N: Tensor  # mean token loss in nats


def batches(sample_ids: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """The ids in order, `batch_size` at a time; the last batch may be shorter."""
    for start in range(0, len(sample_ids), batch_size):
        yield sample_ids[start : start + batch_size]


def score_samples(
    model: PreTrainedModel,
    rows: Rows,
    sample_ids: np.ndarray,
    directions: Directions,
    batch_size: int = 32,
) -> SampleScores:
    """Score of every sample for every unit, [N, U], and its loss, [N].

    One forward and backward pass for each batch, whatever the number and kinds of units. Memory
    does not grow with N but for the result. Runs on the model's device in the model's precision.
    """
    values = torch.empty(len(sample_ids), len(directions.units), dtype=model.dtype)
    losses = torch.empty(len(sample_ids), dtype=model.dtype)
    modules, done = modules_of(directions.blocks), 0
    for ids in batches(sample_ids, batch_size):
        captured = capture(model, rows(ids), modules)
        here = slice(done, done + len(ids))
        values[here] = directions.sequence_influence(captured).cpu()
        losses[here] = captured.losses_B.cpu()
        done += len(ids)
    return SampleScores(values, losses)


def token_influence(model: PreTrainedModel, tokens_BS: Tensor, directions: Directions) -> Tensor:
    """Influence of every token, [B, T, U]; its sum over T is the samples' score.

    Position t gathers what the weights see at t: the query that asks there, the key and value that
    are read there, and the output that is written there.
    """
    return directions.token_influence(capture(model, tokens_BS, modules_of(directions.blocks)))
