"""What the loss of a single token adds to a score: against autograd, one loss at a time."""

from dataclasses import replace
from typing import cast

import pytest
import torch
from in_memory import InMemoryWork, materials
from plain_gradients import block_gradients
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from mda.estimator.estimator import TokenEstimator
from mda.estimator.score import target_influence
from mda.schema import (
    OPTIONS,
    EkfacConfig,
    ExactConfig,
    HeadConfig,
    ModuleConfig,
    NeuronConfig,
    ProbeConfig,
    RandomConfig,
    RepetitionConfig,
    TracinConfig,
)
from mda.stages.plugin import estimator_of
from mda.types import Unit
from mda.unit.attention_head import AttentionHeads
from mda.unit.blocks import Directions
from mda.unit.mlp_neuron import MlpNeurons
from mda.unit.module import Modules

PROBE = ProbeConfig(n_sequences=2, length=4, distribution="uniform")
KINDS = {
    "heads": (AttentionHeads, HeadConfig(biases=True, probe=PROBE), "mechanism"),
    "one head": (AttentionHeads, HeadConfig(probe=PROBE), "L0H1"),
    "neurons": (MlpNeurons, NeuronConfig(label="code"), "L0N3"),
    "modules": (Modules, ModuleConfig(biases=True, probe=PROBE), "L0.mlp"),
}


@pytest.fixture(autouse=True)
def norms_in_float64(monkeypatch):
    """Llama's are computed in float32 whatever the model is in, which hides the last digits."""

    def norm(self, x):
        return (
            self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)
        )

    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)


@pytest.fixture(params=[f"{family} {kind}" for family in ("neox", "llama") for kind in KINDS])
def work(request, toy, llama, table):
    """A unit of each kind in both families; a mechanism whose heads share their keys in Llama."""
    family, _, kind = request.param.partition(" ")
    make, settings, name = KINDS[kind]
    model = toy if family == "neox" else llama
    found = make(settings, materials(table.corpus, model))
    units = found.units(["L0H0", "L0H1"], together=name == "mechanism")
    return InMemoryWork(
        table.corpus, table.ids, found, units, {3: model, 8: model}, [3, 8],
        rates={3: 0.3, 8: 0.1}, found=name,
    )  # fmt: skip


def test_a_tokens_score_is_the_product_of_direction_and_its_losss_own_gradient(work):
    """Random directions; the gradient of each loss by autograd, through the whole model."""
    model = work.model(3)
    unit = next(unit for unit in work.units if unit.name == work.found)
    generator = torch.Generator().manual_seed(5)
    blocks = {b: torch.randn(g.shape, generator=generator).double()
              for b, g in work.gradients(model).items()}  # fmt: skip
    directions = Directions.of(work.units, blocks)
    rows = work.corpus.rows(work.sample_ids[:2])
    tangents = directions.tangents(unit, dict(model.named_parameters()))
    ours = target_influence(model, rows, tangents)
    length = rows.shape[1] - 1
    for row, values in zip(rows, ours, strict=True):
        for t in range(length):
            # The mean over t + 1 losses minus the mean over t of them, as sums.
            upto = block_gradients(model, list(blocks), row[: t + 2])
            before = block_gradients(model, list(blocks), row[: t + 1]) if t else None
            expected = 0.0
            for block, at in (part for part in unit.parts if part.block in blocks):
                own = upto[block][at if block.owners > 1 else 0] * (t + 1)
                if before is not None:
                    own = own - before[block][at if block.owners > 1 else 0] * t
                expected -= (own * blocks[block][at]).sum().item() / length
            assert values[t].item() == pytest.approx(expected, rel=1e-8, abs=1e-11)


def scorer_of(settings, work):
    """What scores the tokens of some samples, by an estimator that can."""
    return cast(TokenEstimator, estimator_of(settings)).target_influence(work)


@pytest.mark.parametrize(
    "settings", [EkfacConfig(), ExactConfig(), TracinConfig()], ids=lambda s: s.name
)
def test_a_samples_token_scores_sum_to_its_score(work, settings):
    steps = [3, 8] if settings.name == "tracin" else [3]
    work = replace(work, steps=steps)
    estimator = estimator_of(settings)
    column = [unit.name for unit in work.units].index(work.found)
    whole = estimator.score(work).values_NU[:, column].double()
    tokens = scorer_of(settings, work)(work.sample_ids)
    assert tokens.shape == (len(work.sample_ids), work.corpus.seq_len)
    torch.testing.assert_close(tokens.sum(1), whole, rtol=1e-8, atol=1e-11)
    assert tokens.std() > 0


def test_masking_a_loss_moves_the_measurement_as_its_token_score_says(toy, table):
    """One small step along -P grad l_t, and the measurement before and after it."""
    make, settings, name = KINDS["one head"]
    found = make(settings, materials(table.corpus, toy))
    units = found.units([name])
    work = InMemoryWork(table.corpus, table.ids, found, units, {3: toy}, [3], rates={3: 1.0},
                        found=name)  # fmt: skip
    scorer = scorer_of(TracinConfig(n_checkpoints=1), work)
    scores, unit = scorer(table.ids[:1])[0], next(u for u in units if u.name == name)
    row, eps = table.corpus.rows(table.ids[:1]), 1e-4
    owned = Directions.of(units, work.gradients(toy)).tangents(unit, dict(toy.named_parameters()))
    for t in (1, 5):
        loss = torch.nn.functional.cross_entropy(toy(row[:, : t + 1]).logits[0, -1], row[0, t + 1])
        gradients = torch.autograd.grad(loss / 8, [toy.get_parameter(p) for p in owned])
        masks = [(tangent != 0).double() for tangent in owned.values()]  # the head's own rows
        change = {}
        for sign in (1, -1):
            with torch.no_grad():
                for p, g, own in zip(owned, gradients, masks, strict=True):
                    toy.get_parameter(p).sub_(sign * eps * g * own)
                change[sign] = found.measurements(toy, [unit]).item()
                for p, g, own in zip(owned, gradients, masks, strict=True):
                    toy.get_parameter(p).add_(sign * eps * g * own)
        slope = (change[1] - change[-1]) / (2 * eps)
        assert scores[t].item() == pytest.approx(slope, rel=1e-4)


def test_repetition_is_told_by_the_token_that_a_copier_predicts(work):
    rows = work.corpus.tokens
    rows[work.sample_ids[0]] = [7, 8, 9, 1, 7, 8, 9, 2, 3]
    tokens = scorer_of(RepetitionConfig(), work)(work.sample_ids)
    assert tokens[0].nonzero().flatten().tolist() == [5]  # 7 8 seen again: 9 is known
    whole = estimator_of(RepetitionConfig()).score(work).values_NU[:, 0].double()
    torch.testing.assert_close(tokens.sum(1), whole, rtol=1e-6, atol=0.0)


def test_random_token_scores_belong_to_the_sample_and_are_not_its_own(work):
    scorer = scorer_of(RandomConfig(), work)
    whole, part = scorer(work.sample_ids), scorer(work.sample_ids[[3, 1]])
    assert torch.equal(part, whole[[3, 1]])
    assert len(whole.unique()) == whole.numel()
    samples = estimator_of(RandomConfig()).score(work).values_NU
    assert not torch.isin(samples, whole.float()).any()


@pytest.mark.parametrize("name", OPTIONS["estimator"])
def test_settings_say_which_estimators_tell_tokens_apart(name):
    known = {"ekfac", "exact", "tracin", "repetition", "bm25", "ngram", "random"}
    assert ("tokens" in OPTIONS["estimator"][name].gives) == (name in known)


def test_a_unit_without_a_gradient_has_no_tangents(toy, table):
    found = AttentionHeads(HeadConfig(probe=PROBE), materials(table.corpus, toy))
    units = found.units(["L0H0"])
    assert Directions.of(units, {}).tangents(units[0], {}) == {}
    assert Directions.of(units, {}).tangents(Unit("other", ()), {}) == {}
