"""Scores of samples, given a direction for every head: the pass that EK-FAC and TracIn share.

Up-weighting sample z by eps moves the parameters by -eps M grad L(z), with M the inverse curvature
(EK-FAC), the learning rate (TracIn) or Adam's step sizes, and with them the probe by
-eps <grad f, M grad L(z)>. With the direction P = M grad f, which does not depend on z, the score
of z is -<P, grad L(z)>: score > 0 means that up-weighting the sample raises the probe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import GPTNeoXForCausalLM

from mda.unit.gradients import capture
from mda.unit.subspace import (
    BlockTensors,
    LayerDirection,
    Subspace,
    Units,
    pack_direction,
    token_products,
)

Rows = Callable[[np.ndarray], Tensor]
"""Sample ids -> their tokens, int64 [B, T + 1]; for a corpus, its method `rows`."""


class SampleScores(NamedTuple):
    """Scores and losses of samples, in the order of their ids."""

    values_NU: Tensor  # float32 on the CPU (float64 from a float64 model)
    losses_N: Tensor  # mean token loss in nats


@dataclass(frozen=True)
class Directions:
    """P = M grad f in every captured layer, packed like the weights."""

    layers: Mapping[int, LayerDirection]


def make_directions(
    model: GPTNeoXForCausalLM, blocks: BlockTensors, subspace: Subspace, units: Units
) -> Directions:
    """Packs P, given block by block [H, I, J], for the layers that `units` need."""
    return Directions({at: pack_direction(model, at, blocks, subspace.bias) for at in units.layers})


def batches(sample_ids: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """The ids in order, `batch_size` at a time; the last batch may be shorter."""
    for start in range(0, len(sample_ids), batch_size):
        yield sample_ids[start : start + batch_size]


def score_batch(
    model: GPTNeoXForCausalLM, tokens_BS: Tensor, directions: Directions, units: Units
) -> tuple[Tensor, Tensor]:
    """Token-level influence of one batch, [B, T, U], and its losses, [B].

    The sum over T is the samples' score. Position t gathers what the weights see at t: the query
    that asks there, the key and value that are read there, and the output that is written there.
    """
    captured = capture(model, tokens_BS, units.layers)
    products = [token_products(captured.layers[at], directions.layers[at]) for at in units.layers]
    products_BTLH = torch.stack(products, dim=2)
    influence_RU = -units.combine(products_BTLH.flatten(0, 1))
    return influence_RU.unflatten(0, products_BTLH.shape[:2]), captured.losses_B


def score_samples(
    model: GPTNeoXForCausalLM,
    rows: Rows,
    sample_ids: np.ndarray,
    directions: Directions,
    units: Units,
    batch_size: int = 32,
) -> SampleScores:
    """Score of every sample for every unit, [N, U], and its loss, [N].

    One forward and backward pass for each batch, whatever the number of units. Memory does not
    grow with N but for the result. Runs on the model's device in the model's precision.
    """
    dtype = model.dtype
    values = torch.empty(len(sample_ids), len(units.names), dtype=dtype)
    losses = torch.empty(len(sample_ids), dtype=dtype)
    done = 0
    for ids in batches(sample_ids, batch_size):
        influence_BTU, losses_B = score_batch(model, rows(ids), directions, units)
        here = slice(done, done + len(ids))
        values[here], losses[here] = influence_BTU.sum(1).cpu(), losses_B.cpu()
        done += len(ids)
    return SampleScores(values, losses)
