"""A unit that no gradient reaches gets scores of zero, never NaN, which choose nothing."""

import numpy as np
import pytest
import torch
from families import N_LAYERS
from families import toy as make_toy

from mda.estimator.ekfac import Fit, fit_curvature
from mda.intervention.select import choose
from mda.model.architecture import architecture
from mda.schema import HeadConfig, NeuronConfig, ProbeConfig
from mda.types import Scores
from mda.unit.attention_head import AttentionHeads
from mda.unit.blocks import Directions
from mda.unit.capture import capture, modules_of
from mda.unit.kind import Materials
from mda.unit.mlp_neuron import MlpNeurons


def influence(model, corpus, kind, units):
    """EK-FAC scores of the corpus' first samples, [N, U]."""
    gradients, ids = kind.gradients(model, units), np.arange(0, 60, 2)
    curvature = fit_curvature(model, corpus.rows, ids, Fit(list(gradients), batch_size=8))
    directions = Directions.of(units, curvature.inverse_times(gradients, 0.1))
    captured = capture(model, corpus.rows(ids), modules_of(directions.blocks))
    values = directions.sequence_influence(captured).numpy()
    steps = np.arange(len(ids))
    names = tuple(unit.name for unit in units)
    return Scores(ids, steps, values, names, captured.losses_B.numpy())


def check(scores, dead):
    assert np.isfinite(scores.values).all()
    for unit in scores.units:
        assert (np.abs(scores.of(unit)).max() == 0) == (unit == dead), unit
    with pytest.raises(ValueError, match=f"scores of {dead} are 0"):
        choose(scores, dead, "top", fraction=0.1)


def test_a_dead_neuron(corpus):
    model = make_toy("neox", hidden_act="relu")
    for layer in model.get_submodule(
        "gpt_neox.layers"
    ).children():  # all but L1N4 are open somewhere
        layer.mlp.dense_h_to_4h.bias.data.fill_(1.0)
    model.gpt_neox.layers[1].mlp.dense_h_to_4h.bias.data[4] = -1e3
    settings = NeuronConfig(name="mlp_neuron", label="code")
    kind = MlpNeurons(settings, Materials(corpus, architecture(model)))
    assert kind.ranking(model)["L1N4"] == 0.5
    units = kind.units([])
    assert kind.measurements(model, units)[-7].item() == 0 and units[-7].name == "L1N4"
    check(influence(model, corpus, kind, units), "L1N4")


@pytest.mark.parametrize("case", ["neox", "llama"])
def test_a_dead_head(case, corpus):
    """It has no value and writes nothing: no gradient in any of its own parameters."""
    model = make_toy(case)
    probe = ProbeConfig(n_sequences=3, length=6)
    kind = AttentionHeads(HeadConfig(probe=probe), Materials(corpus, architecture(model)))
    if case == "neox":
        attention = model.gpt_neox.layers[0].attention
        attention.query_key_value.weight.data[40:48] = 0  # head 1: q 24.., k 32.., v 40..48
        attention.query_key_value.bias.data[40:48] = 0
        attention.dense.weight.data[:, 8:16] = 0
    else:
        attention = model.model.layers[0].self_attn
        attention.v_proj.weight.data[4:8] = 0
        attention.o_proj.weight.data[:, 4:8] = 0
    units = kind.units([])
    assert len(units) == N_LAYERS * architecture(model).n_heads
    check(influence(model, corpus, kind, units), "L0H1")


def test_a_layer_without_any_gradient_is_finite_too(corpus):
    """No value in a whole layer: Lambda is zero in every block of it."""
    model = make_toy("llama")
    model.model.layers[1].self_attn.v_proj.weight.data.zero_()
    model.model.layers[1].self_attn.o_proj.weight.data.zero_()
    kind = AttentionHeads(
        HeadConfig(probe=ProbeConfig(n_sequences=3, length=6)),
        Materials(corpus, architecture(model)),
    )
    scores = influence(model, corpus, kind, kind.units([]))
    assert np.isfinite(scores.values).all()
    dead = [name for name in scores.units if not scores.of(name).any()]
    assert dead == [f"L1H{head}" for head in range(6)]
    assert torch.isfinite(torch.from_numpy(scores.losses)).all()
