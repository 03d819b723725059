"""BM25 against a plain count, document by document."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from in_memory import InMemoryWork, materials

from mda.schema import Bm25Config, NeuronConfig
from mda.stages.plugin import estimator_of
from mda.unit.mlp_neuron import MlpNeurons

SPECIAL = (0, 3)


@pytest.fixture
def work(llama, table):
    """A label's text as the query, and tokens that do not count."""
    corpus = replace(table.corpus, special_ids=SPECIAL)
    kind = MlpNeurons(NeuronConfig(label="code"), materials(corpus, llama))
    return InMemoryWork(corpus, table.ids, kind, kind.units([])[:3], {}, [], found="L0N1")


def by_hand(work, k1, b):
    documents = [
        [token for token in row[1:].tolist() if token not in SPECIAL]
        for row in work.corpus.rows(work.sample_ids)
    ]
    mean_length = sum(map(len, documents)) / len(documents)
    having = Counter(token for document in documents for token in set(document))
    query = [int(token) for row in work.query for token in row if token not in SPECIAL]
    scores = []
    for document in documents:
        times, score = Counter(document), 0.0
        for token in query:
            n, f = having[token], times[token]
            idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
            norm = k1 * (1 - b + b * len(document) / mean_length)
            score += idf * f * (k1 + 1) / (f + norm) if f else 0.0
        scores.append(score / len(work.query))
    return scores


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.0, 0.0), (2.0, 1.0)])
def test_scores_are_those_of_a_plain_count(work, k1, b):
    found = estimator_of(Bm25Config(k1=k1, b=b)).score(work)
    expected = by_hand(work, k1, b)
    assert np.ptp(expected) > 0.1 * max(expected)
    for values_N in found.values_NU.T:
        assert values_N.tolist() == pytest.approx(expected, rel=1e-9)
    assert found.losses_N.isnan().all()


def test_tokens_add_up_to_the_score_and_those_outside_the_query_add_nothing(work):
    estimator = estimator_of(Bm25Config())
    some = work.sample_ids[[4, 1]]
    parts = estimator.token_influence(work, some)
    scores = estimator.score(work).values_NU[[4, 1], 0]
    torch.testing.assert_close(parts.sum(1), scores, rtol=1e-9, atol=0)
    asked = set(torch.cat(list(work.query)).tolist()) - set(SPECIAL)
    for tokens, values in zip(work.corpus.rows(some)[:, 1:].tolist(), parts.tolist(), strict=True):
        assert [value > 0 for value in values] == [token in asked for token in tokens]
