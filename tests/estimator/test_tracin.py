"""TracIn is a sum of gradient dot products; random scores know nothing."""

import copy

import numpy as np
import pytest
import torch
from mda.estimator.random_scores import random_scores
from mda.unit.gradients import capture
from mda.unit.probe import draw_probe, probe_gradients
from mda.unit.subspace import Subspace, all_heads, block_gradients

from mda.estimator import tracin

LAYERS, SUBSPACE, UNITS = [0, 1], Subspace(), all_heads(2, 2)
PROBE = draw_probe("copy", torch.full((40,), 1 / 40, dtype=torch.float64), n=3, length=5, seed=0)


def plain_dot_products(model, table):
    probe = probe_gradients(model, PROBE, LAYERS, SUBSPACE).blocks
    rows = []
    for row in table.tokens:
        layers = capture(model, row[None], LAYERS).layers
        per_layer = [
            sum(
                (probe[at] * block_gradients(layers[layer], at.block)).sum((1, 2))
                for at in SUBSPACE.ids([layer])
            )
            for layer in LAYERS
        ]
        rows.append(torch.cat(per_layer))
    return torch.stack(rows)


def checkpoint(model, weight=1.0):
    probe = probe_gradients(model, PROBE, LAYERS, SUBSPACE).blocks
    return model, tracin.directions(probe, weight)


def score(checkpoints, table):
    return tracin.score_checkpoints(checkpoints, table.rows, table.ids, SUBSPACE, UNITS, 4)


def test_one_checkpoint_is_minus_the_gradient_dot_product(toy, table):
    scores = score([checkpoint(toy)], table)
    torch.testing.assert_close(scores.values_NU, -plain_dot_products(toy, table))


def test_checkpoints_are_summed_with_their_learning_rates(toy, table):
    later = copy.deepcopy(toy)
    with torch.no_grad():
        for parameter in later.parameters():
            parameter.mul_(1.1)
    scores = score((checkpoint(m, w) for m, w in ((toy, 0.3), (later, 0.1))), table)
    expected = -0.3 * plain_dot_products(toy, table) - 0.1 * plain_dot_products(later, table)
    torch.testing.assert_close(scores.values_NU, expected)
    torch.testing.assert_close(scores.losses_N, capture(later, table.tokens, [0]).losses_B)


def test_no_checkpoint_is_refused(table):
    with pytest.raises(ValueError, match="no checkpoint"):
        score([], table)


def test_adam_step_sizes_follow_the_layout_of_the_weights(toy):
    moments = {name: p.detach().square() for name, p in toy.named_parameters()}
    sizes = tracin.adam_step_sizes(toy, moments, [1], Subspace(bias=True), eps=0.0)
    module = toy.gpt_neox.layers[1].attention
    query_of_head_1 = module.query_key_value.weight[18:24].T  # K = 6: head 1 begins at row 18
    torch.testing.assert_close(sizes[(1, "qk")][1, :12, :6], 1 / query_of_head_1.abs())
    torch.testing.assert_close(
        sizes[(1, "qk")][1, 12, :6], 1 / module.query_key_value.bias[18:24].abs()
    )
    torch.testing.assert_close(sizes[(1, "o")][1], 1 / module.dense.weight[:, 6:12].T.abs())


def test_random_scores_belong_to_seed_and_sample():
    ids = np.array([5, 9, 2])
    scores = random_scores(ids, 4, seed=0)
    assert torch.equal(random_scores(ids[1:], 4, seed=0), scores[1:])
    assert not torch.equal(random_scores(ids, 4, seed=1), scores)
    many = random_scores(np.arange(4000), 1, seed=0)
    assert abs(many.mean()) < 4 / 4000**0.5  # four standard errors
    assert random_scores(ids[:0], 4, seed=0).shape == (0, 4)
