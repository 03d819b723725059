"""Similarity to the probe against the hidden states that transformers returns."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from in_memory import InMemoryWork, materials

from mda.schema import EmbeddingConfig, ModuleConfig, ProbeConfig
from mda.stages.plugin import estimator_of
from mda.types import Window
from mda.unit.module import Modules


@pytest.fixture
def work(llama, table):
    settings = ModuleConfig(probe=ProbeConfig(n_sequences=3, length=4))
    kind = Modules(settings, materials(table.corpus, llama))
    return InMemoryWork(table.corpus, table.ids, kind, kind.units([]), {7: llama}, [7])


def cosines(work, at, model):
    """Of each sample to the probe, by numpy; `at` is a place in `hidden_states`."""

    def hidden(rows):
        with torch.no_grad():
            found = model(rows[:, :-1], output_hidden_states=True).hidden_states[at]
        return found.numpy()

    query = hidden(torch.stack(list(work.query))).reshape(-1, model.config.hidden_size).mean(0)
    means = hidden(work.corpus.rows(work.sample_ids)).mean(1)
    return means @ query / np.linalg.norm(means, axis=1) / np.linalg.norm(query)


@pytest.mark.parametrize(("layer", "at"), [(None, -1), (0, 1)])
def test_scores_are_cosines_of_mean_hidden_states(work, llama, layer, at):
    found = estimator_of(EmbeddingConfig(layer=layer, batch_size=4)).score(work)
    expected = cosines(work, at, llama)
    assert np.ptp(expected) > 0.05
    for values_N in found.values_NU.T:
        assert values_N.tolist() == pytest.approx(expected.tolist(), rel=1e-9)
    assert found.losses_N.isnan().all()


def test_the_last_layers_output_is_that_before_the_final_norm(work, llama):
    found = estimator_of(EmbeddingConfig(layer=1)).score(work).values_NU[:, 0]
    assert not np.allclose(found, cosines(work, -1, llama))
    bare = copy.deepcopy(llama)
    bare.model.norm = torch.nn.Identity()
    np.testing.assert_allclose(found, cosines(work, -1, bare), rtol=1e-9)


def test_the_checkpoint_is_the_one_that_is_asked_for(work, llama):
    other = copy.deepcopy(llama)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    estimator = estimator_of(EmbeddingConfig(checkpoint=3))
    steps = estimator.steps([3, 7], Window(3, 10, None, ""))
    found = estimator.score(replace(work, models={3: other, 7: llama}, steps=steps))
    expected = cosines(work, -1, other)
    assert found.values_NU[:, 0].tolist() == pytest.approx(expected.tolist(), rel=1e-9)
    assert not np.allclose(expected, cosines(work, -1, llama), atol=1e-3)
