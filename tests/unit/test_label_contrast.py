"""Neurons and SAE features that tell one class of text: the area under the curve, the contrast."""

import dataclasses

import numpy as np
import pytest
import torch
from derivatives import slope
from families import FAMILIES, LENGTH
from families import toy as make_toy
from scipy.stats import mannwhitneyu

from mda.model.architecture import architecture
from mda.sae.autoencoder import Sae
from mda.sae.hooks import Hookpoint, activations
from mda.schema import NeuronConfig, SaeFeatureConfig
from mda.unit import label_contrast
from mda.unit.kind import Materials
from mda.unit.label_contrast import LabelledText, roc_auc
from mda.unit.mlp_neuron import MlpNeurons
from mda.unit.mlp_neuron import parse as parse_neuron
from mda.unit.sae_feature import SaeFeatures
from mda.unit.sae_feature import parse as parse_feature

N_FEATURES = 20


def ties(kind, rng, shape):
    return {
        "none": rng.normal(size=shape),
        "many": rng.integers(0, 3, size=shape).astype(float),
        "mostly zero": rng.normal(size=shape).clip(0) * (rng.random(shape) < 0.2),
        "all": np.zeros(shape),
    }[kind]


@pytest.mark.parametrize("kind", ["none", "many", "mostly zero", "all"])
def test_roc_auc_is_the_mann_whitney_statistic(kind):
    rng = np.random.default_rng(0)
    activations_NU, positive = ties(kind, rng, (200, 70)), rng.random(200) < 0.3
    expected = [
        mannwhitneyu(column[positive], column[~positive]).statistic
        / (positive.sum() * (~positive).sum())
        for column in activations_NU.T
    ]
    assert roc_auc(activations_NU, positive) == pytest.approx(expected, rel=1e-12)


def test_a_perfect_a_useless_and_an_inverted_separator():
    positive = np.array([True, False, True, False, False])
    columns = np.array([[1.0, 0, 1, 0, 0], [7.0, 7, 7, 7, 7], [0.0, 1, 0, 1, 1]]).T
    assert roc_auc(columns, positive).tolist() == [1.0, 0.5, 0.0]
    shifted = np.array([[2.0, 1, 1, 0, 0]]).T  # 5 of 6 pairs in order, one of them tied
    assert roc_auc(shifted, positive)[0] == pytest.approx(5.5 / 6)


def test_weights_are_a_difference_of_means_over_all_chunks(corpus, monkeypatch):
    monkeypatch.setattr(label_contrast, "CHUNK", 4 * LENGTH)
    materials = Materials(corpus, None)
    ids = materials.metric_ids()
    text = LabelledText.draw(materials, "code", ids)
    tokens, weights = (
        torch.cat(parts) for parts in zip(*text.chunks(torch.device("cpu")), strict=True)
    )
    assert torch.equal(tokens, corpus.rows(ids)[:, :-1])
    code = torch.tensor([label == "code" for label in corpus.labels_of(ids)])
    values = torch.randn(weights.shape, dtype=torch.float64)
    expected = values[code].mean() - values[~code].mean()
    assert (values * weights).sum().item() == pytest.approx(expected.item(), rel=1e-12)


def test_metric_and_measurement_are_taken_on_different_held_out_samples(corpus):
    materials = Materials(corpus, None)
    one, other = set(materials.metric_ids()), set(materials.measurement_ids())
    assert one | other == set(corpus.held_out) and not one & other


def test_a_label_that_tells_nothing_apart_is_refused(corpus):
    materials = Materials(corpus, None)
    ids = materials.metric_ids()
    with pytest.raises(ValueError, match=r"unit\.label=xml: 0 of 15 .* of code, latex, prose"):
        LabelledText.draw(materials, "xml", ids)
    only = ids[materials.with_label(ids, "code")]
    with pytest.raises(ValueError, match=r"unit\.label=code: 5 of 5 .* of code$"):
        LabelledText.draw(materials, "code", only)


def neuron_kind(model, corpus, **settings):
    settings = NeuronConfig(name="mlp_neuron", **{"label": "code"} | settings)
    return MlpNeurons(settings, Materials(corpus, architecture(model)))


def neurons(model, tokens, layer):
    """Activations of all neurons of a layer, read by a hook of the test."""
    at = model.get_submodule(architecture(model).layers_path)[layer]
    down = getattr(at.mlp, "dense_4h_to_h", None) or at.mlp.down_proj
    found = []
    handle = down.register_forward_pre_hook(lambda _m, args: found.append(args[0]))
    with torch.no_grad():
        model(tokens[:, :-1])
    handle.remove()
    return found[0]


@pytest.mark.parametrize("case", ["neox", "llama groups of 3", "olmo2"])
def test_metric_and_measurement_of_neurons_are_their_definitions(case, corpus, monkeypatch):
    monkeypatch.setattr(label_contrast, "CHUNK", 4 * LENGTH)
    model = make_toy(case)
    kind = neuron_kind(model, corpus)
    units = kind.units([])
    assert [unit.name for unit in units][:3] == ["L0N0", "L0N1", "L0N2"]
    ranking, values = kind.ranking(model), kind.measurements(model, units)
    assert list(ranking) == [unit.name for unit in units]
    metric_ids, measured_ids = corpus.held_out[::2], corpus.held_out[1::2]
    for unit, value in zip(units, values.tolist(), strict=True):
        layer, neuron = parse_neuron(unit.name)
        on_metric, on_measured = (
            neurons(model, corpus.rows(ids), layer)[:, :, neuron]
            for ids in (metric_ids, measured_ids)
        )
        code = np.array(corpus.labels_of(metric_ids)) == "code"
        positive = np.repeat(code, on_metric.shape[1])
        flat = on_metric.flatten().float().numpy()
        expected = mannwhitneyu(flat[positive], flat[~positive]).statistic
        expected /= positive.sum() * (~positive).sum()
        assert ranking[unit.name] == pytest.approx(expected, rel=1e-9)
        code = torch.tensor([label == "code" for label in corpus.labels_of(measured_ids)])
        difference = on_measured[code].mean() - on_measured[~code].mean()
        assert value == pytest.approx(difference.item(), rel=1e-9, abs=1e-12)
    assert kind.metrics(model, ["L1N3", "L0N2"]) == pytest.approx(
        {name: ranking[name] for name in ("L1N3", "L0N2")}
    )


@pytest.mark.parametrize("case", FAMILIES)
def test_gradients_of_neurons_equal_finite_differences(case, corpus, monkeypatch):
    """Own weights and biases; and a neuron's row of the output matrix does not move it."""
    monkeypatch.setattr(label_contrast, "CHUNK", 8 * LENGTH)  # fifteen rows in two chunks
    model = make_toy(case)
    kind = neuron_kind(model, corpus, biases=True)
    units = [unit for unit in kind.units([]) if unit.name in ("L0N0", "L0N10", "L1N5")]
    gradients = kind.gradients(model, units)
    assert {block.name for block in gradients} == {"L0.neurons.in", "L1.neurons.in"}
    for unit in units:
        (block, row), (output, output_row) = unit.parts
        assert gradients[block].shape == block.shape
        measure = lambda unit=unit: kind.measurements(model, [unit])[0].item()  # noqa: E731
        norm = gradients[block][row].norm().item()
        relu = model.config.to_dict().get("hidden_act") == "relu"  # no kink within the step
        step = 1e-6 if relu else 1e-4
        numeric = slope(model, block, row, gradients[block][row] / norm, measure, step)
        assert norm > 1e-6 and numeric == pytest.approx(norm, rel=1e-6), unit
        away = torch.ones(output.shape[1:], dtype=torch.float64)
        assert slope(model, output, output_row, away, measure, step=1.0) == pytest.approx(
            0, abs=1e-12
        )


def test_layers_restrict_the_search_and_biases_the_blocks(corpus):
    model = make_toy("neox")
    kind = neuron_kind(model, corpus, layers=[1], biases=False)
    assert {unit.name[:2] for unit in kind.units([])} == {"L1"}
    assert set(kind.ranking(model)) == {unit.name for unit in kind.units([])}
    assert [part.block.shape for part in kind.units([])[0].parts] == [(11, 24, 1), (11, 1, 24)]


def make_sae(hook, d_model, kind="relu", seed=5):
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    extra = {"k": 6} if kind == "topk" else {}
    if kind == "jumprelu":
        extra["threshold_F"] = drawn(N_FEATURES).abs() / 4
    return Sae(
        kind,
        hook,
        W_enc_FD=drawn(N_FEATURES, d_model) / d_model**0.5,
        b_enc_F=drawn(N_FEATURES) / 4,
        W_dec_FD=drawn(N_FEATURES, d_model),
        b_dec_D=drawn(d_model) / 4,
        centred=True,
        **extra,
    )


def feature_kind(model, corpus, sae, **settings):
    settings = SaeFeatureConfig(name="sae_feature", **{"label": "code", "biases": True} | settings)
    return SaeFeatures(settings, Materials(corpus, architecture(model), sae))


HOOKS = {
    "resid_post": (Hookpoint("resid_post", 1), "L1"),
    "resid_pre": (Hookpoint("resid_pre", 1), "L0"),
    "attn_out": (Hookpoint("attn_out", 0), "L0"),
    "mlp_out": (Hookpoint("mlp_out", 1), "L1"),
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(
    ("case", "sae_kind"),
    [
        ("neox", "relu"),
        ("neox sequential", "topk"),
        ("llama biased", "jumprelu"),
        ("olmo2", "topk"),
    ],
)
def test_gradients_of_sae_features_equal_finite_differences(
    case, sae_kind, hook, corpus, monkeypatch
):
    monkeypatch.setattr(label_contrast, "CHUNK", 8 * LENGTH)
    model = make_toy(case)
    at, layer = HOOKS[hook]
    kind = feature_kind(model, corpus, make_sae(at, model.config.hidden_size, sae_kind))
    units = kind.units([f"{layer}F3", f"{layer}F17", f"{layer}F8"])
    gradients = kind.gradients(model, units)
    written = {"attn_out": ["attn"], "mlp_out": ["mlp"]}.get(hook, ["attn", "mlp"])
    assert {block.name.split(".")[0] for block in gradients} == {layer}
    assert sorted({block.name.split(".")[1] for block in gradients}) == written
    for unit in units[:2]:
        for block, row in unit.parts:
            gradient = gradients[block][row]
            norm = gradient.norm().item()
            numeric = slope(
                model,
                block,
                0,
                gradient / norm,
                lambda unit=unit: kind.measurements(model, [unit])[0].item(),
                step=1e-6,  # few positions whose feature opens or closes within the step
            )
            assert norm > 1e-6 and numeric == pytest.approx(norm, rel=1e-6), (unit, block)


@pytest.mark.parametrize("hook", HOOKS)
def test_metric_and_measurement_of_features_are_their_definitions(hook, corpus):
    model = make_toy("llama")
    at, layer = HOOKS[hook]
    sae = make_sae(at, 24, "topk")
    kind = feature_kind(model, corpus, sae)
    ranking = kind.ranking(model)
    assert list(ranking) == [f"{layer}F{i}" for i in range(N_FEATURES)]
    units = kind.units(list(ranking))
    values = kind.measurements(model, units)
    metric_ids, measured_ids = corpus.held_out[::2], corpus.held_out[1::2]
    with torch.no_grad():
        on_metric, on_measured = (
            sae.encode(activations(model, corpus.rows(ids)[:, :-1], at, architecture(model)))
            for ids in (metric_ids, measured_ids)
        )
    code = np.repeat(np.array(corpus.labels_of(metric_ids)) == "code", on_metric.shape[1])
    flat = on_metric.flatten(0, 1).float().numpy()
    expected = roc_auc(flat, code)
    assert list(ranking.values()) == pytest.approx(expected.tolist(), rel=1e-9)
    assert expected.std() > 0.01
    code = torch.tensor([label == "code" for label in corpus.labels_of(measured_ids)])
    means = on_measured[code].mean((0, 1)) - on_measured[~code].mean((0, 1))
    torch.testing.assert_close(values, means)
    assert kind.metrics(model, [f"{layer}F7"]) == pytest.approx({f"{layer}F7": expected[7]})


@pytest.mark.parametrize("kept", [1, 9 * 15 * 3, 2**20])
def test_a_metric_is_the_same_however_few_activations_are_held(kept, corpus, monkeypatch):
    """One unit at a time, three of them, all: of 15 rows of 9 tokens."""
    monkeypatch.setattr(label_contrast, "CHUNK", 4 * LENGTH)
    model = make_toy("llama")
    sae = make_sae(Hookpoint("resid_post", 1), 24)
    for kind in (feature_kind(model, corpus, sae), neuron_kind(model, corpus)):
        monkeypatch.setattr(label_contrast, "KEPT", 2**20)
        expected, widths = kind.ranking(model), []
        monkeypatch.setattr(label_contrast, "KEPT", kept)

        def seen(values, positive, widths=widths):
            widths.append(values.size)
            return roc_auc(values, positive)

        with monkeypatch.context() as patched:
            patched.setattr(label_contrast, "roc_auc", seen)
            assert kind.ranking(model) == expected
        assert max(widths) <= max(kept, 9 * 15)


def test_long_sequences_go_through_the_model_a_few_at_a_time(corpus):
    long = dataclasses.replace(corpus, tokens=np.tile(corpus.tokens, (1, 150)))
    text = LabelledText.draw(Materials(long, None), "code", long.held_out)
    sizes = [tokens.shape for tokens, _ in text.chunks(torch.device("cpu"))]
    assert sizes == [(2, 1499)] * 15


def test_owners_choose_the_modules_of_the_layer(corpus):
    model = make_toy("llama")
    sae = make_sae(Hookpoint("resid_post", 1), 24)
    kind = feature_kind(model, corpus, sae, owners=["mlp"])
    assert [str(block) for block in kind.blocks] == ["L1.mlp.in", "L1.mlp.out"]
    with pytest.raises(ValueError, match=r"L0\.attn_out is written by attention alone"):
        sae = make_sae(Hookpoint("attn_out", 0), 24)
        feature_kind(model, corpus, sae, owners=["mlp"])
    with pytest.raises(ValueError, match=r"L0\.resid_pre reads the embedding"):
        feature_kind(model, corpus, make_sae(Hookpoint("resid_pre", 0), 24))


def test_names_are_parsed_or_refused():
    assert parse_neuron("L2N417") == (2, 417) and parse_feature("L3F120") == (3, 120)
    for parse, word in ((parse_neuron, "neuron"), (parse_feature, "SAE feature")):
        for name in ("L3H1", "L3", "", "L-1N2", "L1N2x"):
            with pytest.raises(ValueError, match=f"names no {word}"):
                parse(name)
