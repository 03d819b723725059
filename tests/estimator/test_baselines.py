"""Scores that are no influence, each against a slow and obvious computation of the same."""

import copy
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from in_memory import Case, InMemoryWork, corpus_of, materials
from plain_gradients import block_gradients

from mda.data.stream import mixed_seed
from mda.estimator.baselines import (
    GradientNorm,
    Loss,
    Random,
    Repetition,
    gradient_norms,
    random_scores,
)
from mda.estimator.repetition import repetition
from mda.schema import (
    GradientNormConfig,
    LossConfig,
    ModuleConfig,
    ProbeConfig,
    RandomConfig,
    RepetitionConfig,
)
from mda.types import Part, Unit, Window
from mda.unit.module import Modules

N_VOCAB = 40


@pytest.fixture
def work(toy, table):
    """Whole modules of the toy as units; the loss and the gradients do not depend on the kind."""
    settings = ModuleConfig(biases=True, probe=ProbeConfig(n_sequences=2, length=4))
    kind = Modules(settings, materials(table.corpus, toy))
    return InMemoryWork(table.corpus, table.ids, kind, kind.units([]), {7: toy}, [7])


def slow_repetition(row, counts, t):
    """What is known at position t, of the inputs x[0] .. x[T - 1], about x[t + 1]."""
    for s in range(t - 1, 0, -1):  # the last earlier position first
        if (row[s - 1], row[s]) == (row[t - 1], row[t]):
            if row[s + 1] != row[t + 1]:
                return 0.0
            return -math.log(counts[row[t + 1]] / sum(counts))
    return 0.0


def in_periods(generator, n, length, n_vocab, period):
    first = generator.integers(n_vocab, size=(n, period))
    return np.tile(first, length // period + 1)[:, :length]


@pytest.mark.parametrize("n_vocab", [2, 4, 40])
@pytest.mark.parametrize("repetitive", [False, True])
def test_repetition_equals_the_plain_loops(n_vocab, repetitive):
    """Few tokens repeat by chance, with and without the same continuation."""
    generator = np.random.default_rng(0)
    rows = generator.integers(n_vocab, size=(30, 25))
    if repetitive:
        noise = generator.random(rows.shape) < 0.2
        rows = np.where(noise, rows, in_periods(generator, 30, 25, n_vocab, 7))
    counts = np.bincount(rows.flatten(), minlength=n_vocab).tolist()
    expected = [[slow_repetition(row, counts, t) for t in range(24)] for row in rows.tolist()]
    found = repetition(rows, np.array(counts))
    assert found.shape == (30, 24)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    if repetitive or n_vocab < 40:
        assert (found > 0).any() and (found == 0).any()


def test_a_row_without_repeats_counts_nothing():
    rows = np.random.default_rng(0).permuted(np.tile(np.arange(N_VOCAB), (5, 1)), axis=1)
    assert not repetition(rows, np.ones(N_VOCAB)).any()


@pytest.mark.parametrize("period", [1, 2, 5, 8])
def test_a_periodic_row_counts_from_the_second_period_on(period):
    """Position t knows x[t + 1] when (x[t - 1], x[t]) stood there before: t >= period + 1."""
    counts = np.arange(1, N_VOCAB + 1)
    row = np.tile(np.arange(10, 10 + period), 25)[:25]
    found = repetition(row[None], counts)[0]
    information = -np.log(counts / counts.sum())
    known = np.arange(24) >= period + 1
    np.testing.assert_allclose(found, np.where(known, information[row[1:]], 0))


def test_the_last_earlier_continuation_decides():
    """a b c, a b d, then a b: the copier says d."""
    counts = np.ones(8)
    a, b, c, d = range(4)
    assert repetition(np.array([[a, b, c, a, b, d, a, b, d]]), counts)[0, 7] == math.log(8)
    assert repetition(np.array([[a, b, c, a, b, d, a, b, c]]), counts)[0, 7] == 0


def test_rare_tokens_are_worth_more_and_unseen_ones_are_finite():
    counts = np.array([90, 9, 1, 0])
    for token, nats in ((0, math.log(100 / 90)), (2, math.log(100)), (3, math.log(100))):
        row = np.array([[1, 0, token, 1, 0, token]])
        assert repetition(row, counts)[0, 4] == pytest.approx(nats)


def test_repetition_scores_are_sums_over_positions_for_all_units(work, table):
    rows = table.tokens.clone()
    rows[:3, 4:] = rows[:3, :5]  # some of them repeat
    labels = ["code", *["prose"] * 8]
    corpus = corpus_of(rows, N_VOCAB, labels, np.arange(2))
    work = replace(work, corpus=corpus, sample_ids=np.arange(9)[::-1])
    found = Repetition(RepetitionConfig()).score(work)
    expected = [
        sum(slow_repetition(row, corpus.counts.tolist(), t) for t in range(8))
        for row in reversed(rows.tolist())
    ]
    assert sum(value > 0 for value in expected) >= 3
    for column in found.values_NU.T:
        np.testing.assert_allclose(column.numpy(), expected, rtol=1e-6)
    assert found.values_NU.shape == (9, len(work.units)) and found.losses_N.isnan().all()


def losses_of(model, table):
    """transformers' own loss of each row, which it takes in float32."""
    with torch.no_grad():
        return torch.stack([model(row[None], labels=row[None]).loss for row in table.tokens])


def test_loss_is_that_of_transformers(work, toy, table):
    found, expected = Loss(LossConfig(batch_size=4)).score(work), losses_of(toy, table)
    torch.testing.assert_close(found.losses_N.float(), expected)
    for column in found.values_NU.T:
        torch.testing.assert_close(column.float(), expected)


def plain_norms(model, table, blocks, units, row_of):
    norms = []
    for row in table.tokens:
        own = block_gradients(model, blocks, row)
        squares = [
            sum(own[b][row_of(b, r)].square().sum() for b, r in unit.parts) for unit in units
        ]
        norms.append(torch.stack(squares).sqrt())
    return torch.stack(norms)


def test_gradient_norms_are_those_of_autograd(case, table):
    """Of heads, neurons, MLPs and attentions, biases included."""
    for batch_size in (2, 9):
        found = gradient_norms(case.model, table.rows, table.ids, case.units, batch_size)
        expected = plain_norms(case.model, table, case.blocks, case.units, lambda _, row: row)
        torch.testing.assert_close(found.values_NU, expected)
    torch.testing.assert_close(found.losses_N.float(), losses_of(case.model, table))


def test_gradient_norms_of_a_mechanism_and_of_units_that_share_a_module(toy, table):
    """Heads together own all that they own; features of one module all have its norm."""
    heads, mlp = Case.of(toy, "heads"), Case.of(toy, "mlp")
    together = Unit("mechanism", heads.units[0].parts + heads.units[3].parts)
    features = [Unit(f"F{r}", tuple(Part(b, r) for b in mlp.blocks[:2])) for r in range(3)]
    units = [*heads.units, together, *features]
    blocks = [*heads.blocks, *mlp.blocks[:2]]
    found = gradient_norms(toy, table.rows, table.ids, units, 4).values_NU
    expected = plain_norms(toy, table, blocks, units, lambda b, r: r if b.owners > 1 else 0)
    torch.testing.assert_close(found, expected)
    assert (found[:, 4] > found[:, 0]).all()
    assert torch.equal(found[:, 5], found[:, 7])


def test_gradient_norm_and_loss_read_the_checkpoint_they_are_told(work, toy, table):
    """The earlier of two, where the window's middle is nearer to the later."""
    later, window = copy.deepcopy(toy), Window(3, 10, None, "")
    with torch.no_grad():
        for parameter in later.parameters():
            parameter.mul_(1.1)
    models, settings = {3: toy, 7: later}, {"checkpoint": 3, "batch_size": 4}
    blocks = [block for unit in work.units for block, _ in unit.parts]
    norms = plain_norms(toy, table, blocks, work.units, lambda _, row: row)
    for estimator, expected in (
        (GradientNorm(GradientNormConfig(**settings)), norms),
        (Loss(LossConfig(**settings)), losses_of(toy, table)[:, None].expand_as(norms)),
    ):
        told = replace(work, models=models, steps=estimator.steps(sorted(models), window))
        found = estimator.score(told)
        torch.testing.assert_close(found.values_NU.to(expected), expected)
        torch.testing.assert_close(found.losses_N.float(), losses_of(toy, table))


def test_random_scores_belong_to_seed_and_sample():
    ids = np.array([5, 9, 2])
    scores = random_scores(ids, 4, seed=0)
    assert torch.equal(random_scores(ids[1:], 4, seed=0), scores[1:])
    assert not torch.equal(random_scores(ids, 4, seed=1), scores)
    many = random_scores(np.arange(4000), 1, seed=0)
    assert abs(many.mean()) < 4 / 4000**0.5  # four standard errors
    assert many.std() == pytest.approx(1, abs=4 / 8000**0.5)
    assert random_scores(ids[:0], 4, seed=0).shape == (0, 4)


def top_decile(work, run_seed, estimator_seed):
    work = replace(work, seed=run_seed, sample_ids=np.arange(2000))
    values = Random(RandomConfig(seed=estimator_seed)).score(work).values_NU[:, 0]
    return set(values.topk(200).indices.tolist())


def test_random_depends_on_the_runs_seed_and_on_its_own(work):
    """Sets of 200 of 2000 share 20 by chance, with standard deviation 4.02 (hypergeometric)."""
    deciles = {seeds: top_decile(work, *seeds) for seeds in itertools.product(range(3), repeat=2)}
    assert top_decile(work, 1, 2) == deciles[1, 2]
    for one, other in itertools.combinations(deciles.values(), 2):
        assert abs(len(one & other) - 20) < 5 * 4.02


def test_no_two_seeds_mix_to_the_same():
    """(1, 2) is not (2, 1), and 0 counts."""
    pairs = list(itertools.product([*range(60), 1234, 2**32 - 1], repeat=2))
    mixed = {mixed_seed(*pair) for pair in pairs}
    assert len(mixed) == len(pairs)
    assert all(0 <= seed < 2**64 for seed in mixed)


def test_random_scores_do_not_depend_on_the_window(work):
    whole = Random(RandomConfig()).score(work).values_NU
    part = Random(RandomConfig()).score(replace(work, sample_ids=work.sample_ids[4:])).values_NU
    assert torch.equal(part, whole[4:])


def test_random_scores_of_tokens_depend_on_both_seeds_and_not_on_the_samples_scores(work):
    ids = work.sample_ids
    found = {
        (run, own): Random(RandomConfig(seed=own)).target_influence(replace(work, seed=run))(ids)
        for run in (0, 1)
        for own in (0, 1)
    }
    for key, one in found.items():
        assert one.shape == (len(ids), work.corpus.seq_len)
        samples = random_scores(ids, one.shape[1], mixed_seed(*key))
        assert not any((one == other).any() for at, other in found.items() if at != key)
        assert not (one == samples).any()
