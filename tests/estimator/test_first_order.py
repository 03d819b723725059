"""The truth that scores claim: what one small step on a sample does to the probe, sign included.

Everything on the other side of the comparison is made without this project's capture pass: the
sample's gradient by plain autograd through transformers' loss, the probe before and after. In
float64 a step of relative size 1e-5 leaves a second-order error of about 1e-5 and a rounding
error of about 1e-16 / 1e-7, so 1e-3 is asked of the predicted change as a whole.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mda.model.head_layout import attention, block_weight
from mda.unit.probe import draw_probe, probe_gradients, probe_values
from mda.unit.subspace import BlockId, Subspace, mechanism, single_head

from mda.estimator import tracin
from mda.estimator.ekfac import Labels, fit_curvature
from mda.estimator.score import make_directions, score_samples
from mda.types import HeadId

N = 50
UNIFORM = torch.full((512,), 1 / 512, dtype=torch.float64)
HEADS = {"copy": [HeadId(2, 1)], "previous_token": [HeadId(1, 3)]}
PAIR = [HeadId(1, 3), HeadId(3, 0)]
SUBSPACE = Subspace()


def probe_of(target: str):
    return draw_probe(target, UNIFORM, n=4, length=12, repeats=2, seed=1)


def block_of(model, at: BlockId):
    module = attention(model, at.layer)
    return block_weight(module.query_key_value.weight, module.dense.weight, at.block, 4)


def sample_gradient(model, row, layers):
    """Gradient of one sequence's mean token loss, block by block, by plain autograd."""
    model.zero_grad()
    logits = model(row[None, :-1]).logits[0]
    F.cross_entropy(logits, row[1:]).backward()
    gradients = {}
    for at in SUBSPACE.ids(layers):
        module = attention(model, at.layer)
        qkv, dense = module.query_key_value.weight.grad, module.dense.weight.grad
        gradients[at] = block_weight(qkv, dense, at.block, 4).clone()
    model.zero_grad()
    return gradients


def measured_changes(model, rows, heads, probe, value, precondition):
    """Change of the probe, per unit step, when the heads step down each sample's gradient."""
    layers = sorted({head.layer for head in heads})
    before, changes = value(probe_values(model, probe)), []
    for row in rows:
        step = precondition(sample_gradient(model, row, layers))
        norm = torch.stack([s.square().sum() for s in step.values()]).sum().sqrt().item()
        size = 1e-4 / norm
        with torch.no_grad():
            for sign in (-1, 1):
                if sign == 1:
                    changes.append((value(probe_values(model, probe)) - before) / size)
                for at, step_HIJ in step.items():
                    for head in heads:
                        if head.layer == at.layer:
                            block_of(model, at)[head.head].add_(sign * size * step_HIJ[head.head])
    return np.array(changes)


@pytest.fixture(scope="module")
def curvature(nano):
    model, rows = nano
    ids = np.arange(32)
    return fit_curvature(model, lambda i: rows[i], ids, [1, 2, 3], SUBSPACE, Labels())


@pytest.mark.parametrize("estimator", ["dot", "adam", "ekfac"])
@pytest.mark.parametrize("unit", ["copy", "previous_token", "copy together", "previous together"])
def test_one_small_step_moves_the_probe_as_predicted(nano, curvature, unit, estimator):
    model, rows = nano
    rows = rows[:N] if unit in HEADS and estimator != "adam" else rows[:8]
    probe = probe_of("copy" if unit.startswith("copy") else "previous_token")
    heads = HEADS.get(unit, PAIR)
    units = single_head(heads[0]) if unit in HEADS else mechanism(heads)
    gradients = probe_gradients(
        model, probe, units.layers, SUBSPACE, together=() if unit in HEADS else heads
    ).blocks

    sizes = None
    if estimator == "adam":
        generator = torch.Generator().manual_seed(7)
        second_moments = {
            name: torch.rand(p.shape, generator=generator, dtype=p.dtype) + 0.1
            for name, p in model.named_parameters()
        }
        sizes = tracin.adam_step_sizes(model, second_moments, units.layers, SUBSPACE)
    precondition = {
        "dot": lambda g: g,
        "adam": lambda g: {at: v * (sizes or {})[at] for at, v in g.items()},
        "ekfac": lambda g: curvature.inverse_times(g, 0.1),
    }[estimator]
    packed = make_directions(model, precondition(gradients), SUBSPACE, units)
    ids = np.arange(len(rows))
    predicted = score_samples(model, lambda i: rows[i], ids, packed, units).values_NU[:, 0].numpy()

    def value(values_LH):
        return np.mean([values_LH[h.layer, h.head].item() for h in heads])

    measured = measured_changes(model, rows, heads, probe, value, precondition)
    assert np.corrcoef(predicted, measured)[0, 1] > 0.99
    assert (np.sign(predicted) == np.sign(measured)).mean() > 0.95
    assert np.linalg.norm(predicted - measured) < 1e-3 * np.linalg.norm(measured)
    assert np.linalg.norm(measured) > 0 and len({*np.sign(measured)}) == 2
