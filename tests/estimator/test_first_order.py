"""The truth that scores claim: what one small step on a sample does to the measurement, signed.

Everything on the other side of the comparison is made without this project's capture pass: the
sample's gradient by plain autograd through transformers' loss, the unit's parameters by slices
written out by hand, the measurement before and after. In float64 a step of size 1e-4 leaves a
second-order error of about 1e-5 and a rounding error of about 1e-16 / 1e-7, so 1e-3 is asked of
the predicted change as a whole.
"""

import numpy as np
import pytest
import torch
from in_memory import corpus_of, materials
from nano_run import BATCH, N_VOCAB, ROWS, STEPS
from plain_gradients import own, sample_gradient, step

from mda.estimator.ekfac import Fit, fit_curvature
from mda.estimator.influence import adam_step_sizes, preconditioned
from mda.estimator.score import score_samples
from mda.sae.autoencoder import Sae
from mda.sae.hooks import Hookpoint
from mda.schema import HeadConfig, ModuleConfig, NeuronConfig, ProbeConfig, SaeFeatureConfig
from mda.unit.attention_head import AttentionHeads
from mda.unit.blocks import Directions
from mda.unit.mlp_neuron import MlpNeurons
from mda.unit.module import Modules
from mda.unit.sae_feature import SaeFeatures

N = 50
PAIR = ["L1H3", "L3H0"]
UNSEEN = STEPS * BATCH + np.arange(64)  # sample ids
PERIODS = ["short" if (row[:-4] == row[4:]).all() or (row[:-5] == row[5:]).all() else "long"
           for row in ROWS]  # fmt: skip


def tokens(target, **more):
    return ProbeConfig(target, n_sequences=4, length=12, distribution="uniform", seed=1, **more)


def random_sae():
    """64 features of what leaves layer 2, active at about one position in four."""
    generator = torch.Generator().manual_seed(4)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return Sae(
        kind="relu",
        hook=Hookpoint("resid_post", 2),
        W_enc_FD=random(64, 64) / 8,
        b_enc_F=0.1 * random(64) - 0.5,
        W_dec_FD=random(64, 64),
        b_dec_D=0.1 * random(64),
        centred=True,
        normalization="layer_norm",
    )


def heads(target, names, together=False):
    return AttentionHeads, HeadConfig(probe=tokens(target)), names, together


UNITS = {
    "copy": heads("copy", ["L2H1"]),
    "previous_token": heads("previous_token", ["L1H3"]),
    "second_previous_token": heads("second_previous_token", ["L1H3"]),
    "copy together": heads("copy", PAIR, True),
    "previous together": heads("previous_token", PAIR, True),
    "neuron": (MlpNeurons, NeuronConfig(label="short", layers=[1, 2]), ["L2N17"], False),
    "sae feature": (
        SaeFeatures,
        SaeFeatureConfig(label="short", biases=True),
        ["L2F9", "L2F5"],  # the first is stepped on, and is not the only row
        False,
    ),
    "module": (Modules, ModuleConfig(biases=True, probe=tokens("copy")), ["L2.mlp"], False),
    "attention": (Modules, ModuleConfig(probe=tokens("copy")), ["L1.attn"], False),
    "layer": (
        Modules,
        ModuleConfig(parts=["both"], label="short", probe=tokens("label")),
        ["L2"],
        False,
    ),
}
ALL_SAMPLES = {"copy", "previous_token", "neuron", "sae feature", "module"}  # the others: 8


@pytest.fixture(scope="module")
def corpus():
    """The rows of the nano model's training; 24 rows that nobody trains on are held out."""
    return corpus_of(ROWS, N_VOCAB, PERIODS, UNSEEN[-14:])


@pytest.fixture(scope="module")
def sample_gradients(nano, corpus):
    """Gradient of each sample's loss in all layers' parameters, by name."""
    rows = corpus.rows(UNSEEN[:N])
    found = (sample_gradient(nano, row) for row in rows)
    return [{name: g for name, g in one.items() if "layers" in name} for one in found]


def measured_changes(model, sample_gradients, unit, blocks, value, precondition):
    """Change of the measurement, per unit step, when the unit steps down each sample's gradient."""
    before, changes = value(), []
    for gradient in sample_gradients:
        steps = {}
        for block, part_row in unit.parts:
            if block not in blocks:  # the measurement does not depend on it
                continue
            owner = part_row if block.owners > 1 else 0
            alone = torch.zeros(block.shape, dtype=torch.float64)
            alone[owner] = own(model, block, owner, gradient)
            steps[block, owner] = precondition({block: alone})[block][owner]
        size = 1e-4 / sum(delta.square().sum().item() for delta in steps.values()) ** 0.5
        for sign in (-1, 1):
            if sign == 1:
                changes.append((value() - before) / size)
            for (block, owner), delta in steps.items():
                step(model, block, owner, sign * size * delta)
    return np.array(changes)


@pytest.mark.parametrize("estimator", ["dot", "adam", "ekfac"])
@pytest.mark.parametrize("name", UNITS)
def test_one_small_step_moves_the_measurement_as_predicted(
    nano, corpus, sample_gradients, name, estimator
):
    model, n = nano, N if estimator != "adam" and name in ALL_SAMPLES else 8
    make, settings, names, together = UNITS[name]
    kind = make(settings, materials(corpus, model, random_sae()))
    units = kind.units(names, together)
    place = len(units) - 1 if together else [u.name for u in units].index(names[0])
    gradients, ids = kind.gradients(model, units), UNSEEN[:n]
    own_blocks = {block for block, _ in units[place].parts} & gradients.keys()
    gradients = {block: gradients[block] for block in own_blocks}

    sizes, curvature = {}, None
    if estimator == "adam":
        generator = torch.Generator().manual_seed(7)
        second_moments = {
            parameter: torch.rand(p.shape, generator=generator, dtype=p.dtype) + 0.1
            for parameter, p in model.named_parameters()
        }
        sizes = adam_step_sizes(second_moments, gradients, eps=1e-8)
    if estimator == "ekfac":
        fit_on = UNSEEN[8:40]
        curvature = fit_curvature(model, corpus.rows, fit_on, Fit(list(gradients)))
    precondition = {
        "dot": lambda g: g,
        "adam": lambda g: preconditioned(g, 1.0, sizes),
        "ekfac": lambda g: curvature.inverse_times(g, 0.1),
    }[estimator]
    directions = Directions.of(units, precondition(gradients))
    scores = score_samples(model, corpus.rows, ids, directions).values_NU
    predicted = scores[:, place].numpy()

    unit = units[place]
    measured = measured_changes(
        model,
        sample_gradients[:n],
        unit,
        gradients,
        lambda: kind.measurements(model, [unit]).item(),
        precondition,
    )
    assert np.linalg.norm(measured) > 0 and len({*np.sign(measured)}) == 2
    assert np.corrcoef(predicted, measured)[0, 1] > 0.99
    assert (np.sign(predicted) == np.sign(measured)).mean() > 0.95
    assert np.linalg.norm(predicted - measured) < 1e-3 * np.linalg.norm(measured)
