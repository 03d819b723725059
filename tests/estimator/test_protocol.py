"""Every estimator that a configuration can name answers what a stage asks of it."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from in_memory import ADAM_EPS, InMemoryWork, materials
from plain_gradients import block_gradients, own

from mda.estimator.ekfac import Fit, Labels, fit_curvature, fit_subset
from mda.estimator.estimator import TokenEstimator, step_of
from mda.estimator.score import score_samples
from mda.model.loss import label_uniforms
from mda.schema import (
    OPTIONS,
    ConfigError,
    EkfacConfig,
    ExactConfig,
    HeadConfig,
    ModuleConfig,
    NeuronConfig,
    ProbeConfig,
    TracinConfig,
)
from mda.stages.plugin import estimator_of
from mda.types import Unit, Window
from mda.unit.attention_head import AttentionHeads
from mda.unit.blocks import Directions
from mda.unit.mlp_neuron import MlpNeurons
from mda.unit.module import Modules

PROBE = ProbeConfig(n_sequences=2, length=4, distribution="uniform")
KEPT, WINDOW = [0, 3, 8], Window(2, 9, 4, "")
SUMS = {"ekfac", "exact", "tracin", "repetition", "bm25", "ngram"}  # tokens' parts are known
LOSSES = {"ekfac", "exact", "tracin", "loss", "gradient_norm"}
ELSEWHERE = ("unrolled", "file")  # see test_unrolled and test_from_file
AT_CHECKPOINTS = [name for name in OPTIONS["estimator"] if name not in ELSEWHERE]
KINDS = {
    "heads": (AttentionHeads, HeadConfig(biases=True, probe=PROBE)),
    "previous token": (
        AttentionHeads,
        HeadConfig(probe=ProbeConfig("previous_token", 2, 4, distribution="uniform")),
    ),
    "neurons": (MlpNeurons, NeuronConfig(label="code")),
    "modules": (Modules, ModuleConfig(biases=True, probe=PROBE)),
}


@pytest.fixture(params=KINDS)
def work(request, llama, table):
    """Units of a kind, two of them together where heads can be."""
    make, settings = KINDS[request.param]
    kind = make(settings, materials(table.corpus, llama))
    units = kind.units(["L0H1", "L1H2"], together=request.param == "heads")
    rates, moments = {3: 0.3, 8: 0.1}, {name: p**2 for name, p in llama.named_parameters()}
    return InMemoryWork(
        table.corpus, table.ids, kind, units, {3: llama, 8: llama}, [], rates=rates,
        moments=dict.fromkeys((3, 8), moments), found=units[-2].name,
    )  # fmt: skip


def answers(method: str) -> list[str]:
    return list(inspect.signature(getattr(TokenEstimator, method)).parameters)


@pytest.mark.parametrize("name", OPTIONS["estimator"])
def test_every_estimator_of_the_schema_can_be_loaded(name):
    settings = OPTIONS["estimator"][name]()
    assert settings.name == name and ("losses" in settings.gives) == (name in LOSSES)
    estimator = estimator_of(settings)
    asked_of_all = ("steps", "score", "token_influence")
    for method in (*asked_of_all, *(["target_influence"] if "tokens" in settings.gives else [])):
        asked = list(inspect.signature(getattr(type(estimator), method)).parameters)
        assert asked == answers(method)
    steps = estimator.steps(KEPT, WINDOW)
    assert isinstance(steps, tuple)
    made = {WINDOW.start} if name == "unrolled" else set()  # by training on from the one before
    assert set(steps) <= {*KEPT, *made}


def test_a_window_without_a_checkpoint_is_refused_by_name():
    tracin = estimator_of(TracinConfig())
    with pytest.raises(ConfigError, match=r"no checkpoint lies in \[0,100\]; expected .*128"):
        tracin.steps([128, 256], Window(0, 100, None, ""))


def settings_of(name):
    if name == "tracin":
        return TracinConfig(adam_preconditioning=True)
    return OPTIONS["estimator"][name]()


@pytest.mark.parametrize("name", AT_CHECKPOINTS)
def test_scores_and_what_tokens_add_to_them(work, name):
    estimator = estimator_of(settings_of(name))
    steps = estimator.steps(KEPT, WINDOW)
    work = InMemoryWork(**(vars(work) | {"steps": steps}))
    found = estimator.score(work)
    assert found.values_NU.shape == (len(work.sample_ids), len(work.units))
    assert found.values_NU.isfinite().all()
    assert found.losses_N.shape == (len(work.sample_ids),)
    assert (found.losses_N.isfinite() if name in LOSSES else found.losses_N.isnan()).all()
    some = work.sample_ids[[4, 1]]
    tokens = estimator.token_influence(work, some)
    assert (tokens is not None) == (name in SUMS)
    if tokens is not None:
        assert tokens.shape == (2, work.corpus.seq_len)
        column = [unit.name for unit in work.units].index(work.found)
        expected = found.values_NU[[4, 1], column].double()
        torch.testing.assert_close(tokens.sum(1), expected, rtol=1e-7, atol=1e-9)
    if name in {"ekfac", "exact", "tracin"}:
        assert found.values_NU.abs().sum(0).all() and tokens.any()


@pytest.mark.parametrize("name", ["ekfac", "exact", "tracin"])
def test_token_influence_takes_no_more_samples_at_a_time_than_a_batch(work, name):
    estimator = estimator_of(replace(settings_of(name), batch_size=3))
    work = InMemoryWork(**(vars(work) | {"steps": [3]}))
    model, some, seen = work.model(3), work.sample_ids[:7], []
    whole = estimator_of(settings_of(name)).token_influence(work, some)

    def see(module, inputs):
        seen.append(len(inputs[0]))

    hook = model.get_input_embeddings().register_forward_pre_hook(see)
    parts = estimator.token_influence(work, some)
    hook.remove()
    assert seen[-3:] == [3, 3, 1]
    torch.testing.assert_close(parts, whole)


def test_ekfac_takes_its_damping_labels_seed_and_subset_from_its_settings(work):
    """Against the same made by hand: curvature of 5 samples drawn with seed 3, damping 0.5."""
    wanted = EkfacConfig(damping=0.5, labels="sampled", seed=3, fit_sequences=5, batch_size=2)
    work = InMemoryWork(**(vars(work) | {"steps": [3]}))
    found = estimator_of(wanted).score(work).values_NU
    model, gradients = work.model(3), work.gradients(work.model(3))

    def by_hand(damping=0.5, seed=3, n=5, labels="sampled"):
        ids = fit_subset(work.sample_ids, n, seed)
        fit = Fit(list(gradients), Labels(labels, seed))
        fitted = fit_curvature(model, work.corpus.rows, ids, fit)
        directions = Directions.of(work.units, fitted.inverse_times(gradients, damping))
        return score_samples(model, work.corpus.rows, work.sample_ids, directions).values_NU

    torch.testing.assert_close(found, by_hand())
    for other in ({"damping": 0.1}, {"seed": 4}, {"n": 6}, {"labels": "empirical"}):
        assert (by_hand(**other) - found).norm() > 1e-3 * found.norm()


def adam_divides_by(model, block, owner):
    """sqrt(v) + eps of one owner, [P], where v of a weight is its square."""
    roots = {name: p.detach().abs() + ADAM_EPS for name, p in model.named_parameters()}
    return own(model, block, owner, roots).flatten()


def drawn_by_hand(model, row, uniforms):
    """Labels of one row from the model's own distribution, [T]: u inverts its CDF."""
    cdf = model(row[None, :-1]).logits[0].double().softmax(-1).cumsum(-1)
    return (cdf <= uniforms[:, None]).sum(-1)


EMPIRICAL = {"labels": "empirical"}
SAMPLED = {"labels": "sampled", "seed": 3, "fit_sequences": 5}


@pytest.mark.parametrize(
    ("adam", "fisher_of"), [(False, EMPIRICAL), (True, EMPIRICAL), (False, SAMPLED)]
)
def test_exact_is_the_explicit_damped_fisher_of_every_owner(work, adam, fisher_of):
    """Made of gradients by autograd, one owner after the other."""
    work = InMemoryWork(**(vars(work) | {"steps": [3]}))
    wanted = ExactConfig(damping=0.2, adam_damping=adam, **fisher_of)
    found = estimator_of(wanted).score(work).values_NU
    model, gradients = work.model(3), work.gradients(work.model(3))
    blocks, tokens = list(gradients), work.corpus.rows(work.sample_ids)
    rows = [block_gradients(model, blocks, row) for row in tokens]
    fitted = rows
    if fisher_of is SAMPLED:
        some = np.sort(np.random.default_rng(3).choice(len(tokens), 5, replace=False))
        uniforms = label_uniforms(3, work.sample_ids[some], tokens.shape[1] - 1)
        fitted = [
            block_gradients(model, blocks, row, drawn_by_hand(model, row, own))
            for row, own in zip(tokens[some], uniforms, strict=True)
        ]
    expected = torch.zeros_like(found)
    for u, unit in enumerate(work.units):
        for block, owner in unit.parts:
            if block not in gradients:
                continue
            g = torch.stack([row[block][owner].flatten() for row in rows])
            own = torch.stack([row[block][owner].flatten() for row in fitted])
            fisher, metric = own.T @ own / len(own), torch.ones(own.shape[1]).double()
            if adam:
                metric = adam_divides_by(model, block, owner)
            damped = fisher + 0.2 * fisher.diagonal().mean() * (metric / metric.mean()).diag()
            expected[:, u] -= g @ torch.linalg.solve(damped, gradients[block][owner].flatten())
    torch.testing.assert_close(found, expected)


def test_ekfac_adds_the_diagonal_of_adams_metric_in_its_basis(work):
    """Explicit matrices: H = K Lambda K^T, and D by its diagonal in K, for every owner."""
    work = InMemoryWork(**(vars(work) | {"steps": [3]}))
    wanted = EkfacConfig(damping=0.2, labels="empirical", adam_damping=True)
    found = estimator_of(wanted).score(work).values_NU
    model, gradients = work.model(3), work.gradients(work.model(3))
    fitted = work.curvature(3, Fit(list(gradients), Labels("empirical"), 4))
    rows = [
        block_gradients(model, list(gradients), row) for row in work.corpus.rows(work.sample_ids)
    ]
    expected = torch.zeros_like(found)
    for u, unit in enumerate(work.units):
        for block, owner in unit.parts:
            if block not in gradients:
                continue
            q_a, q_s = (q[owner if len(q) > 1 else 0] for q in fitted.basis(block))
            k, values = torch.kron(q_a, q_s), fitted.eigenvalues[block.name][owner].flatten()
            metric = adam_divides_by(model, block, owner)
            inside = (k.T @ (metric / metric.mean()).diag() @ k).diagonal()
            damped = k @ (values + 0.2 * values.mean() * inside).diag() @ k.T
            g = torch.stack([row[block][owner].flatten() for row in rows])
            expected[:, u] -= g @ torch.linalg.solve(damped, gradients[block][owner].flatten())
    torch.testing.assert_close(found, expected)


def test_with_much_damping_by_adam_only_its_step_sizes_are_left(work):
    """A unit's blocks are scaled each by its own mean: one block, and the ranking of TracIn."""
    unit = next(unit for unit in work.units if len(unit.parts) >= 1)
    one = Unit(unit.name, unit.parts[:1])
    work = InMemoryWork(**(vars(work) | {"steps": [3], "units": [one]}))
    much = ExactConfig(labels="empirical", damping=1e9, adam_damping=True)
    exact = estimator_of(much).score(work).values_NU[:, 0]
    plain = TracinConfig(adam_preconditioning=True, lr_weights=False)
    tracin = estimator_of(plain).score(work).values_NU[:, 0]
    torch.testing.assert_close(exact / exact.norm(), tracin / tracin.norm(), rtol=1e-5, atol=1e-7)


def test_a_steps_name_means_the_nearest_checkpoint():
    assert step_of("onset", KEPT, WINDOW) == 3
    assert step_of("window_middle", KEPT, WINDOW) == 3  # 5.5 is as near to 8: the earlier of two
    assert step_of("window_end", KEPT, WINDOW) == 8
    assert step_of(0, KEPT, WINDOW) == 0
    with pytest.raises(ConfigError, match=r"estimator.checkpoint=5: .* expected 0, 3, 8"):
        step_of(5, KEPT, WINDOW)
    with pytest.raises(ConfigError, match="the unit did not emerge"):
        step_of("onset", KEPT, Window(2, 9, None, ""))


def test_a_pass_in_pieces_is_the_pass_in_one(work):
    """`over_samples` divides the samples: ids reach the estimator in stream order."""
    estimator = estimator_of(settings_of("ekfac"))
    work = InMemoryWork(**(vars(work) | {"steps": estimator.steps(KEPT, WINDOW)}))
    whole = estimator.score(work).values_NU
    order = np.argsort(work.sample_ids)[::-1].copy()
    again = InMemoryWork(**(vars(work) | {"sample_ids": work.sample_ids[order]}))
    torch.testing.assert_close(estimator.score(again).values_NU, whole[order.tolist()])
