"""Influence through the training against retraining, in float64 and with the real training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from mda.data.stream import open_corpus, schedule, stream_order
from mda.data.tokens import build_tokens, map_rows
from mda.estimator.replay import TrainingState, Window, load_state, perturbed, replay
from mda.estimator.unrolled import Progress, head_metric, unrolled_influence
from mda.model.pythia import scratch
from mda.schema import ModelConfig, TrainingConfig
from mda.training.loop import train
from mda.training.optimizer import learning_rate
from mda.types import Schedule

SHAPE = ModelConfig(
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


TOKENS = random_tokens((START + STEPS) * BATCH, 9, seed=1)
REPEATED = random_tokens(5, LENGTH, seed=2).repeat(1, 2)


def plan_of(start, end):
    ids = np.arange(start * BATCH, end * BATCH)
    offsets = np.arange(0, len(ids) + 1, BATCH)
    weights = np.random.default_rng(3).uniform(0.5, 1.5, len(TOKENS))[ids]
    return Schedule(start, BATCH, offsets, ids, weights)


def copying(model):
    """Mean log-probability of the second copy's tokens: goes through every parameter."""
    logits = model(input_ids=REPEATED).logits[:, LENGTH - 1 : -1]
    return -F.cross_entropy(logits.flatten(0, 1), REPEATED[:, LENGTH:].flatten())


def induction(model):
    return head_metric("prefix_matching", 1, 0, REPEATED, LENGTH)(model)


MEASUREMENTS = (copying, induction)


@pytest.fixture(scope="module")
def window():
    torch.set_num_threads(1)
    model = scratch(SHAPE, 0).double()
    return Window(model, plan_of(START, START + STEPS), lambda ids: TOKENS[ids], SETTINGS)


@pytest.fixture(scope="module")
def start(window):
    """Ten updates into the training, so that the moments are not zero."""
    before = replace(window, plan=plan_of(0, START))
    weights = torch.cat([p.detach().flatten() for p in scratch(SHAPE, 0).double().parameters()])
    zeros = torch.zeros_like(weights)
    return replay(before, TrainingState(0, weights, zeros, zeros), range(START))[START]


def retrain(window, start, weights):
    """The same training written down once more: values of the measurements, and who was clipped."""
    model = scratch(SHAPE, 0).double()
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
        tokens = TOKENS[window.plan.sample_ids[here]]
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
    """Fourth-order central difference in one sample's weight."""
    h, difference = 1e-3, np.zeros(len(MEASUREMENTS))
    for factor, at in ((1, -2), (-8, -1), (8, 1), (-1, 2)):
        weights = window.plan.weights.copy()
        weights[n] += at * h
        values, clipped = retrain(window, start, weights)
        difference += factor * values / (12 * h)
        assert 3 < sum(clipped) < STEPS - 3
    print(n, scores[n].numpy(), scores[n].numpy()/difference-1)
    assert scores[n].numpy() == pytest.approx(difference, rel=1e-6)
