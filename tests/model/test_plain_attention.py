"""Attention written out against the fused kernel, transformers' own, and finite differences."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mda.data.stream import Corpus
from mda.emergence.measure import Probes, measure
from mda.model.architecture import architecture
from mda.model.build import scratch
from mda.model.plain_attention import PlainAttention, eager_attention
from mda.schema import HeadConfig, ProbeConfig, ScratchConfig
from mda.schema.metrics import HEAD_METRICS
from mda.training.loss import sample_losses
from mda.unit.attention_head import AttentionHeads
from mda.unit.kind import Materials


def heads(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


QUERY, KEY, VALUE = (heads(2, 4, 5, 6, seed=seed) for seed in range(3))
MASK = torch.tensor([[True] * (t + 1) + [False] * (4 - t) for t in range(5)])
CALLS = {
    "causal": {"is_causal": True},
    "all": {},
    "scaled": {"is_causal": True, "scale": 0.3},
    "boolean mask": {"attn_mask": MASK[None, None]},
    "added mask": {"attn_mask": heads(2, 1, 5, 5, seed=3)},
}


@pytest.mark.parametrize("call", CALLS)
def test_is_the_fused_kernel(call):
    with PlainAttention():
        ours = F.scaled_dot_product_attention(QUERY, KEY, VALUE, **CALLS[call])
    torch.testing.assert_close(
        ours, F.scaled_dot_product_attention(QUERY, KEY, VALUE, **CALLS[call])
    )


def test_query_heads_that_share_a_key_head_are_the_fused_kernel():
    shared = KEY[:, :2], VALUE[:, :2]
    call = {"is_causal": True, "enable_gqa": True}
    with PlainAttention():
        ours = F.scaled_dot_product_attention(QUERY, *shared, **call)
    torch.testing.assert_close(ours, F.scaled_dot_product_attention(QUERY, *shared, **call))


def test_second_derivatives_are_finite_differences():
    def attend(query, key, value):
        with PlainAttention():
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    inputs = [x[:1, :1, :3].clone().requires_grad_() for x in (QUERY, KEY, VALUE)]
    assert torch.autograd.gradgradcheck(attend, inputs)


def test_dropout_is_refused():
    with PlainAttention(), pytest.raises(ValueError, match=r"dropout is 0\.1; expected 0"):
        F.scaled_dot_product_attention(QUERY, KEY, VALUE, dropout_p=0.1)


SHAPES = {
    "gpt_neox": ScratchConfig(),
    "llama": ScratchConfig(family="llama", n_key_value_heads=2),
}


@pytest.fixture(scope="module", params=SHAPES)
def model(request):
    """The nano shape with weights that make attention uneven."""
    torch.set_num_threads(1)
    model = scratch(SHAPES[request.param], 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim == 2 else 1)
    return model


TOKENS = torch.randint(512, (4, 65), generator=torch.Generator().manual_seed(1))


def test_a_model_s_losses_and_gradients_are_those_of_training_up_to_rounding(model):
    parameters = list(model.parameters())
    fused = sample_losses(model, TOKENS)
    fused_gradient = torch.autograd.grad(fused.mean(), parameters)
    with PlainAttention():
        plain = sample_losses(model, TOKENS)
    gradient = torch.autograd.grad(plain.mean(), parameters)
    rounding = 20 * torch.finfo(torch.float32).eps
    assert (plain - fused).abs().max() < rounding * fused.max()
    for ours, theirs in zip(gradient, fused_gradient, strict=True):
        assert (ours - theirs).norm() < rounding * torch.cat([g.flatten() for g in gradient]).norm()


def test_patterns_are_those_of_eager_attention(model):
    with PlainAttention(keep=True) as attention, torch.no_grad():
        model(input_ids=TOKENS, use_cache=False)
    with eager_attention(model), torch.no_grad():
        theirs = model(input_ids=TOKENS, output_attentions=True, use_cache=False).attentions
    assert len(attention.patterns) == len(theirs) == 4
    for a, b in zip(attention.patterns, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("metric", list(HEAD_METRICS))
def test_what_is_differentiated_of_heads_is_the_metric_that_is_monitored(model, metric):
    """Of one head, and as a mechanism the mean of two in different layers."""
    counts, length = np.ones(512, np.int64), 20
    corpus = Corpus(TOKENS.numpy(), None, (), 512, (), counts, None, np.arange(4), "random")
    settings = HeadConfig(metric=metric, probe=ProbeConfig(n_sequences=4, length=length))
    kind = AttentionHeads(settings, Materials(corpus, architecture(model)))
    repeated = kind.metric_tokens_MT
    assert torch.equal(repeated[:, :length], repeated[:, length:])
    monitored = measure(model, Probes(repeated, length, TOKENS, ("a",) * 4, (60, 64), (0, 10)))
    names = ["L3H2", "L0H1"]
    expected = [monitored[f"emergence/{metric}/{name}"] for name in names]
    assert expected[0] != pytest.approx(expected[1], rel=0.01)
    for name, value in zip([*names, "mechanism"], [*expected, np.mean(expected)], strict=True):
        ours = kind.differentiable(name, names)(model)
        assert ours.item() == pytest.approx(value, rel=1e-5), name
