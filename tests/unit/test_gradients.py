"""Gradients of every block of every head, against autograd and through the whole model."""

import pytest
import torch
import torch.nn.functional as F
from mda.model.head_layout import BLOCKS, attention, block_bias, block_weight
from mda.unit.gradients import capture
from mda.unit.subspace import (
    BlockId,
    Subspace,
    Units,
    all_heads,
    block_gradients,
    mechanism,
    pack_direction,
    single_head,
    token_products,
)

from mda.types import HeadId

LAYERS, HEADS = range(3), range(2)


def sequence_losses(model, tokens):
    """Mean token loss of each sequence, from transformers' logits."""
    logits = model(tokens[:, :-1]).logits
    labels = tokens[:, 1:]
    return (
        F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        .view(labels.shape)
        .mean(1)
    )


def weight_of(model, at: BlockId):
    """One block of all heads, [H, I, J], a view into the parameters."""
    module = attention(model, at.layer)
    return block_weight(module.query_key_value.weight, module.dense.weight, at.block, 2)


def relative_error(ours, expected):
    return ((ours - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("bias", [False, True])
def test_every_block_of_every_head_equals_autograd(toy, tokens, bias):
    captured = capture(toy, tokens, LAYERS)
    sequence_losses(toy, tokens).sum().backward()
    for at in Subspace(bias=bias).ids(LAYERS):
        module = attention(toy, at.layer)
        qkv, dense = module.query_key_value, module.dense
        expected = block_weight(qkv.weight.grad, dense.weight.grad, at.block, 2)
        if bias and at.block != "o":
            expected = torch.cat((expected, block_bias(qkv.bias.grad, at.block, 2)), 1)
        ours = block_gradients(captured.layers[at.layer], at.block, bias)
        assert relative_error(ours, expected) < 1e-12, at  # both float64, some hundred additions


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("layer", LAYERS)
def test_every_block_of_every_head_equals_finite_differences(toy, tokens, layer, block):
    at = BlockId(layer, block)
    ours_HIJ = block_gradients(capture(toy, tokens, LAYERS).layers[layer], block)
    for head in HEADS:
        gradient = ours_HIJ[head]
        ascent = gradient / gradient.norm()  # the direction in which the derivative is largest
        weight = weight_of(toy, at)[head]
        original, moved = weight.detach().clone(), {}
        # a fourth-order stencil: error ~ step^4, and 1e-16 / step of rounding
        with torch.no_grad():
            for n in (-2, -1, 1, 2):
                weight.copy_(original + n * 1e-3 * ascent)
                moved[n] = sequence_losses(toy, tokens).sum().item()
            weight.copy_(original)
        numeric = (8 * (moved[1] - moved[-1]) - (moved[2] - moved[-2])) / (12 * 1e-3)
        assert numeric == pytest.approx(gradient.norm().item(), rel=1e-6), (at, head)


def test_a_head_is_credited_for_what_later_heads_do_with_it(toy, tokens):
    """The trap: cutting the later attention changes L0H0's gradient, so the path must be there."""
    whole = block_gradients(capture(toy, tokens, [0]).layers[0], "v")[0]
    handles = [
        attention(toy, later).query_key_value.register_forward_hook(
            lambda _m, _a, out: out.detach()
        )
        for later in (1, 2)
    ]
    sequence_losses(toy, tokens).sum().backward()
    for handle in handles:
        handle.remove()
    module = attention(toy, 0)
    cut = block_weight(module.query_key_value.weight.grad, module.dense.weight.grad, "v", 2)[0]
    assert relative_error(cut, whole) > 0.05


def test_samples_do_not_touch_each_other(toy, tokens):
    """Batch size is free: each sequence has its own gradient whatever the batch."""
    together = capture(toy, tokens, LAYERS)
    for row in range(len(tokens)):
        alone = capture(toy, tokens[row : row + 1], LAYERS)
        torch.testing.assert_close(alone.losses_B[0], together.losses_B[row])
        for layer in LAYERS:
            for site in ("x", "dqk", "dv", "z", "do"):
                torch.testing.assert_close(
                    alone.layers[layer].site(site)[0], together.layers[layer].site(site)[row]
                )


def test_which_layers_are_captured_does_not_matter(toy, tokens):
    everything = capture(toy, tokens, LAYERS).layers
    for layers in ([2], [1], [0, 2]):
        some = capture(toy, tokens, layers).layers
        assert sorted(some) == layers
        for layer in layers:
            assert torch.equal(some[layer].dqkv_BTHJ, everything[layer].dqkv_BTHJ)
            assert torch.equal(some[layer].do_BTD, everything[layer].do_BTD)


def test_reported_losses_and_loss_weights(toy, tokens):
    captured = capture(toy, tokens, [0])
    torch.testing.assert_close(captured.losses_B, sequence_losses(toy, tokens).detach())
    weights = torch.zeros(4, 12, dtype=torch.float64)
    weights[1] = 3 / 12
    weighted = capture(toy, tokens, [0], weights_BT=weights).layers[0]
    assert weighted.do_BTD[[0, 2, 3]].abs().max() == 0
    torch.testing.assert_close(weighted.do_BTD[1], 3 * captured.layers[0].do_BTD[1])


def test_the_model_is_left_as_it_was(toy, tokens):
    toy.train()
    toy.gpt_neox.embed_in.weight.requires_grad_(False)
    capture(toy, tokens, [1])
    assert toy.training
    assert [n for n, p in toy.named_parameters() if not p.requires_grad] == [
        "gpt_neox.embed_in.weight"
    ]
    assert all(p.grad is None for p in toy.parameters())
    assert not attention(toy, 1).dense._forward_hooks


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("blocks", [BLOCKS, ("qk",), ("v", "o")])
def test_token_products_sum_to_the_inner_product_with_the_gradient(toy, tokens, blocks, bias):
    generator = torch.Generator().manual_seed(3)
    captured = capture(toy, tokens, LAYERS).layers
    for layer in LAYERS:
        gradients = {b: block_gradients(captured[layer], b, bias) for b in blocks}
        directions = {
            BlockId(layer, b): torch.randn(g.shape, generator=generator, dtype=g.dtype)
            for b, g in gradients.items()
        }
        expected_H = sum(
            (directions[BlockId(layer, b)] * g).sum((1, 2)) for b, g in gradients.items()
        )
        packed = pack_direction(toy, layer, directions, bias)
        products_BTH = token_products(captured[layer], packed)
        torch.testing.assert_close(products_BTH.sum((0, 1)), expected_H)


def test_units_name_and_sum_their_heads():
    values = torch.arange(12.0).view(2, 3, 2)
    assert torch.equal(all_heads(3, 2).combine(values), values.flatten(1))
    pair = mechanism([HeadId(2, 1), HeadId(0, 0)])
    assert pair.layers == [0, 2]
    assert torch.equal(pair.combine(values[:, [0, 2]])[:, 0], values[:, 2, 1] + values[:, 0, 0])
    assert single_head(HeadId(1, 0)) == Units(("L1H0",), ((HeadId(1, 0),),))


def test_unknown_or_repeated_blocks_are_refused(toy, tokens):
    with pytest.raises(ValueError, match=r"\['mlp'\] is none of"):
        Subspace(("qk", "mlp"))
    with pytest.raises(ValueError, match="each once"):
        Subspace(("qk", "qk"))
    with pytest.raises(ValueError, match="at least one layer"):
        capture(toy, tokens, [])
