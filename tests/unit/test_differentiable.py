"""What `unrolled` differentiates is the measurement, with its gradient and a second derivative."""

import pytest
import torch
from derivatives import parameter_gradients, slope
from families import toy as make_toy

from mda.model.architecture import architecture
from mda.model.plain_attention import PlainAttention
from mda.sae.autoencoder import Sae
from mda.sae.hooks import Hookpoint
from mda.schema import HeadConfig, ModuleConfig, NeuronConfig, ProbeConfig, SaeFeatureConfig
from mda.unit import label_contrast, measurement
from mda.unit.attention_head import AttentionHeads
from mda.unit.blocks import gather
from mda.unit.kind import Materials
from mda.unit.mlp_neuron import MlpNeurons
from mda.unit.module import Modules
from mda.unit.sae_feature import SaeFeatures


def autoencoder():
    """Twelve features of what the second layer leaves in a stream of width 24."""
    generator = torch.Generator().manual_seed(5)
    parts = [
        torch.randn(shape, generator=generator, dtype=torch.float64) / 4
        for shape in ((12, 24), (12,), (12, 24), (24,))
    ]
    return Sae("relu", Hookpoint("resid_post", 1), *parts, centred=True)


LABEL = {"label": "code", "biases": True}
PROBES = {
    "label": ProbeConfig(target="label"),
    "copy": ProbeConfig(n_sequences=3, length=6),
    "own": ProbeConfig(target="previous_token", n_sequences=3, length=6, repeats=1),
}
KINDS = {
    "neuron": (MlpNeurons, NeuronConfig(name="mlp_neuron", **LABEL), "L1N5"),
    "feature": (SaeFeatures, SaeFeatureConfig(name="sae_feature", **LABEL), "L1F3"),
    "module, label": (Modules, ModuleConfig(probe=PROBES["label"], **LABEL), "L0.mlp"),
    "head, copy": (AttentionHeads, HeadConfig(probe=PROBES["copy"], biases=True), "L1H1"),
    "head, own attention": (AttentionHeads, HeadConfig(probe=PROBES["own"], biases=True), "L1H1"),
    "module, copy": (Modules, ModuleConfig(probe=PROBES["copy"], biases=True), "L0.attn"),
}


@pytest.mark.parametrize("case", ["neox", "llama biased"])
@pytest.mark.parametrize("name", KINDS)
def test_what_is_differentiated_is_the_measurement(name, case, corpus, monkeypatch):
    monkeypatch.setattr(label_contrast, "CHUNK", 8)  # fifteen rows in two chunks
    monkeypatch.setattr(measurement, "CHUNK", 2)
    model = make_toy(case)
    make, settings, chosen = KINDS[name]
    kind = make(settings, Materials(corpus, architecture(model), autoencoder()))
    (unit,) = [one for one in kind.units([chosen]) if one.name == chosen]
    with PlainAttention():
        value = kind.differentiable(chosen, [chosen], "measurement")(model)
    (expected,) = kind.measurements(model, [unit]).tolist()
    assert abs(expected) > 1e-3 and value.item() == pytest.approx(expected, rel=1e-12)

    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(
        value, parameters, create_graph=True, allow_unused=True, materialize_grads=True
    )
    first, gradients = dict(zip(names, found, strict=True)), kind.gradients(model, [unit])
    for block, row in unit.parts:
        ours = gather(block, first)[row]
        theirs = gradients[block][row] if block in gradients else torch.zeros_like(ours)
        torch.testing.assert_close(ours, theirs)

    (block, row), *_ = unit.parts
    direction = gradients[block][row] / gradients[block][row].norm()
    along = (gather(block, first)[row] * direction).sum()
    second = (gather(block, parameter_gradients(model, along))[row] * direction).sum().item()

    @torch.enable_grad()
    def slope_along():
        return (kind.gradients(model, [unit])[block][row] * direction).sum().item()

    numeric = slope(model, block, row, direction, slope_along, step=1e-5)
    assert abs(numeric) > 1e-6 and second == pytest.approx(numeric, rel=1e-5)


@pytest.mark.parametrize("case", ["neox", "llama biased"])
@pytest.mark.parametrize("metric", ["prefix_matching", "previous_token"])
def test_the_gradient_of_a_heads_metric_is_its_slope(metric, case, corpus):
    """In float64, by finite differences of what the curve shows, in every block of two heads."""
    model = make_toy(case)
    settings = HeadConfig(metric=metric, probe=PROBES["copy"], biases=True)
    kind = AttentionHeads(settings, Materials(corpus, architecture(model)))
    units = {unit.name: unit for unit in kind.units(["L1H1"])}
    gradients = kind.gradients(model, list(units.values()), "metric")
    for name in ("L0H1", "L1H0"):
        value = kind.differentiable(name, [name])
        assert 0 < value(model).item() < 1, "attention, where the measurement is a log-probability"
        for block, row in units[name].parts:
            direction = torch.randn(
                block.shape[1:], generator=torch.Generator().manual_seed(3), dtype=torch.float64
            )
            direction /= direction.norm()
            numeric = slope(model, block, row, direction, lambda: value(model).item())  # noqa: B023
            own = gradients[block][row] if block in gradients else torch.zeros_like(direction)
            assert (own * direction).sum().item() == pytest.approx(numeric, rel=1e-6, abs=1e-11)
        assert any(block in gradients for block, _ in units[name].parts)
