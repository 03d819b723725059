"""Few-shot tasks made of held-out text: copying, and classifying text.

copy    a | a | b | b | ... q | [q]             a, b, q: spans of text; | a separator
label   a | x  b | y  c | x ... q | [x]         a, b, c, q: snippets of two classes; x, y: one token
                                                for each class in this prompt alone

The part in brackets is predicted. The copy's last span can be predicted from its first occurrence,
without any other example; the label's token can be predicted from the examples only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class CopyPrompts:
    """Prompts whose last `span` tokens copy those that end `span` + 1 tokens earlier."""

    tokens_MS: Tensor
    span: int


@dataclass(frozen=True)
class LabelPrompts:
    """Prompts whose last token is the right one of two."""

    tokens_MS: Tensor
    wrong_M: Tensor  # the other class's token


def shots_that_fit(most: int, size: int, length: int) -> int:
    """Returns how many examples of `size` tokens fit before a question of `size`, at most as asked.

    The model reads at most `length` tokens. Raises ValueError where not even one fits.
    """
    shots = min(most, (length + 1) // size - 1)
    if shots < 1:
        raise ValueError(f"{2 * size - 1} tokens are needed; the context has {length}")
    return shots


def copy_prompts(
    rows_NS: np.ndarray, n: int, span: int, shots: int, separator: int, seed: int
) -> CopyPrompts:
    """Returns n prompts of `shots` examples and a question, with spans cut from rows at random."""
    rng = np.random.default_rng([seed, 1])
    shots = shots_that_fit(shots, 2 * span + 2, rows_NS.shape[1] - 1)
    spans = _cut(rows_NS, rng.integers(len(rows_NS), size=(n, shots + 1)), span, rng)
    bar = np.full((n, shots + 1, 1), separator)
    tokens = np.concatenate([spans, bar, spans, bar], 2).reshape(n, -1)[:, :-1]
    return CopyPrompts(torch.from_numpy(tokens), span)


def label_prompts(
    rows_NS: np.ndarray,
    labels: Sequence[str],
    n: int,
    snippet: int,
    shots: int,
    separator: int,
    probabilities_V: np.ndarray,
    seed: int,
) -> LabelPrompts | None:
    """Returns n prompts of two classes each, with as many examples of both.

    Returns None without two classes, and where fewer than two examples fit in the context. A class
    needs two rows: the question is never cut from an example's. The tokens of the
    classes are drawn for each prompt from `probabilities_V`.
    """
    names = np.asarray(labels)
    members = {name: np.flatnonzero(names == name) for name in sorted(set(labels))}
    classes = [rows for rows in members.values() if len(rows) > 1]
    if len(classes) < 2:
        return None
    shots = shots_that_fit(max(shots, 2), snippet + 2, rows_NS.shape[1] - 1)
    shots -= shots % 2
    if shots < 2:
        return None
    rng = np.random.default_rng([seed, 2])
    rows, tokens, wrong = [], [], []
    for _ in range(n):
        pair = rng.choice(len(classes), 2, replace=False)
        words = rng.choice(len(probabilities_V), 2, replace=False, p=probabilities_V)
        asked = rng.choice(classes[pair[0]])  # the first class is the right one
        others = [np.setdiff1d(classes[pair[0]], [asked]), classes[pair[1]]]
        order = rng.permutation(np.repeat([0, 1], shots // 2))
        rows.append([*(rng.choice(others[which]) for which in order), asked])
        tokens.append(words[[*order, 0]])
        wrong.append(words[1])
    snippets = _cut(rows_NS, np.array(rows), snippet, rng)
    bar = np.full((n, shots + 1, 1), separator)
    prompts = np.concatenate([snippets, bar, np.array(tokens)[..., None]], 2).reshape(n, -1)
    return LabelPrompts(torch.from_numpy(prompts), torch.from_numpy(np.array(wrong)))


def _cut(rows_NS: np.ndarray, which: np.ndarray, length: int, rng: np.random.Generator):
    """Returns a stretch of each named row, [*which, length], int64."""
    starts = rng.integers(rows_NS.shape[1] - length + 1, size=which.shape)
    places = starts[..., None] + np.arange(length)
    return rows_NS[which[..., None], places].astype(np.int64)
