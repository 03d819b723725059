"""TracIn is a sum of gradient dot products."""

import copy
from dataclasses import replace

import pytest
import torch
from in_memory import ADAM_EPS, Case, InMemoryWork, materials
from plain_gradients import block_gradients, own

from mda.estimator.influence import (
    Ekfac,
    Exact,
    Tracin,
    adam_step_sizes,
    preconditioned,
    spread,
)
from mda.estimator.score import score_samples
from mda.schema import (
    ConfigError,
    EkfacConfig,
    ExactConfig,
    HeadConfig,
    ProbeConfig,
    TracinConfig,
)
from mda.types import Window
from mda.unit.attention_head import AttentionHeads
from mda.unit.blocks import Directions
from mda.unit.capture import capture
from mda.unit.measurement import copy_objective

HEADS = HeadConfig(
    biases=True, probe=ProbeConfig(n_sequences=3, length=5, distribution="uniform", seed=0)
)
ROWS_OF_PROBE = {"n": 3, "length": 5, "seed": 0}


def plain_products(model, table, probe, blocks, units):
    """<grad f, grad L(z)> of every sample and unit by autograd, [N, U]."""
    rows = [block_gradients(model, blocks, row) for row in table.tokens]
    return torch.stack(
        [
            torch.stack([sum((probe[b][h] * row[b][h]).sum() for b, h in u.parts) for u in units])
            for row in rows
        ]
    )


def work_of(models, table, rates=None):
    kind = AttentionHeads(HEADS, materials(table.corpus, models[0]))
    return InMemoryWork(
        table.corpus, table.ids, kind, kind.units([]), models, sorted(models), rates=rates or {}
    )


def later(model):
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.1)
    return changed


def test_one_checkpoint_is_minus_the_gradient_dot_product(case, table):
    probabilities = torch.full((40,), 1 / 40, dtype=torch.float64)
    probe = copy_objective(probabilities, **ROWS_OF_PROBE).gradients(case.model, case.blocks)
    directions = Directions.of(case.units, preconditioned(probe))
    scores = score_samples(case.model, table.rows, table.ids, directions, 4)
    expected = -plain_products(case.model, table, probe, case.blocks, case.units)
    torch.testing.assert_close(scores.values_NU, expected)


@pytest.mark.parametrize("family", ["toy", "llama"])
@pytest.mark.parametrize("weighted", [True, False])
def test_checkpoints_are_summed_with_their_learning_rates(request, table, family, weighted):
    model = request.getfixturevalue(family)
    models, rates = {0: model, 5: later(model)}, {0: 0.3, 5: 0.1}
    work = work_of(models, table, rates)
    scores = Tracin(TracinConfig(lr_weights=weighted, batch_size=4)).score(work)
    expected = torch.zeros_like(scores.values_NU)
    blocks = Case.of(model, "heads").blocks
    for step, at_step in models.items():
        probe = work.gradients(at_step)
        weight = rates[step] if weighted else 1
        expected -= weight * plain_products(at_step, table, probe, blocks, work.units)
    torch.testing.assert_close(scores.values_NU, expected)
    at_last = capture(models[5], table.tokens, [blocks[0].input.module]).losses_B
    torch.testing.assert_close(scores.losses_N, at_last)


def test_adams_step_sizes_multiply_the_gradient(toy, table):
    generator = torch.Generator().manual_seed(7)
    moments = {
        name: torch.rand(p.shape, generator=generator, dtype=p.dtype) + 0.1
        for name, p in toy.named_parameters()
    }
    work = replace(work_of({0: toy}, table, {0: 0.3}), moments={0: moments})
    scores = Tracin(TracinConfig(adam_preconditioning=True)).score(work)
    rooted = {name: 1 / (v.sqrt() + ADAM_EPS) for name, v in moments.items()}
    blocks, gradients = Case.of(toy, "heads").blocks, work.gradients(toy)
    plain = {b: gradients[b] * layout(toy, b, rooted) for b in blocks}
    expected = -0.3 * plain_products(toy, table, plain, blocks, work.units)
    torch.testing.assert_close(scores.values_NU, expected)


def test_no_checkpoint_is_refused(toy, table):
    work = replace(work_of({0: toy}, table), steps=())
    with pytest.raises(ValueError, match="no checkpoint"):
        Tracin(TracinConfig()).score(work)


def layout(model, block, tensors):
    """Tensors by parameter name as a block [H, I, J], by slices written out by hand."""
    return torch.stack([own(model, block, h, tensors) for h in range(block.owners)])


def test_adam_step_sizes_follow_the_layout_of_the_weights(case):
    moments = {name: p.detach().square() for name, p in case.model.named_parameters()}
    sizes = adam_step_sizes(moments, case.blocks, eps=0.0)
    inverse = {name: 1 / p.detach().abs() for name, p in case.model.named_parameters()}
    for block in case.blocks:
        assert sizes[block].shape == block.shape
        torch.testing.assert_close(sizes[block], layout(case.model, block, inverse))


def test_adam_step_sizes_of_a_packed_head(toy):
    moments = {name: p.detach().square() for name, p in toy.named_parameters()}
    qk, _, o = Case.of(toy, "heads").blocks[3:]  # of the second layer
    sizes, module = adam_step_sizes(moments, [qk, o], eps=0.0), toy.gpt_neox.layers[1].attention
    query_of_head_1 = module.query_key_value.weight[18:24].T  # K = 6: head 1 begins at row 18
    torch.testing.assert_close(sizes[qk][1, :12, :6], 1 / query_of_head_1.abs())
    torch.testing.assert_close(sizes[qk][1, 12, :6], 1 / module.query_key_value.bias[18:24].abs())
    torch.testing.assert_close(sizes[o][1], 1 / module.dense.weight[:, 6:12].T.abs())


def test_adam_step_sizes_of_grouped_heads_and_gated_neurons(llama):
    moments = {name: p.detach().square() for name, p in llama.named_parameters()}
    (qk, v, _), (into, out) = (Case.of(llama, kind).blocks[:n]
                               for kind, n in (("heads", 3), ("neurons", 2)))  # fmt: skip
    sizes, layer = adam_step_sizes(moments, [qk, v, into, out], eps=0.0), llama.model.layers[0]
    attention, mlp = layer.self_attn, layer.mlp
    for head, group in enumerate((0, 0, 1, 1)):  # K = 4
        key = attention.k_proj.weight[4 * group : 4 * group + 4].T
        torch.testing.assert_close(sizes[qk][head, :16, 4:], 1 / key.abs())
        query = attention.q_proj.weight[4 * head : 4 * head + 4].T
        torch.testing.assert_close(sizes[qk][head, :16, :4], 1 / query.abs())
        bias = attention.v_proj.bias[4 * group : 4 * group + 4]
        torch.testing.assert_close(sizes[v][head, 16], 1 / bias.abs())
    torch.testing.assert_close(sizes[into][7, :16, 0], 1 / mlp.gate_proj.weight[7].abs())
    torch.testing.assert_close(sizes[into][7, :16, 1], 1 / mlp.up_proj.weight[7].abs())
    torch.testing.assert_close(sizes[into][7, 16, 1], 1 / mlp.up_proj.bias[7].abs())
    torch.testing.assert_close(sizes[out][7, 0], 1 / mlp.down_proj.weight[:, 7].abs())


def test_a_missing_second_moment_is_named(toy):
    with pytest.raises(KeyError, match=r"gpt_neox.layers.0.attention.query_key_value.weight"):
        adam_step_sizes({}, Case.of(toy, "heads").blocks, eps=0.0)


def test_adams_moments_are_asked_of_no_checkpoint_before_the_first_update():
    kept, window = [0, 10, 20, 30, 40, 50], Window(0, 40, None, "")
    assert Tracin(TracinConfig(n_checkpoints=3)).steps(kept, window) == (0, 20, 40)
    adam = TracinConfig(n_checkpoints=2, adam_preconditioning=True)
    assert Tracin(adam).steps(kept, window) == (10, 40)
    with pytest.raises(ConfigError, match=r"^estimator.adam_preconditioning=true .* after step 0"):
        Tracin(adam).steps(kept, Window(0, 9, None, ""))
    start = Window(0, 4, None, "")
    for make, settings in ((Ekfac, EkfacConfig), (Exact, ExactConfig)):
        assert make(settings(adam_damping=True)).steps([0, 4, 8], start) == (4,)
        assert make(settings()).steps([0, 4, 8], start) == (0,)  # of two as near the earlier one


def test_which_checkpoints_are_read():
    kept, window = [0, 10, 20, 30, 40, 50], Window(10, 40, None, "")
    assert Tracin(TracinConfig(n_checkpoints=None)).steps(kept, window) == (10, 20, 30, 40)
    assert Tracin(TracinConfig(n_checkpoints=2)).steps(kept, window) == (10, 40)
    assert Tracin(TracinConfig(checkpoints=[0, 50])).steps(kept, window) == (0, 50)
    with pytest.raises(ConfigError, match=r"estimator.checkpoints=7: .* expected 0, 10, 20"):
        Tracin(TracinConfig(checkpoints=[7])).steps(kept, window)


STEPS = [1750, 2000, 2048, 2250, 2500, 2750, 3000, 3250, 3500]


@pytest.mark.parametrize(
    ("n", "wanted"),
    [
        (1, (2500,)),  # the middle is 2625: of two as near the earlier one
        (2, (1750, 3500)),
        (3, (1750, 2500, 3500)),
        (4, (1750, 2250, 3000, 3500)),
        (9, tuple(STEPS)),
        (50, tuple(STEPS)),
        (None, tuple(STEPS)),
    ],
)
def test_checkpoints_are_spread_over_the_steps_of_the_window(n, wanted):
    assert spread(STEPS, n) == wanted
