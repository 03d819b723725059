"""Directions as units: their activation, their own parameters, their gradients, and bad files."""

import numpy as np
import pytest
import torch
from derivatives import parameter_gradients, slope
from families import toy as make_toy

from mda.model.architecture import architecture
from mda.sae.hooks import Hookpoint, activations
from mda.schema import ConfigError, DirectionConfig
from mda.unit.blocks import gather
from mda.unit.direction import StreamDirections
from mda.unit.kind import Materials
from mda.unit.label_contrast import roc_auc

WIDTH = 24
WRITTEN = {
    "resid_post": ["L1.attn.o", "L1.mlp.out"], "attn_out": ["L1.attn.o"], "mlp_out": ["L1.mlp.out"],
}  # fmt: skip


@pytest.fixture
def made(tmp_path, corpus):
    """A kind of unit from vectors."""

    def make(model, vectors, **settings):
        path = tmp_path / "vectors.npy"
        np.save(path, vectors)
        given = {"file": str(path), "layer": 1, "label": "code"} | settings
        return StreamDirections(DirectionConfig(**given), Materials(corpus, architecture(model)))

    return make


def vectors_of(n=3):
    return np.random.default_rng(3).normal(size=(n, WIDTH))


@pytest.mark.parametrize("hook", WRITTEN)
@pytest.mark.parametrize("case", ["neox", "llama biased", "olmo2", "gpt2"])
def test_its_own_parameters_are_the_output_projections_of_its_layer(case, hook, made):
    """Gradients by finite differences in them."""
    model = make_toy(case)
    vectors = np.random.default_rng(3).normal(size=(3, model.config.hidden_size))
    kind = made(model, vectors, hook=hook, biases=case == "neox")
    units = kind.units(["L1D0", "L1D2"])
    gradients = kind.gradients(model, units)
    assert sorted(block.name for block in gradients) == WRITTEN[hook]
    for unit in units:
        for block, row in unit.parts:
            own_IJ = gradients[block][row]
            numeric = slope(
                model,
                block,
                0,
                own_IJ / own_IJ.norm(),
                lambda unit=unit: kind.measurements(model, [unit])[0].item(),
            )
            assert numeric == pytest.approx(own_IJ.norm().item(), rel=1e-6)
    assert kind.gradients(model, units[1:])[block].shape[0] == 1


def test_metric_and_measurement_are_of_the_stream_along_the_normalised_vector(made, corpus):
    """The first layer's output, as transformers returns it."""
    model, vectors = make_toy("llama"), vectors_of()
    kind = made(model, vectors, layer=0)
    metric_ids, measured_ids = corpus.held_out[::2], corpus.held_out[1::2]

    def along(ids):
        with torch.no_grad():
            states = model(corpus.rows(ids)[:, :-1], output_hidden_states=True).hidden_states
        return states[1].numpy() @ (vectors / np.linalg.norm(vectors, axis=1)[:, None]).T

    def is_code(ids):
        return np.array(corpus.labels_of(ids)) == "code"

    on_metric, on_measured = along(metric_ids), along(measured_ids)
    ranking = kind.ranking(model)
    labels = np.repeat(is_code(metric_ids), on_metric.shape[1])
    expected = roc_auc(on_metric.reshape(-1, 3).astype(np.float32), labels)
    assert list(ranking) == ["L0D0", "L0D1", "L0D2"]
    assert list(ranking.values()) == pytest.approx(expected.tolist(), abs=1e-3)
    assert np.ptp(expected) > 0.01
    has = is_code(measured_ids)
    means = on_measured[has].mean((0, 1)) - on_measured[~has].mean((0, 1))
    units = kind.units(["L0D2", "L0D0"])
    assert kind.measurements(model, units).tolist() == pytest.approx([means[2], means[0]], rel=1e-9)
    scaled = made(model, 7 * vectors[1], layer=0)  # one vector, of another length
    (found,) = scaled.measurements(model, scaled.units(["L0D0"])).tolist()
    assert found == pytest.approx(means[1], rel=1e-9)


def test_the_output_of_a_module_is_read_where_it_is_asked_for(made, corpus):
    model, vectors = make_toy("neox"), vectors_of(1)
    ids = corpus.held_out[1::2]
    has = torch.from_numpy(np.array(corpus.labels_of(ids)) == "code")
    vector = torch.from_numpy(vectors[0] / np.linalg.norm(vectors[0]))
    found = set()
    for hook in WRITTEN:
        kind = made(model, vectors, hook=hook)
        with torch.no_grad():
            inputs = corpus.rows(ids)[:, :-1]
            read = activations(model, inputs, Hookpoint(hook, 1), architecture(model))
        x = read @ vector
        (value,) = kind.measurements(model, kind.units(["L1D0"])).tolist()
        assert value == pytest.approx((x[has].mean() - x[~has].mean()).item(), rel=1e-9)
        found.add(round(value, 9))
    assert len(found) == 3


def test_what_is_differentiated_is_the_measurement(made):
    model = make_toy("llama biased")
    kind = made(model, vectors_of())
    (unit,) = kind.units(["L1D2"])
    value = kind.differentiable("L1D2", ["L1D2"])(model)
    assert value.item() == pytest.approx(kind.measurements(model, [unit])[0].item(), rel=1e-12)
    ours, theirs = parameter_gradients(model, value), kind.gradients(model, [unit])
    for block, row in unit.parts:
        torch.testing.assert_close(gather(block, ours)[0], theirs[block][row])


def test_a_plan_has_as_many_units_as_will_be_found(made):
    kind = made(make_toy("neox"), vectors_of(5), k=2, locate="L1D3")
    assert [unit.name for unit in kind.units([])] == ["L1D3", "L1D0"]
    kind = made(make_toy("neox"), vectors_of(1))
    assert [unit.name for unit in kind.units([])] == ["L1D0"]


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        (np.ones((2, 3, WIDTH)), r"float64 \[2, 3, 24\] is invalid; expected a \.npy of numbers"),
        (np.array(["a"]), r"<U1 \[1\] is invalid; expected a \.npy of numbers"),
        (np.ones(0), r"float64 \[0\] is invalid; expected a \.npy"),
        (
            np.ones(WIDTH + 1),
            "vectors of 25 numbers are invalid; expected 24, the model's d_model",
        ),
        (np.eye(WIDTH)[:2] * [[1], [0]], "row 1 is zero or not finite; expected vectors with a"),
        (np.full(WIDTH, np.nan), "row 0 is zero or not finite; expected vectors with a length"),
    ],
)
def test_a_bad_file_is_refused_by_name(vectors, said, made):
    with pytest.raises(ConfigError, match=rf"^unit\.file=\S+vectors\.npy: {said}"):
        made(make_toy("neox"), vectors)


def test_what_is_no_array_is_refused(tmp_path, corpus):
    path = tmp_path / "vectors.npy"
    materials = Materials(corpus, architecture(make_toy("neox")))
    for content in (b"", b"\x93NUMPY", b"text"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"^unit\.file=\S+: .*; expected a \.npy of numbers"):
            StreamDirections(DirectionConfig(file=str(path), layer=1, label="code"), materials)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"owners": []}, r"unit\.owners=\[\] is invalid; expected attention, mlp, or both"),
        (
            {"hook": "mlp_out", "owners": ["attention"]},
            "expected mlp among them with unit.hook=mlp",
        ),
        ({"locate": "L0D1"}, r"unit\.locate=L0D1 is invalid; expected L1D and a number with unit"),
        ({"locate": "L1D7"}, r"unit\.locate=L1D7 is invalid; expected L1D0 to L1D2"),
        (
            {"file": "none.npy"},
            r"unit\.file=none\.npy is invalid; expected a \.npy file that exists",
        ),
        ({"hook": "resid_pre"}, r"unit\.hook=resid_pre is invalid; expected one of resid_post"),
    ],
)
def test_wrong_settings_are_named(settings, said, made):
    with pytest.raises(ConfigError, match=said):
        made(make_toy("neox"), vectors_of(), **settings)
