"""A check that losses and patterns of this project agree with the model's own.

Losses are taken from the last hidden state and the unembedding, patterns from attention that is
written out, sizes from the family's adapter. All three are assumptions about a family; one forward
pass compares them with transformers' own loss and eager attention, before anything is scored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mda.model.architecture import architecture
from mda.model.loss import cross_entropy, unembedding
from mda.model.plain_attention import PlainAttention, eager_attention
from mda.schema import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS, LENGTH = 2, 32
LOSS, PATTERN = 1e-4, 1e-3
"""Differences that are refused: of the loss, relative, and of an attention probability.

Float32 rounding in different orders stays a hundred times below both.
"""


@torch.no_grad()
def check_agreement(model: PreTrainedModel, key: str) -> None:
    """Raises ConfigError, with both numbers, for a model that its adapter does not describe.

    `key` names the model in the error. The model's mode is restored.
    """
    training = model.training
    model.eval()
    try:
        _compare(model, key)
    finally:
        model.train(training)


def _compare(model: PreTrainedModel, key: str) -> None:
    n_vocab, longest = model.config.vocab_size, model.config.max_position_embeddings
    shape, generator = (ROWS, min(LENGTH, longest)), torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(n_vocab, shape, generator=generator).to(model.device)
    loss, patterns = _ours(model, tokens_BT)
    with eager_attention(model):
        own = model(input_ids=tokens_BT, labels=tokens_BT, output_attentions=True, use_cache=False)
    family = f"{key}: its adapter for {model.config.model_type}"
    if not abs(loss - own.loss.item()) <= LOSS * abs(own.loss.item()):
        raise ConfigError(
            f"{family} gives a loss of {loss:.6g} nats, the model itself {own.loss.item():.6g}; "
            "expected an adapter of the family's own logits"
        )
    adapter = architecture(model)
    sizes = len(own.attentions), own.attentions[0].shape[1]
    if (adapter.n_layers, adapter.n_heads) != sizes or len(patterns) != len(own.attentions):
        raise ConfigError(
            f"{family} gives {adapter.n_layers} layers of {adapter.n_heads} heads and "
            f"{len(patterns)} patterns, the model itself {sizes[0]} layers of {sizes[1]} heads; "
            "expected attention through scaled_dot_product_attention in every layer"
        )
    for layer, (ours, theirs) in enumerate(zip(patterns, own.attentions, strict=True)):
        difference = (ours - theirs).abs()
        if not difference.max() <= PATTERN:
            at = difference.argmax()
            raise ConfigError(
                f"{family} gives an attention probability of {ours.flatten()[at]:.4f} in layer "
                f"{layer}, the model itself {theirs.flatten()[at]:.4f}; expected the model's own"
            )


def _ours(model: PreTrainedModel, tokens_BT: Tensor) -> tuple[float, list[Tensor]]:
    """Returns mean next-token loss in nats and the patterns of all layers, as capture has them."""
    with PlainAttention(keep=True) as attention:
        hidden_BTD = model.base_model(tokens_BT, use_cache=False).last_hidden_state
    losses_BT = cross_entropy(hidden_BTD[:, :-1], unembedding(model), tokens_BT[:, 1:])
    return losses_BT.mean().item(), attention.patterns
