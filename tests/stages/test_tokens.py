"""Edits of single tokens through the pipeline: from the tokens' scores to what is trained on."""

import numpy as np
import pytest
import torch

from mda import pipeline
from mda.data.stream import mixed_seed
from mda.intervention.spans import fresh, repeated
from mda.schema import ConfigError
from mda.stages.editing import make_edit
from mda.stages.tokens import packed, unpacked
from mda.types import TokenScores

MASK = ("intervention.mode=mask_tokens", "intervention.fraction=0.01")
SPANS = ("intervention.mode=spans", "intervention.fraction=0.03")
BUDGET = {"mask": 51, "spans": 154}  # of 160 samples of 32 tokens


@pytest.fixture(scope="module")
def arm(context_of):
    return lambda *overrides: pipeline.arm(context_of(*overrides))


def token_scores(found) -> np.ndarray:
    return np.concatenate(list(found.tokens.scores.parts()))


def masked(found) -> set[tuple[int, int]]:
    changes = found.edited.changes
    return set(zip(changes.sample_ids.tolist(), changes.positions.tolist(), strict=True))


@pytest.mark.parametrize("estimator", ["ekfac", "tracin", "repetition"])
def test_stored_token_scores_sum_to_their_samples_scores_and_choose_the_edit(arm, estimator):
    found = arm(*MASK, f"estimator={estimator}")
    values, scores = token_scores(found), found.traced.scores
    assert np.array_equal(found.tokens.scores.sample_ids, scores.sample_ids)
    rounding = np.abs(values).sum(1) * 2.0**-10 + 1e-6 * np.abs(scores.of(found.unit.name)).max()
    assert (np.abs(values.sum(1) - scores.of(found.unit.name)) <= rounding).all()
    best = np.argsort(-values.ravel(), kind="stable")[: BUDGET["mask"]]
    expected = {(int(scores.sample_ids[i // 32]), int(i % 32)) for i in best}
    assert masked(found) == expected
    assert found.edited.n_tokens == len(found.edited.stream.masked) == BUDGET["mask"]


def test_tokens_can_be_chosen_within_the_highest_samples_or_one_class(arm):
    within = arm(*MASK, "intervention.within=0.1")
    scores = within.traced.scores
    top = scores.sample_ids[np.argsort(-scores.of(within.unit.name), kind="stable")[:16]]
    assert {sample for sample, _ in masked(within)} <= set(top.tolist())
    label = arm(*MASK, "intervention.label=generated_xml")
    ids = np.unique(label.edited.changes.sample_ids)
    assert set(label.corpus.labels_of(ids)) == {"generated_xml"}
    assert len(masked(within)) == len(masked(label)) == BUDGET["mask"]


def test_random_controls_have_the_budget_of_the_targeted_edit(arm):
    targeted = arm(*MASK)
    free, drawn = arm(*MASK, "estimator=random"), arm(*MASK, "intervention.select=random")
    same = arm(*MASK, "intervention.match=sample")
    for other in (free, drawn, same):
        assert len(masked(other)) == BUDGET["mask"]
        assert len(masked(other) & masked(targeted)) < 10
    assert np.array_equal(same.edited.changes.sample_ids, targeted.edited.changes.sample_ids)
    assert not masked(same) & masked(targeted)
    assert drawn.tokens is None and masked(drawn) != masked(free)
    assert len({found.run.fingerprint for found in (targeted, free, drawn, same)}) == 4


def test_what_is_masked_is_what_is_trained_without(arm):
    """The first update of the arm against plain torch: loss of the tokens that are left."""
    found = arm(*MASK, "intervention.window=[20,21]", "intervention.fraction=0.2")
    ids, _ = found.edited.stream.at(20)
    left = torch.ones(4, 32, dtype=torch.float64)
    for row, position in found.edited.stream.masked_at(20).tolist():
        left[row, position] = 0
    model = found.base.model(20).double()
    rows = found.corpus.rows(ids)
    losses = torch.nn.functional.cross_entropy(
        model(rows[:, :-1]).logits.transpose(1, 2), rows[:, 1:], reduction="none"
    )
    expected = (losses * left).sum().item() / (4 * 32)
    assert 0.7 < left.mean() < 0.9
    logged = (found.run.folder / "train.csv").read_text().splitlines()
    row = dict(zip(logged[0].split(","), logged[-1].split(","), strict=True))
    assert float(row["train/loss"]) == pytest.approx(expected, rel=1e-5)


def highest_that_repeat(found, budget) -> list[int]:
    """From the highest score down, the samples whose repeated tokens fit into the budget."""
    scores, chosen = found.traced.scores, []
    for at in np.argsort(-scores.of(found.unit.name)):
        (row,) = found.corpus.rows(scores.sample_ids[[at]]).numpy()
        n = repeated(row, 3).sum()
        if (budget := budget - n) < 0:
            break
        if n:
            chosen.append(int(scores.sample_ids[at]))
    return chosen


@pytest.mark.parametrize("kind", ["fresh", "renamed"])
def test_repeated_spans_become_others_and_all_else_stays(arm, kind):
    found = arm(*SPANS, f"intervention.spans={kind}")
    changes, corpus, base = found.edited.changes, found.edited.corpus, found.corpus
    assert BUDGET["spans"] - 32 < len(changes.sample_ids) <= BUDGET["spans"]
    ids, first = np.unique(changes.sample_ids, return_index=True)
    assert ids.tolist() == sorted(highest_that_repeat(found, BUDGET["spans"]))
    old, new = base.rows(ids).numpy(), corpus.rows(changes.replacements[first]).numpy()
    marks = np.stack([repeated(row, 3) for row in old])
    assert marks.sum() == len(changes.sample_ids)
    assert np.array_equal(old[~marks], new[~marks])
    for row, mark in zip(new, marks, strict=True):
        again = repeated(row, 3)
        assert np.array_equal(again, mark) if kind == "renamed" else not again.any()
    trained, kept = found.edited.stream.sample_ids, found.traced.scores.sample_ids
    changed = trained != kept
    assert sorted(kept[changed].tolist()) == ids.tolist()
    assert set(trained[changed].tolist()) == set(changes.replacements.tolist())


def test_both_kinds_of_spans_replace_the_same_tokens_and_a_random_control_as_many(arm):
    one, other = (arm(*SPANS, f"intervention.spans={kind}") for kind in ("fresh", "renamed"))
    assert masked(one) == masked(other)
    assert not np.array_equal(one.edited.changes.tokens, other.edited.changes.tokens)
    drawn = arm(*SPANS, "estimator=random")
    assert BUDGET["spans"] - 32 < len(drawn.edited.changes.sample_ids) <= BUDGET["spans"]
    assert masked(drawn) != masked(one)


def test_what_a_sample_becomes_does_not_depend_on_the_random_score_that_chose_it(arm):
    """Both are drawn from the seeds and the sample's id: from streams of their own."""
    found = arm("estimator=random", *SPANS, "intervention.fraction=0.15")
    changes, scores = found.edited.changes, found.traced.scores
    heads = [unit.name for unit in found.unit.units]
    key = mixed_seed(0, 0)
    same = np.random.Generator(np.random.Philox(key=[key, int(scores.sample_ids[0])]))
    drawn = same.standard_normal(len(heads), dtype=np.float32)
    assert np.array_equal(drawn, scores.values[0])  # the stream of the scores, drawn here
    ids, first = np.unique(changes.sample_ids, return_index=True)
    old = found.corpus.rows(ids).numpy()
    marks = np.stack([repeated(row, 3) for row in old])
    counts = np.bincount(old[marks], minlength=found.corpus.vocab_size)
    equal = []
    for row, mark, at, sample in zip(old, marks, first, ids, strict=True):
        own = np.random.Generator(np.random.Philox(key=[key, int(sample)]))
        of_the_scores = fresh(row, mark, counts / counts.sum(), 3, own)[mark]
        equal.append((of_the_scores == changes.tokens[at : at + mark.sum()]).mean())
    assert len(ids) > 10 and np.mean(equal) < 0.5


def test_a_budget_that_can_not_be_met_is_refused(arm):
    with pytest.raises(ConfigError, match=r"4096 tokens are to be replaced; the samples repeat"):
        arm("intervention.mode=spans", "intervention.fraction=0.8")


def test_float16_keeps_each_samples_values_to_eleven_bits():
    values = torch.randn(50, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values *= 10.0 ** torch.linspace(-12, 6, 50, dtype=torch.float64)[:, None]
    values[7] = 0
    tensors = packed(values)
    assert tensors["values"].dtype == torch.float16
    error = np.abs(unpacked(tensors) - values.numpy())
    small = values.abs().amax(1, keepdim=True).numpy() * 2.0**-29  # float16's smallest step
    assert (error <= np.maximum(np.abs(values.numpy()) * 2.0**-11, small) * 1.001).all()


def places(found, edited) -> frozenset[tuple[int, int]]:
    """Which rows of the window, in the order of its stream, and which of their positions."""
    row = {sample: at for at, sample in enumerate(found.traced.scores.sample_ids.tolist())}
    changes = edited.changes
    ids = changes.sample_ids.tolist()
    return frozenset(zip((row[one] for one in ids), changes.positions.tolist(), strict=True))


def test_tokens_that_are_drawn_depend_on_the_runs_seed_and_on_the_edits(traced):
    sets = set()
    for run in (0, 1):
        for own in (0, 1):
            edit = (*MASK, "intervention.select=random", f"intervention.seed={own}")
            found, context = traced("estimator=random", f"seed={run}", *edit)
            edited = make_edit(context.config.intervention, found.unit, found.traced.scores)
            sets.add(places(found, edited))
    assert len(sets) == 4


@pytest.mark.parametrize(("run", "own"), [(0, 0), (1, 2)])
def test_spans_become_draws_of_both_seeds_from_the_tokens_that_are_replaced(traced, run, own):
    edit = (*SPANS, f"intervention.seed={own}", "intervention.fraction=0.15")
    found, context = traced("estimator=random", f"seed={run}", *edit)
    changes = make_edit(context.config.intervention, found.unit, found.traced.scores).changes
    ids, first = np.unique(changes.sample_ids, return_index=True)
    old = found.corpus.rows(ids).numpy()
    marks = np.stack([repeated(row, 3) for row in old])
    counts = np.bincount(old[marks], minlength=found.corpus.vocab_size)
    for row, mark, at, sample in zip(old, marks, first, ids, strict=True):
        key = [mixed_seed(run, own, 2), int(sample)]
        drawn = np.random.Generator(np.random.Philox(key=key))
        expected = fresh(row, mark, counts / counts.sum(), 3, drawn)[mark]
        assert np.array_equal(changes.tokens[at : at + mark.sum()], expected)


def test_a_share_of_the_samples_is_one_of_the_class_that_is_asked_for(traced):
    """Scores of tokens that would choose others: each token is worth its sample's place."""
    share = ("intervention.label=generated_xml", "intervention.within=0.25")
    found, context = traced("estimator=random", *MASK, *share)
    scores, corpus = found.traced.scores, found.corpus
    worth = np.arange(len(scores.sample_ids), dtype=np.float32)[:, None]
    tokens = TokenScores(
        scores.sample_ids, scores.steps, lambda: iter([worth + np.zeros((1, 32), np.float32)])
    )
    changes = make_edit(context.config.intervention, found.unit, scores, tokens).changes
    own = np.array(corpus.labels_of(scores.sample_ids)) == "generated_xml"
    values = np.where(own, scores.of(found.unit.name), -np.inf)
    best = np.argsort(-values, kind="stable")[: int(0.25 * own.sum() + 0.5)]
    last = scores.sample_ids[sorted(best.tolist())[-2:]]  # 51 tokens, of which a sample has 32
    assert set(changes.sample_ids.tolist()) == set(last.tolist())


def test_a_matched_draw_may_hold_targeted_tokens_where_that_is_allowed(traced):
    same = ("intervention.match=sample", "intervention.fraction=0.1")
    for allowed in ("exclude", "allow"):
        word = f"intervention.match_targeted={allowed}"
        found, context = traced("estimator=random", *MASK, *same, word)
        scores = found.traced.scores
        values = np.random.default_rng(0).normal(size=(160, 32)).astype(np.float32)
        tokens = TokenScores(scores.sample_ids, scores.steps, lambda v=values: iter([v]))
        edited = make_edit(context.config.intervention, found.unit, scores, tokens)
        best = np.argsort(-values.ravel(), kind="stable")[: round(0.1 * 160 * 32)]
        targeted = {(int(i // 32), int(i % 32)) for i in best}
        overlap = len(places(found, edited) & targeted)
        assert len(edited.changes.sample_ids) == len(best)
        assert overlap > 20 if allowed == "allow" else overlap == 0  # 51 by chance
