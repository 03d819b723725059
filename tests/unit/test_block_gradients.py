"""Gradients of every block of every family, against autograd and through the whole model."""

import pytest
import torch
from derivatives import all_blocks, parameter_gradients, relative_error, sequence_losses, slope
from families import FAMILIES, N_LAYERS, toy_tokens
from families import toy as make_toy

from mda.model.architecture import architecture
from mda.unit.blocks import block_gradients, gather
from mda.unit.capture import capture, modules_of

TOY_LAYERS = range(3)


def blocks_of(model, bias=True, layers=range(N_LAYERS)):
    arch = architecture(model)
    return [block for layer in layers for block in all_blocks(arch, layer, bias)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", FAMILIES)
def test_every_block_of_every_owner_equals_autograd(case, bias):
    model, tokens = make_toy(case), toy_tokens()
    blocks = blocks_of(model, bias)
    captured = capture(model, tokens, modules_of(blocks))
    gradients = parameter_gradients(model, sequence_losses(model, tokens).sum())
    for block in blocks:
        ours, expected = block_gradients(captured, block), gather(block, gradients)
        assert ours.shape == expected.shape == block.shape, block
        for owner in range(block.owners):
            if expected[owner].norm() < 1e-12:  # a neuron whose relu never opens
                assert ours[owner].norm() < 1e-12, (block, owner)
                continue
            # both float64, some hundred additions
            assert relative_error(ours[owner], expected[owner]) < 1e-10, (block, owner)


@pytest.mark.parametrize("case", FAMILIES)
def test_every_kind_of_block_equals_finite_differences(case):
    """The first and the last owner, along the gradient: there the slope is its norm."""
    model, tokens = make_toy(case), toy_tokens()
    blocks = blocks_of(model, layers=[0])  # all of the model lies above
    captured = capture(model, tokens, modules_of(blocks))

    def loss():
        return sequence_losses(model, tokens).sum().item()

    for block in blocks:
        gradients = block_gradients(captured, block)
        for owner in {0, block.owners - 1}:
            norm = gradients[owner].norm().item()
            if norm < 1e-12:
                continue
            # a relu that opens or closes within the step would spoil the slope
            step = 1e-5 if model.config.to_dict().get("hidden_act") == "relu" else 1e-4
            numeric = slope(model, block, owner, gradients[owner] / norm, loss, step)
            assert numeric == pytest.approx(norm, rel=1e-6), (block, owner)


def test_a_head_is_credited_for_what_later_heads_do_with_it(toy, tokens):
    """The trap: cutting the later attention changes L0H0's gradient, so the path must be there."""
    block = architecture(toy).head_blocks(0)["v"]
    whole = block_gradients(capture(toy, tokens, block.modules), block)[0]
    handles = [
        toy.gpt_neox.layers[later].attention.query_key_value.register_forward_hook(
            lambda _m, _a, out: out.detach()
        )
        for later in (1, 2)
    ]
    cut = parameter_gradients(toy, sequence_losses(toy, tokens).sum())
    for handle in handles:
        handle.remove()
    assert relative_error(gather(block, cut)[0], whole) > 0.05


def test_samples_do_not_touch_each_other(toy, tokens):
    """Batch size is free: each sequence has its own gradient whatever the batch."""
    blocks = blocks_of(toy, layers=TOY_LAYERS)
    together = capture(toy, tokens, modules_of(blocks))
    for row in range(len(tokens)):
        alone = capture(toy, tokens[row : row + 1], modules_of(blocks))
        torch.testing.assert_close(alone.losses_B[0], together.losses_B[row])
        for block in blocks:
            torch.testing.assert_close(alone.x(block)[0], together.x(block)[row])
            torch.testing.assert_close(alone.dy(block)[0], together.dy(block)[row])


def test_which_modules_are_captured_does_not_matter(toy, tokens):
    everything = capture(toy, tokens, modules_of(blocks_of(toy, layers=TOY_LAYERS)))
    for layers in ([2], [1], [0, 2]):
        some = capture(toy, tokens, modules_of(blocks_of(toy, layers=layers)))
        assert len(some.output_gradients) == 4 * len(layers)
        for path, gradient in some.output_gradients.items():
            assert torch.equal(gradient, everything.output_gradients[path])
            assert torch.equal(some.inputs[path], everything.inputs[path])


def test_reported_losses_and_loss_weights(toy, tokens):
    block = architecture(toy).head_blocks(0)["o"]
    captured = capture(toy, tokens, block.modules)
    torch.testing.assert_close(captured.losses_B, sequence_losses(toy, tokens).detach())
    weights = torch.zeros(4, 9, dtype=torch.float64)
    weights[1] = 3 / 9
    weighted = capture(toy, tokens, block.modules, weights_BT=weights)
    assert weighted.dy(block)[[0, 2, 3]].abs().max() == 0
    torch.testing.assert_close(weighted.dy(block)[1], 3 * captured.dy(block)[1])


def test_the_model_is_left_as_it_was(toy, tokens):
    toy.train()
    toy.gpt_neox.embed_in.weight.requires_grad_(False)
    dense = toy.gpt_neox.layers[1].attention.dense
    capture(toy, tokens, ["gpt_neox.layers.1.attention.dense"])
    assert toy.training
    assert [n for n, p in toy.named_parameters() if not p.requires_grad] == [
        "gpt_neox.embed_in.weight"
    ]
    assert all(p.grad is None for p in toy.parameters())
    assert not dense._forward_hooks


def test_dropout_is_off_in_a_pass():
    model, tokens = make_toy("neox", hidden_dropout=0.5, attention_dropout=0.5), toy_tokens()
    block = architecture(model).head_blocks(0)["qk"]
    quiet = capture(model, tokens, block.modules)
    model.train()
    assert torch.equal(capture(model, tokens, block.modules).dy(block), quiet.dy(block))


def test_no_modules_and_unknown_modules_are_refused(toy, tokens):
    with pytest.raises(ValueError, match="at least one"):
        capture(toy, tokens, [])
    with pytest.raises(ValueError, match=r"no module gpt_neox\.layers\.3\.attention\.dense"):
        capture(toy, tokens, ["gpt_neox.layers.3.attention.dense"])
    assert not toy.gpt_neox.layers[0].attention.dense._forward_hooks
