"""A planted attention sink: where EK-FAC's factors may not be taken from each side by itself.

Every query of the second layer attends to the first position, whose value collects the gradient of
all later ones while its own input is small: a massive activation in a feature that the norm scales
down, as pretrained models have it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import LlamaConfig, LlamaForCausalLM

from mda.estimator import exact, kfac_math
from mda.estimator.ekfac import Fit, Labels, fit_curvature
from mda.estimator.influence import sequence_gradients_of
from mda.estimator.score import score_samples, target_influence, token_influence
from mda.model.architecture import architecture
from mda.types import Part, Unit
from mda.unit.blocks import Directions
from mda.unit.capture import capture

N_VOCAB, D, T, HEADS, D_HEAD = 40, 48, 16, 2, 4
FIT, SCORED = np.arange(1000), np.arange(1000, 1300)
DAMPING = 0.1


@pytest.fixture(scope="module")
def planted():
    """The model in float64, and rows that begin with token 0, whose embedding is massive."""
    config = LlamaConfig(
        num_hidden_layers=2, hidden_size=D, num_attention_heads=HEADS, num_key_value_heads=HEADS,
        head_dim=D_HEAD, intermediate_size=2 * D, vocab_size=N_VOCAB, attention_bias=True,
        max_position_embeddings=T + 1, pad_token_id=None, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.15, generator=generator)
        model.model.embed_tokens.weight[0, 0] = 300
        for layer in model.model.layers:
            layer.input_layernorm.weight[0] = 0.4
            layer.post_attention_layernorm.weight[0] = 0.02
        model.model.norm.weight[0] = 0.02
        attention = model.model.layers[1].self_attn  # in the features that rotate most slowly
        attention.q_proj.bias[1 :: D_HEAD // 2] = 1
        attention.k_proj.weight[1 :: D_HEAD // 2, 0] = 3.5
    rows = torch.randint(1, N_VOCAB, (1300, T + 1), generator=generator)
    rows[:, 0] = 0
    return model, rows


def value_block(model):
    return architecture(model).head_blocks(1)["v"]


def influence(model, rows, block, direction_HIJ):
    """Influence of every token on the first head, [SCORED, T]."""
    unit = Unit("L1H0", (Part(block, 0),))
    directions = Directions.of([unit], {block: direction_HIJ})
    return token_influence(model, rows[SCORED], directions)[..., 0]


def share_of_first(influence_NT):
    size = influence_NT.abs()
    return (size[:, 0] / size.sum(1)).mean().item()


def test_the_sink_is_one(planted):
    model, rows = planted
    block = value_block(model)
    captured = capture(model, rows[:100], block.modules)
    dy, x = (side.square().sum((0, 2, 3)) for side in (captured.dy(block), captured.x(block)))
    assert dy[0] > 0.9 * dy.sum() and x[0] < 0.2 * x.mean()


@pytest.fixture(scope="module")
def judged(planted):
    """Influence by exact curvature and by each basis."""
    model, rows = planted
    block = value_block(model)
    generator = torch.Generator().manual_seed(2)
    v_HIJ = torch.randn(block.shape, generator=generator, dtype=torch.float64)
    parts = sequence_gradients_of(model, rows.__getitem__, FIT, Fit([block], batch_size=100))
    found = exact.inverse_times(parts[:, 0].flatten(1), v_HIJ[:1].flatten(1), DAMPING)
    directions = {"exact": torch.stack([found.view_as(v_HIJ[0])] * HEADS)}
    for factors in ("independent", "weighted", "sequence"):
        wanted = Fit([block], batch_size=100, factors=factors)
        fitted = fit_curvature(model, rows.__getitem__, FIT, wanted)
        directions[factors] = fitted.inverse_times({block: v_HIJ}, DAMPING)[block]
    return {name: influence(model, rows, block, d) for name, d in directions.items()}


def agreement(judged, factors):
    return spearmanr(judged[factors].sum(1), judged["exact"].sum(1)).statistic


def test_factors_of_each_side_by_itself_score_the_sink(judged):
    assert agreement(judged, "independent") < 0.6
    assert share_of_first(judged["independent"]) > 3 * share_of_first(judged["exact"])


@pytest.mark.parametrize("factors", ["weighted", "sequence"])
def test_factors_of_the_gradient_agree_with_the_exact_curvature(judged, factors):
    assert agreement(judged, factors) > 0.85
    assert share_of_first(judged[factors]) < share_of_first(judged["exact"]) + 0.02


def test_skipped_positions_are_in_no_score_and_in_no_fit(planted):
    """Scores, divided by where the unit acts and by loss, are those of the other positions."""
    model, rows = planted
    block, ids = value_block(model), SCORED[:20]
    generator = torch.Generator().manual_seed(3)
    direction = torch.randn(block.shape, generator=generator, dtype=torch.float64)
    unit = Unit("L1H0", (Part(block, 0),))
    directions = Directions.of([unit], {block: direction})
    every = token_influence(model, rows[ids], directions)[..., 0]
    skipped = token_influence(model, rows[ids], directions, skip=2)[..., 0]
    assert not skipped[:, :2].any()
    torch.testing.assert_close(skipped[:, 2:], every[:, 2:])
    scores = score_samples(model, rows.__getitem__, ids, directions, 8, skip=2).values_NU[:, 0]
    torch.testing.assert_close(scores, every[:, 2:].sum(1))
    for skip in (0, 2):
        tangents = directions.tangents(unit, dict(model.named_parameters()))
        by_loss = target_influence(model, rows[ids], tangents, skip)
        torch.testing.assert_close(by_loss.sum(1), every[:, skip:].sum(1))

    for factors in ("independent", "weighted", "sequence"):
        wanted = Fit([block], Labels("empirical"), 8, factors=factors, skip=2)
        fitted = fit_curvature(model, rows.__getitem__, ids, wanted)
        captured = capture(model, rows[ids], block.modules)
        x, dy = captured.x(block)[:, 2:], captured.dy(block)[:, 2:]
        for q, moment in zip(
            fitted.basis(block), kfac_math.factor_sums(x, dy, factors), strict=True
        ):
            turned = q.transpose(1, 2) @ moment @ q
            off = turned - torch.diag_embed(turned.diagonal(dim1=1, dim2=2))
            assert off.abs().max() < 1e-9 * turned.abs().max()
    wanted = Fit([block], Labels("empirical"), 8, skip=2)
    parts = sequence_gradients_of(model, rows.__getitem__, ids, wanted)
    torch.testing.assert_close(parts, kfac_math.sequence_gradients(x, dy))
