"""The measurement of prompts: how much a model prefers the right continuations to the wrong ones.

    f = mean over prompts of  log p(right | prompt) - log p(wrong | prompt)

in nats, where a continuation's log-probability is the sum over its tokens. For single tokens it is
the difference of their logits, because both have the same normalizer. Without wrong continuations
it is log p(right | prompt), minus the loss on the right one. Texts are tokenized each by itself and
nothing is put in between, so a word that follows a space begins with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mda.data.stream import Corpus
from mda.schema.prompts import Prompt, read_prompts
from mda.unit.measurement import TokenObjective

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PromptObjective(TokenObjective):
    """The measurement: rows of all right continuations, then rows of all wrong ones."""

    n: int  # prompts

    def contrasts(self, model: PreTrainedModel) -> Tensor:
        """Returns what each prompt adds to the mean, float64 [n]; f is their mean."""
        return self.n * self.row_values(model).view(-1, self.n).sum(0)


def prompt_objective(
    file: str, key: str, corpus: Corpus, longest: int | None = None
) -> PromptObjective:
    """Returns the measurement of the prompts in a file, which the setting `key` names.

    Raises ConfigError, which names the file and the line, for prompts that are not in the corpus'
    vocabulary or have more than `longest` tokens with their continuation.
    """
    return objective_of(read_prompts(file, key), corpus, longest)


def objective_of(
    prompts: Sequence[Prompt], corpus: Corpus, longest: int | None = None
) -> PromptObjective:
    """Returns the measurement of some prompts. See `prompt_objective`."""
    encode = corpus.encode if corpus.tokenizer is not None else None
    right_and_wrong = list(zip(*(prompt.tokens(encode) for prompt in prompts), strict=True))
    pairs = [pair for side in right_and_wrong for pair in side]
    for prompt, (tokens, _) in zip([*prompts] * len(right_and_wrong), pairs, strict=True):
        prompt.check(tokens, corpus.vocab_size, longest)
    n, size = len(prompts), max(len(tokens) for tokens, _ in pairs)
    tokens_MS = torch.zeros(len(pairs), size, dtype=torch.int64)  # what follows is not looked at
    weights_MT = torch.zeros(len(pairs), size - 1, dtype=torch.float64)
    for row, (tokens, start) in enumerate(pairs):
        tokens_MS[row, : len(tokens)] = torch.tensor(tokens)
        weights_MT[row, start - 1 : len(tokens) - 1] = (1 if row >= n else -1) / n
    return PromptObjective(tokens_MS, weights_MT, n)
