"""Measurements (f_probe) that are sums of weighted token losses, and their seeded tokens.

`copy`   log-probability of the token that followed the first time, in nats: the MEAN over all
         positions of every copy after the first, and over sequences. (The paper sums; that is
         M * P times this.)
`label`  log-probability of held-out text of one class, in nats: the MEAN over its tokens.
`prompts`  right continuations against wrong ones, see `mda.unit.prompts`.

All are one number for the whole model, shared by all units. The position matters (the copy probe
of the authors' release is off by one): with a prefix of P tokens, position t >= P holds the same
token as t - P, the token that followed it is at t - P + 1, and the logits at t are those of token t
+ 1. The rows are therefore P * repeats tokens and the first token once more, so that the last
position has its target as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mda.model.loss import cross_entropy, plain_losses, unembedding
from mda.types import ParameterBlock
from mda.unit.blocks import block_gradients
from mda.unit.capture import capture, frozen, modules_of
from mda.unit.tokens import repeated_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK = 32  # sequences of a measurement that go through the model together


@dataclass(frozen=True)
class TokenObjective:
    """f = sum_mt w_mt l_mt, with l_mt the next-token loss in nats of row m at position t."""

    tokens_MS: Tensor  # int64, S = T + 1
    weights_MT: Tensor  # float64

    def chunks(self, model: PreTrainedModel) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields tokens and weights on the model's device, some rows at a time."""
        pairs = zip(self.tokens_MS.split(CHUNK), self.weights_MT.split(CHUNK), strict=True)
        yield from (
            (tokens.to(model.device), weights.to(model.device)) for tokens, weights in pairs
        )

    @property
    def sequences(self) -> list[Tensor]:
        """The rows that f rewards, each int64 [S], up to the last token that counts."""
        rows = zip(self.tokens_MS, self.weights_MT, strict=True)
        return [row[: int(w.nonzero()[-1]) + 2] for row, w in rows if w.sum() < 0]

    def value(self, model: PreTrainedModel) -> float:
        """Returns f at this model."""
        return self.row_values(model).sum().item()

    @torch.no_grad()
    def row_values(self, model: PreTrainedModel) -> Tensor:
        """Returns what each row adds to f, float64 [M]."""
        parts = []
        with frozen(model):
            for tokens, weights in self.chunks(model):
                hidden = model.base_model(tokens[:, :-1], use_cache=False).last_hidden_state
                losses = cross_entropy(hidden, unembedding(model), tokens[:, 1:])
                parts.append((losses * weights).sum(1).cpu())
        return torch.cat(parts)

    def differentiable(self, model: PreTrainedModel) -> Tensor:
        """Returns f with a graph to the parameters that can be differentiated twice."""
        parts = []
        for tokens, weights in self.chunks(model):
            losses = plain_losses(model, tokens)
            parts.append((losses * weights.to(losses)).sum())
        return torch.stack(parts).sum()

    def gradients(
        self, model: PreTrainedModel, blocks: Sequence[ParameterBlock]
    ) -> dict[ParameterBlock, Tensor]:
        """Returns grad f in each block, [H, I, J], by one forward and backward for all of them.

        A unit's gradient includes all paths downstream of it.
        """
        total: dict[ParameterBlock, Tensor] = {}
        for tokens, weights in self.chunks(model):
            captured = capture(model, tokens, modules_of(blocks), weights_BT=weights)
            for block in blocks:
                add(total, block, block_gradients(captured, block))
        return total


def add(total: dict[ParameterBlock, Tensor], block: ParameterBlock, part: Tensor) -> None:
    """Adds to a sum over chunks."""
    total[block] = total[block] + part if block in total else part


def copy_objective(
    probabilities_V: Tensor, *, n: int, length: int, repeats: int = 2, seed: int
) -> TokenObjective:
    """Returns the copy measurement on `n` sequences of `length` random tokens, repeated.

    Weights are -1 / (number of positions after the first copies) there and 0 in the first copy.
    Raises ValueError for no sequence, fewer than two tokens or fewer than two copies.
    """
    _at_least("copy", n=(n, 1), length=(length, 2), repeats=(repeats, 2))
    generator = torch.Generator().manual_seed(seed)
    tokens = repeated_tokens(probabilities_V, n, length, repeats=repeats, generator=generator)
    tokens = torch.cat((tokens, tokens[:, :1]), dim=1)
    weights = torch.zeros(n, length * repeats, dtype=torch.float64)
    weights[:, length:] = -1 / (n * length * (repeats - 1))
    return TokenObjective(tokens, weights)


def label_objective(tokens_MS: Tensor) -> TokenObjective:
    """Returns the label measurement: mean log-probability of these rows' tokens, in nats."""
    n_tokens = len(tokens_MS) * (tokens_MS.shape[1] - 1)
    shape = len(tokens_MS), tokens_MS.shape[1] - 1
    return TokenObjective(tokens_MS, torch.full(shape, -1 / n_tokens, dtype=torch.float64))


def attention_tokens(
    probabilities_V: Tensor, *, n: int, length: int, repeats: int = 1, seed: int
) -> Tensor:
    """Returns random tokens [n, length * repeats] for metrics of attention."""
    _at_least("previous_token", n=(n, 1), length=(length, 2), repeats=(repeats, 1))
    generator = torch.Generator().manual_seed(seed)
    return repeated_tokens(probabilities_V, n, length, repeats=repeats, generator=generator)


def _at_least(target: str, **values: tuple[int, int]) -> None:
    for name, (value, low) in values.items():
        if value < low:
            raise ValueError(f"{name}={value} with target={target}; expected {low} or more")
