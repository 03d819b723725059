"""The overlap of n-grams against sets of tuples."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from in_memory import InMemoryWork, materials

from mda.estimator.ngram import Ngrams
from mda.schema import NeuronConfig, NgramConfig
from mda.stages.plugin import estimator_of
from mda.unit.mlp_neuron import MlpNeurons

SPECIAL = (0, 3)


@pytest.fixture
def work(llama, table):
    """A label's text as the query, over so few tokens that much of it is shared."""
    corpus = replace(table.corpus, tokens=table.corpus.tokens % 5, special_ids=SPECIAL)
    kind = MlpNeurons(NeuronConfig(label="code"), materials(corpus, llama))
    return InMemoryWork(corpus, table.ids, kind, kind.units([])[:3], {}, [], found="L0N1")


def ngrams(row, n):
    """Pairs of a place and the n-gram that ends there, without special tokens."""
    row = list(row)
    for end in range(n, len(row) + 1):
        if not set(row[end - n : end]) & set(SPECIAL):
            yield end - 1, tuple(row[end - n : end])


def by_hand(query, rows, n):
    known = {gram for sequence in query for _, gram in ngrams(sequence, n)}
    for row in rows:
        own = [(at, gram) for at, gram in ngrams(row, n) if at > 0]  # what is predicted
        parts = np.zeros(len(row) - 1)
        for at, gram in own:
            parts[at - 1] = (gram in known) / len(own)
        yield parts


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_scores_are_those_of_sets_of_tuples(work, n):
    estimator = estimator_of(NgramConfig(n=n))
    rows = work.corpus.rows(work.sample_ids)
    expected = np.array(list(by_hand([one.tolist() for one in work.query], rows.tolist(), n)))
    found = estimator.score(work)
    for values_N in found.values_NU.T:
        assert values_N.tolist() == pytest.approx(expected.sum(1).tolist(), rel=1e-12)
    assert found.losses_N.isnan().all()
    parts = estimator.token_influence(work, work.sample_ids[[4, 1]])
    torch.testing.assert_close(parts, torch.from_numpy(expected[[4, 1]]))
    if n in (2, 3):
        assert np.ptp(expected.sum(1)) > 0.1


def test_no_ngram_goes_over_the_end_of_a_sequence_or_over_a_special_token():
    known = Ngrams.of([np.array([1, 2]), np.array([4, 0, 5])], 2, 10, SPECIAL)
    rows = np.array([[1, 2, 4, 5, 6], [2, 4, 0, 5, 1]])
    np.testing.assert_allclose(known.shares(rows), [[1 / 4, 0, 0, 0], [0, 0, 0, 0]])


def test_a_row_of_special_tokens_and_a_query_that_is_too_short_count_nothing():
    known = Ngrams.of([np.array([1, 2, 4])], 2, 10, SPECIAL)
    assert not known.shares(np.array([[0, 3, 0, 0]])).any()
    short = Ngrams.of([np.array([1, 2])], 3, 10, SPECIAL)
    assert not short.shares(np.array([[1, 2, 1, 2]])).any()


def test_large_vocabularies_and_long_ngrams_do_not_run_over():
    """The last token of each differs: a code of 64 bits for all eight tokens would be another's."""
    first = np.full(9, 199_999)
    known = Ngrams.of([first], 9, 200_000, ())
    other = np.where(np.arange(9) == 8, 199_998, first)
    assert known.shares(np.stack((first, other))).sum(1).tolist() == [1, 0]
