"""Influence through the training against retraining, in float64 and with the real training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from mda.data.stream import open_corpus, stream_order, unedited
from mda.data.token_files import map_rows
from mda.data.tokens import build_tokens
from mda.estimator.replay import TrainingState, TrainingWindow, load_state, perturbed, replay
from mda.estimator.unrolled import Progress, unrolled_influence
from mda.model.build import scratch
from mda.model.plain_attention import PlainAttention
from mda.schema import ScratchConfig, TrainingConfig
from mda.training.loop import train
from mda.training.optimizer import learning_rate
from mda.types import Stream

SHAPE = ScratchConfig(
    n_layers=2, d_model=16, n_heads=2, d_ff=32, vocab_size=30, max_seq_len=16, rotary_pct=0.5
)
START, STEPS, BATCH = 10, 20, 3
SETTINGS = TrainingConfig(
    batch_size=BATCH,
    total_steps=60,
    warmup_steps=18,  # ends inside the window
    peak_lr=2e-2,
    weight_decay=0.1,
    grad_clip=1.1,
    accelerator="cpu",
    threads=1,
)
LENGTH = 6


def random_tokens(n, length, seed):
    return torch.randint(SHAPE.vocab_size, (n, length), generator=torch.manual_seed(seed))


TOKENS = random_tokens((START + STEPS + 2) * BATCH, 9, seed=1)
REPEATED = random_tokens(5, LENGTH, seed=2).repeat(1, 2)


def stream_of(start, end):
    ids = np.arange(start * BATCH, end * BATCH)
    offsets = np.arange(0, len(ids) + 1, BATCH)
    weights = np.random.default_rng(3).uniform(0.5, 1.5, len(TOKENS))[ids]
    return Stream(start, BATCH, offsets, ids, weights)


def copying(model):
    """Mean log-probability of the second copy's tokens: goes through every parameter."""
    logits = model(input_ids=REPEATED).logits[:, LENGTH - 1 : -1]
    return -F.cross_entropy(logits.flatten(0, 1), REPEATED[:, LENGTH:].flatten())


def induction(model):
    """L1H0's attention from each token of the second copy to the one after its first occurrence."""
    with PlainAttention(keep=True) as attention:
        model(input_ids=REPEATED, use_cache=False)
    copies = range(LENGTH, 2 * LENGTH)
    return torch.stack([attention.patterns[1][:, 0, t, t - LENGTH + 1] for t in copies]).mean()


MEASUREMENTS = (copying, induction)


@pytest.fixture(scope="module")
def window():
    torch.set_num_threads(1)
    model = scratch(SHAPE, 0).double()
    return TrainingWindow(model, stream_of(START, START + STEPS), lambda ids: TOKENS[ids], SETTINGS)


@pytest.fixture(scope="module")
def start(window):
    """Ten updates into the training, so that the moments are not zero."""
    before = replace(window, stream=stream_of(0, START))
    weights = torch.cat([p.detach().flatten() for p in scratch(SHAPE, 0).double().parameters()])
    zeros = torch.zeros_like(weights)
    return {START: replay(before, TrainingState(0, weights, zeros, zeros), range(START))[START]}


def retrain(window, start, weights):
    """The same training written down once more: values of the measurements, and who was clipped."""
    model, start = scratch(SHAPE, 0).double(), start[START]
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": SETTINGS.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        betas=(SETTINGS.beta1, SETTINGS.beta2),
        eps=SETTINGS.eps,
        foreach=False,
    )
    offset = 0
    with torch.no_grad():
        for p in model.parameters():
            here = slice(offset, offset + p.numel())
            p.copy_(start.weights_P[here].view_as(p))
            optimizer.state[p] = {
                "step": torch.tensor(float(START)),
                "exp_avg": start.exp_avg_P[here].view_as(p).clone(),
                "exp_avg_sq": start.exp_avg_sq_P[here].view_as(p).clone(),
            }
            offset += p.numel()
    clipped = []
    for i in range(STEPS):
        here = slice(i * BATCH, (i + 1) * BATCH)
        tokens = TOKENS[window.stream.sample_ids[here]]
        loss = 0.0
        for row, weight in zip(tokens, weights[here], strict=True):
            logits = model(input_ids=row[None, :-1]).logits[0]
            loss = loss + weight * F.cross_entropy(logits, row[1:]) / BATCH
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), SETTINGS.grad_clip)
        clipped.append(float(norm) > SETTINGS.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(START + i, SETTINGS)
        optimizer.step()
    with torch.no_grad():
        return np.array([float(f(model)) for f in MEASUREMENTS]), clipped


def last(items):
    *_, item = items
    return item


@pytest.fixture(scope="module")
def scores(window, start):
    return last(unrolled_influence(window, start, MEASUREMENTS)).values_NU


@pytest.mark.parametrize("n", [0, 1, 20, 31, 46, 59])
def test_score_is_the_finite_difference_of_retraining(window, start, scores, n):
    """Fourth-order central difference in one sample's weight; float32 anywhere would miss it."""
    h, difference = 1e-3, np.zeros(len(MEASUREMENTS))
    for factor, at in ((1, -2), (-8, -1), (8, 1), (-1, 2)):
        weights = window.stream.weights.copy()
        weights[n] += at * h
        values, clipped = retrain(window, start, weights)
        difference += factor * values / (12 * h)
        assert 3 < sum(clipped) < STEPS - 3
    assert scores[n].numpy() == pytest.approx(difference, rel=1e-8)


def test_a_sample_s_score_does_not_depend_on_the_other_measurements(window, start, scores):
    alone = last(unrolled_influence(window, start, [induction])).values_NU
    torch.testing.assert_close(alone[:, 0], scores[:, 1], rtol=1e-9, atol=0)


@pytest.mark.parametrize("segment", [1, 6, STEPS])
def test_recomputed_states_give_the_same_scores_bit_for_bit(window, start, scores, segment):
    items = list(unrolled_influence(window, start, MEASUREMENTS, segment=segment))
    assert len(items) == -(-STEPS // segment)
    assert torch.equal(items[-1].values_NU, scores)


@pytest.mark.parametrize("segment", [None, 4])
@pytest.mark.parametrize("steps", [[12, 25], [29], range(START, START + STEPS + 2)])
def test_known_states_change_nothing(window, start, scores, segment, steps):
    """Some beyond the window too, as a run's checkpoints are."""
    longer = replace(window, stream=stream_of(START, START + STEPS + 2))
    replayed = replay(longer, start[START], range(START, START + STEPS + 2))
    known = start | {step: replayed[step] for step in steps}
    values = last(unrolled_influence(window, known, MEASUREMENTS, segment=segment)).values_NU
    assert torch.equal(values, scores)
    end = {"last_steps": 7, "segment": segment}
    values = last(unrolled_influence(window, known, MEASUREMENTS, **end)).values_NU
    assert torch.equal(values[-7 * BATCH :], scores[-7 * BATCH :])
    assert not values[: -7 * BATCH].any()


@pytest.mark.parametrize("size", [1, 2])
def test_micro_batches_give_the_same_scores_up_to_rounding(window, start, scores, size):
    cut = replace(window, settings=replace(SETTINGS, micro_batch_size=size))
    values = last(unrolled_influence(cut, start, MEASUREMENTS)).values_NU
    torch.testing.assert_close(values, scores, rtol=1e-8, atol=1e-12)


def test_a_step_without_samples_is_one_whose_samples_weigh_nothing(window, start):
    """Its update moves the weights all the same, by momentum."""
    stream, gone = window.stream, slice(5 * BATCH, 6 * BATCH)
    weightless = stream.weights.copy()
    weightless[gone] = 0
    offsets = stream.offsets - BATCH * (np.arange(STEPS + 1) > 5)
    dropped = replace(
        stream,
        offsets=offsets,
        sample_ids=np.delete(stream.sample_ids, gone),
        weights=np.delete(stream.weights, gone),
    )
    with_zeros, without = (
        last(unrolled_influence(replace(window, stream=p), start, MEASUREMENTS)).values_NU
        for p in (replace(stream, weights=weightless), dropped)
    )
    kept = torch.from_numpy(np.delete(np.arange(STEPS * BATCH), gone))
    torch.testing.assert_close(with_zeros[kept], without, rtol=1e-8, atol=1e-12)
    assert with_zeros[gone].any()


@pytest.mark.parametrize("n_done", range(1, 7))
def test_resumed_from_any_file_is_uninterrupted(window, start, tmp_path, n_done):
    """Two perturbed runs of three segments each, stopped after each of the six."""
    settings = {"segment": 7, "n_perturbed": 2, "seed": 4}
    whole = list(unrolled_influence(window, start, MEASUREMENTS, **settings))
    save_file(whole[n_done - 1].tensors(), tmp_path / "progress")
    progress = Progress.of(load_file(tmp_path / "progress"))
    rest = list(unrolled_influence(window, start, MEASUREMENTS, **settings, resume=progress))
    assert [n_done + len(rest), len(whole)] == [6, 6]
    assert torch.equal([progress, *rest][-1].values_NU, whole[-1].values_NU)


def test_last_steps_are_the_same_as_in_the_whole_window(window, start, scores):
    end = last(unrolled_influence(window, start, MEASUREMENTS, last_steps=7, segment=3)).values_NU
    assert torch.equal(end[-7 * BATCH :], scores[-7 * BATCH :])
    assert not end[: -7 * BATCH].any()


def test_perturbed_scores_are_the_mean_over_perturbed_starts(window, start, scores):
    settings = {"perturbation": 0.02, "seed": 5}
    mean = last(unrolled_influence(window, start, MEASUREMENTS, n_perturbed=3, **settings))
    starts = [perturbed(window, start[START], 0.02, seed=5, run=run) for run in range(3)]
    each = [last(unrolled_influence(window, {START: s}, MEASUREMENTS)).values_NU for s in starts]
    torch.testing.assert_close(mean.values_NU, torch.stack(each).mean(0))
    assert not torch.allclose(each[0], each[1], rtol=1e-3)


def test_perturbation_is_relative_to_each_parameter_s_spread(window, start):
    start = start[START]
    noisy = perturbed(window, start, 0.03, seed=0, run=0)
    again = perturbed(window, start, 0.03, seed=0, run=0)
    assert torch.equal(noisy.weights_P, again.weights_P)
    parts = zip(window.split(noisy.weights_P), window.split(start.weights_P), strict=True)
    sizes = [((new - old).std() / old.std()).item() for new, old in parts if old.numel() > 400]
    assert len(sizes) > 5
    assert sizes == pytest.approx([0.03] * len(sizes), rel=0.15)  # standard error 3.5 %
    assert torch.equal(noisy.exp_avg_sq_P, start.exp_avg_sq_P)


def test_the_planted_sample_has_the_highest_score(window, start):
    """Measured is one sequence's likelihood; it is trained on once, among 59 others."""

    def likelihood(model):
        logits = model(input_ids=TOKENS[77][None, :-1]).logits[0]
        return -F.cross_entropy(logits, TOKENS[77][1:])

    values = last(unrolled_influence(window, start, [likelihood])).values_NU[:, 0]
    assert window.stream.sample_ids[values.argmax()] == 77
    assert values.max() > 3 * values.sort().values[-2] > 0


def test_replay_and_the_real_training_end_in_the_same_state_bit_for_bit(tmp_path):
    rows = np.random.default_rng(0).integers(2, 30, (120, 17), np.uint16)
    np.save(tmp_path / "rows.npy", rows)
    build_tokens(
        tmp_path / "corpus",
        path=tmp_path / "rows.npy",
        seq_len=16,
        dtype="uint16",
        vocab_size=30,
        special_ids=(0, 1),
        held_out=16,
    )
    corpus = open_corpus(tmp_path / "corpus", "fp", map_rows(tmp_path / "rows.npy", 16))
    order = stream_order(corpus, 0)
    train(
        tmp_path / "run",
        scratch(SHAPE, 0),
        corpus,
        unedited(order, BATCH, 0, 30),
        SETTINGS,
        checkpoints=[0, 10, 30],
        progress=None,
    )
    folders = {step: tmp_path / "run" / "checkpoints" / f"step_{step}" for step in (0, 10, 30)}
    model = scratch(SHAPE, 1)
    end = load_state(folders[30], model, SETTINGS)
    for step in (0, 10):
        stream = unedited(order, BATCH, step, 30)
        window = TrainingWindow(model, stream, corpus.rows, SETTINGS)
        state = load_state(folders[step], model, SETTINGS)
        assert state.updates == step
        again = replay(window, state, range(step, 30), keep=[30])[30]
        assert again.updates == 30
        assert torch.equal(again.weights_P, end.weights_P)
        assert torch.equal(again.exp_avg_P, end.exp_avg_P)
        assert torch.equal(again.exp_avg_sq_P, end.exp_avg_sq_P)


@pytest.mark.parametrize("wrong", [{"segment": 0}, {"last_steps": STEPS + 1}])
def test_a_number_that_does_not_fit_the_window_is_refused(window, start, wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=rf"{name}={value}; expected 1 to the window's 20 steps"):
        next(unrolled_influence(window, start, MEASUREMENTS, **wrong))


def test_training_that_can_not_be_repeated_is_refused(window):
    with pytest.raises(ValueError, match="precision=bf16-mixed; expected 32-true"):
        replace(window, settings=replace(SETTINGS, precision="bf16-mixed"))
    model = scratch(SHAPE, 0)
    model.gpt_neox.emb_dropout.p = 0.1
    with pytest.raises(ValueError, match=r"dropout of 0\.1 in gpt_neox\.emb_dropout"):
        replace(window, model=model)
