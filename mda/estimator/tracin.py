"""TracIn: gradient dot products along the checkpoints of the run itself.

    score(z) = - sum_k eta_k <grad L(z; theta_k), M_k grad f(theta_k)>

(Pruthi et al. 2020, arXiv 2002.08484, equation 2 with the probe in place of a test loss), with the
learning rate eta_k or 1, and M_k the identity or Adam's step sizes. With one checkpoint and eta = 1
it is the plain gradient dot product.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import GPTNeoXForCausalLM

from mda.estimator.score import Rows, SampleScores, make_directions, score_samples
from mda.model.head_layout import block_bias, block_weight, model_shape
from mda.unit.subspace import BlockId, BlockTensors, Subspace, Units

ATTENTION = "gpt_neox.layers.{layer}.attention."


def adam_step_sizes(
    model: GPTNeoXForCausalLM,
    second_moments: Mapping[str, Tensor],
    layers: Sequence[int],
    subspace: Subspace,
    eps: float = 1e-8,
) -> dict[BlockId, Tensor]:
    """1 / (sqrt(v) + eps) of every block, [H, I, J]: what Adam multiplies a gradient with.

    `second_moments` is the bias-corrected v = exp_avg_sq / (1 - beta2^step) by parameter name.
    Raises KeyError naming a parameter that is missing.
    """
    n_heads = model_shape(model).n_heads
    sizes = {}
    for at in subspace.ids(layers):
        prefix = ATTENTION.format(layer=at.layer)
        qkv = second_moments[f"{prefix}query_key_value.weight"]
        dense = second_moments[f"{prefix}dense.weight"]
        v_HIJ = block_weight(qkv, dense, at.block, n_heads)
        if subspace.bias and at.block != "o":
            bias = block_bias(second_moments[f"{prefix}query_key_value.bias"], at.block, n_heads)
            v_HIJ = torch.cat((v_HIJ, bias), dim=1)
        sizes[at] = 1 / (v_HIJ.sqrt() + eps)
    return sizes


def directions(
    gradients: BlockTensors, weight: float = 1.0, step_sizes: BlockTensors | None = None
) -> dict[BlockId, Tensor]:
    """P = eta M grad f block by block; without `step_sizes`, M is the identity."""
    if step_sizes is None:
        return {at: weight * gradient for at, gradient in gradients.items()}
    return {at: weight * step_sizes[at].to(g) * g for at, g in gradients.items()}


def score_checkpoints(
    checkpoints: Iterable[tuple[GPTNeoXForCausalLM, BlockTensors]],
    rows: Rows,
    sample_ids: np.ndarray,
    subspace: Subspace,
    units: Units,
    batch_size: int = 32,
) -> SampleScores:
    """Scores summed over checkpoints: pairs of a model and its `directions`.

    Pairs are taken one at a time, so that a generator needs to hold one model only. The losses
    are those at the last checkpoint. Raises ValueError if there is none.
    """
    total: SampleScores | None = None
    for model, blocks in checkpoints:
        packed = make_directions(model, blocks, subspace, units)
        scores = score_samples(model, rows, sample_ids, packed, units, batch_size)
        if total is not None:
            scores = SampleScores(total.values_NU + scores.values_NU, scores.losses_N)
        total = scores
    if total is None:
        raise ValueError("no checkpoint to score; accepted: one or more")
    return total
