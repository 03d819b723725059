"""Influence beyond the unit's own parameters, against autograd and an explicit Fisher matrix."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from derivatives import parameter_gradients, sequence_losses
from plain_gradients import pieces

from mda.estimator import exact
from mda.estimator.influence import fit_of
from mda.library import InMemory, LocatedUnit, corpus_of, estimator_settings, influence
from mda.model.architecture import architecture
from mda.model.build import scratch
from mda.model.loss import label_uniforms
from mda.schema import ConfigError, HeadConfig, NeuronConfig, ProbeConfig, ScratchConfig
from mda.stages.plugin import estimator_of, kind_of
from mda.types import Part, Unit
from mda.unit.kind import Materials
from mda.unit.scope import left_out, scoped, scored

FOUND, LENGTH, C = "L1H0", 6, 0.1
COPY = HeadConfig(probe=ProbeConfig(n_sequences=4, length=LENGTH))
BIASES = replace(COPY, biases=True)
ATTENTION = replace(COPY, blocks=["qk"], probe=replace(COPY.probe, target="previous_token"))


@pytest.fixture(params=["neox", "llama"])
def model(request, toy, llama):
    return toy if request.param == "neox" else llama


@pytest.fixture
def rows():
    return torch.randint(40, (9, 9), generator=torch.Generator().manual_seed(3))


def unit_of(model, rows, settings=COPY):
    kind = kind_of(settings, Materials(corpus_of(model, rows, None), architecture(model)))
    return LocatedUnit(FOUND, float("nan"), kind)


def values(model, rows, estimator, settings=COPY, **words):
    unit = unit_of(model, rows, settings)
    return torch.from_numpy(influence(model, rows, unit, estimator, progress=False, **words).scores)


def measurement(model, rows):
    """Mean log-probability over the second copy, from transformers' logits."""
    tokens = torch.stack([*unit_of(model, rows).kind.query()])
    logs = model(tokens[:, :-1]).logits.log_softmax(-1)[:, LENGTH:]
    return logs.gather(-1, tokens[:, LENGTH + 1 :, None]).mean()


def everything(model):
    """A mask of every parameter that belongs to a linear map, by name."""
    norms = {name for name, p in model.named_parameters() if "norm" in name}
    return {n: torch.ones_like(p) for n, p in model.named_parameters() if n not in norms}


def below(model, settings=COPY):
    """Masks of the maps of layer 0, and of what the head has of layer 1."""
    masks = {name: mask for name, mask in everything(model).items() if ".layers.0." in name}
    arch, weights = architecture(model), dict(model.named_parameters())
    for name in settings.blocks:
        block = arch.head_blocks(1, settings.biases)[name]
        for module, outputs, inputs in pieces(model, block, 0):
            path = f"{module}.weight"
            masks.setdefault(path, torch.zeros_like(weights[path]))[outputs, inputs] = 1
            if block.bias:
                bias = masks.setdefault(f"{module}.bias", torch.zeros(len(weights[path])).double())
                bias[outputs] = 1
    return masks


def vector(gradients, masks):
    return torch.cat([gradients[name][mask > 0].flatten() for name, mask in masks.items()])


def sample_vectors(model, rows, masks):
    losses = (sequence_losses(model, row[None])[0] for row in rows)
    return torch.stack([vector(parameter_gradients(model, loss), masks) for loss in losses])


def drawn_labels(model, rows, seed):
    """The first token whose cumulative probability exceeds the uniform number of its position."""
    uniforms = label_uniforms(seed, range(len(rows)), rows.shape[1] - 1)
    cumulative = model(rows[:, :-1]).logits.softmax(-1).cumsum(-1)
    return torch.cat((rows[:, :1], (cumulative > uniforms[..., None]).int().argmax(-1)), 1)


def fisher_vectors(model, rows, masks, seed):
    drawn, found = drawn_labels(model, rows, seed), []
    for row, labels in zip(rows, drawn, strict=True):
        logs = model(row[None, :-1]).logits[0].log_softmax(-1)
        loss = -logs.gather(-1, labels[1:, None]).mean()
        found.append(vector(parameter_gradients(model, loss), masks))
    return torch.stack(found)


def test_exact_over_all_is_the_explicit_fisher_of_every_linear_map(model, rows):
    masks = everything(model)
    fitted = fisher_vectors(model, rows, masks, seed=5)
    fisher = fitted.T @ fitted / len(rows)
    fisher += C * fisher.diagonal().mean() * torch.eye(len(fisher))
    wanted = vector(parameter_gradients(model, measurement(model, rows)), masks)
    expected = -sample_vectors(model, rows, masks) @ torch.linalg.solve(fisher, wanted)
    found = values(model, rows, "exact", scope="all", damping=C, seed=5)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0)
    assert not torch.allclose(found, values(model, rows, "exact", damping=C, seed=5), rtol=0.1)


@pytest.mark.parametrize("scope", ["upstream", "all"])
@pytest.mark.parametrize("settings", [COPY, BIASES], ids=["maps", "biases"])
def test_gradient_products_are_those_of_the_scope_s_parameters(model, rows, scope, settings):
    masks = everything(model) if scope == "all" else below(model, settings)
    wanted = vector(parameter_gradients(model, measurement(model, rows)), masks)
    expected = sample_vectors(model, rows, masks)
    found = values(model, rows, "tracin", settings, scope=scope)
    torch.testing.assert_close(found, -expected @ wanted)
    norms = values(model, rows, "gradient_norm", settings, scope=scope)
    torch.testing.assert_close(norms, expected.norm(dim=1))


def test_an_attention_metric_is_differentiated_in_the_layers_below_too(model, rows):
    f = unit_of(model, rows, ATTENTION).kind.differentiable(FOUND, [FOUND], "measurement")
    wanted, masks = parameter_gradients(model, f(model)), everything(model)
    expected = -sample_vectors(model, rows, masks) @ vector(wanted, masks)
    found = values(model, rows, "tracin", ATTENTION, scope="all")
    torch.testing.assert_close(found, expected)
    assert any(gradient.any() for name, gradient in wanted.items() if ".layers.0." in name)
    assert not torch.allclose(found, values(model, rows, "tracin", ATTENTION), rtol=0.1)


@pytest.mark.parametrize("factors", ["independent", "sequence"])
def test_ekfac_over_all_solves_every_map_by_itself(toy, rows, factors):
    words = {"scope": "all", "damping": C, "labels": "empirical", "factors": factors}
    work = work_of(toy, rows, "ekfac", **words)
    gradients = work.gradients(toy)
    inverse = work.curvature(0, fit_of(work.settings, gradients)).inverse_times(gradients, C)
    expected = torch.zeros(len(rows), dtype=torch.float64)
    masks = everything(toy)
    for i, row in enumerate(rows):
        own = parameter_gradients(toy, sequence_losses(toy, row[None])[0])
        for block, direction in inverse.items():
            path = block.outputs[0].module
            weight = own[f"{path}.weight"]
            whole = weight if block.input.transposed else weight.T
            expected[i] -= (direction[0, : block.input.size] * whole).sum()
            if block.bias:
                expected[i] -= direction[0, -1] @ own[f"{path}.bias"]
    assert sum(d.numel() for d in inverse.values()) == sum(m.numel() for m in masks.values())
    torch.testing.assert_close(values(toy, rows, "ekfac", **words), expected)


def work_of(model, rows, estimator, settings=COPY, **words):
    chosen, unit = estimator_settings(estimator, words), unit_of(model, rows, settings)
    units = scored(unit.kind.units([FOUND]), FOUND, chosen.requires.scope, model)
    corpus, ids = corpus_of(model, rows, None), np.arange(len(rows))
    return InMemory(chosen, corpus, ids, unit.kind, units, FOUND, [FOUND], (0,), seed=0,
                    adam_eps=1e-8, only=model, progress=False)  # fmt: skip


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("scope", ["upstream", "all"])
def test_parts_of_tokens_and_of_losses_add_up_to_the_score(model, rows, scope, skip):
    words = {"scope": scope, "skip_positions": skip}
    expected, work = values(model, rows, "tracin", **words), work_of(model, rows, "tracin", **words)
    estimator, ids = estimator_of(work.settings), np.arange(len(rows))
    single = {"rtol": 1e-5, "atol": 1e-6}  # Llama's norms are in float32
    torch.testing.assert_close(estimator.token_influence(work, ids).sum(1), expected, **single)
    torch.testing.assert_close(estimator.target_influence(work)(ids).sum(1), expected, **single)


def test_the_unit_s_own_scope_is_the_kind_s_own_units_and_gradients(model, rows):
    unit = unit_of(model, rows)
    own = unit.kind.units([FOUND])
    work = work_of(model, rows, "ekfac")
    assert list(work.units) == list(own)
    ours, theirs = work.gradients(model), unit.kind.gradients(model, own)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[block], theirs[block]) for block in ours)


def test_what_is_left_out_of_all_is_counted(toy, rows):
    (unit,) = work_of(toy, rows, "tracin", scope="all").units
    norms = sum(p.numel() for name, p in toy.named_parameters() if "norm" in name)
    assert left_out(unit, toy) == (norms, sum(p.numel() for p in toy.parameters()))
    tied = scratch(ScratchConfig(family="llama", n_layers=2, d_model=16, n_heads=2, d_ff=24,
                                 vocab_size=40, max_seq_len=32), seed=0)  # fmt: skip
    (unit,) = work_of(tied, rows, "tracin", scope="all").units
    own = [name for name, _ in tied.named_parameters() if "norm" in name or "embed" in name]
    missing = sum(dict(tied.named_parameters())[name].numel() for name in own)
    assert left_out(unit, tied)[0] == missing > 40 * 16


def test_the_attention_before_an_mlp_is_below_it_unless_they_are_parallel(toy, llama):
    for model, blocks in ((toy, []), (llama, ["L1.attn.qkv", "L1.attn.o"])):
        neuron = Unit(
            "L1N3", tuple(Part(b, 3) for b in architecture(model).neuron_blocks(1).values())
        )
        names = [block.name for block, _ in scoped(neuron, "upstream", model).parts]
        first = ["L0.attn.qkv", "L0.attn.o", "L0.mlp.in", "L0.mlp.out"]
        assert names == [*first, *blocks, "L1.neurons.in", "L1.neurons.out"]


def test_a_matrix_that_is_too_large_is_refused(toy, rows, monkeypatch):
    monkeypatch.setattr(exact, "MOST", 1e4)
    with pytest.raises(ConfigError, match=r"estimator\.scope=all is invalid: with estimator=exact"):
        values(toy, rows, "exact", scope="all")


def test_neurons_go_by_the_contrast_of_their_activation(toy, rows):
    labels = ["a", "a", "b", "b", "a", "a", "b", "b", "a"]  # both in every second row, too
    corpus = corpus_of(toy, rows, labels)
    kind = kind_of(NeuronConfig(label="a"), Materials(corpus, architecture(toy)))
    unit = LocatedUnit("L1N3", float("nan"), kind)
    found = influence(toy, rows, unit, "tracin", progress=False, scope="all").scores
    f = kind.differentiable("L1N3", ["L1N3"])(toy)
    masks = everything(toy)
    expected = -sample_vectors(toy, rows, masks) @ vector(parameter_gradients(toy, f), masks)
    torch.testing.assert_close(torch.from_numpy(found), expected)
