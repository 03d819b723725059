"""Scores of a small model as the first version of this code gave them.

`recorded_scores.json` was written by the code of commit 52424d0, which knew attention heads of
GPT-NeoX alone, with the model, rows, tokens and seeds below, in float64 on one thread.
"""

import json
from pathlib import Path

import pytest
import torch
from nano_run import N_VOCAB

from mda.estimator.ekfac import Labels, fit_curvature
from mda.estimator.influence import preconditioned
from mda.estimator.score import score_samples
from mda.model.architecture import architecture
from mda.types import HeadId, Part, Unit
from mda.unit.attention_head import OwnAttention
from mda.unit.blocks import Directions
from mda.unit.measurement import attention_tokens, copy_objective

RECORDED = json.loads(Path(__file__).with_name("recorded_scores.json").read_text("utf-8"))
UNIFORM = torch.full((N_VOCAB,), 1 / N_VOCAB, dtype=torch.float64)
PROBE = {"n": 4, "length": 12, "repeats": 2, "seed": 1}


def gradients(model, target):
    arch = architecture(model)
    blocks = {at: arch.head_blocks(at) for at in range(arch.n_layers)}
    if target == "copy":
        every = [block for of_layer in blocks.values() for block in of_layer.values()]
        return copy_objective(UNIFORM, **PROBE).gradients(model, every)
    own = OwnAttention(arch, attention_tokens(UNIFORM, **PROBE))
    return own.own_gradients(model, {at: of_layer["qk"] for at, of_layer in blocks.items()})


def scores(model, rows, blocks):
    arch = architecture(model)
    units = [
        Unit(str(HeadId(at, head)), tuple(Part(b, head) for b in arch.head_blocks(at).values()))
        for at in range(arch.n_layers)
        for head in range(arch.n_heads)
    ]
    assert [unit.name for unit in units] == RECORDED["units"]
    directions = Directions.of(units, blocks)
    return score_samples(model, lambda i: rows[i], RECORDED["sample_ids"], directions)


def agrees(found, name):
    recorded = torch.tensor(RECORDED["scores"][name], dtype=torch.float64)
    assert recorded.abs().min() > 0
    torch.testing.assert_close(found, recorded, rtol=1e-5, atol=1e-5 * recorded.abs().mean().item())


@pytest.mark.parametrize("target", ["copy", "previous_token"])
def test_dot_and_tracin_give_the_recorded_scores(nano_models, nano, target):
    rows, at = nano[1], {step: gradients(m, target) for step, m in nano_models.items()}
    dot = scores(nano_models[60], rows, at[60])
    agrees(dot.values_NU, f"dot {target}")
    losses = torch.tensor(RECORDED["losses"], dtype=torch.float64)
    torch.testing.assert_close(dot.losses_N, losses, rtol=1e-7, atol=0)
    parts = [
        scores(nano_models[step], rows, preconditioned(at[step], eta)).values_NU
        for step, eta in ((30, 2e-3), (60, 1e-3))
    ]
    agrees(parts[0] + parts[1], f"tracin {target}")


@pytest.mark.parametrize("labels", ["sampled", "empirical"])
@pytest.mark.parametrize("target", ["copy", "previous_token"])
def test_ekfac_gives_the_recorded_scores(nano, target, labels):
    model, rows = nano
    found = gradients(model, target)
    fit_on = list(range(8, 40))
    curvature = fit_curvature(model, lambda i: rows[i], fit_on, list(found), Labels(labels, 5))
    blocks = curvature.inverse_times(found, 0.1)
    agrees(scores(model, rows, blocks).values_NU, f"ekfac {labels} {target}")
