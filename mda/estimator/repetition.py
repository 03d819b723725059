"""How much of a text a copier of its earlier part would know: a count that needs no model."""

from __future__ import annotations

import numpy as np


def repetition(tokens_BS: np.ndarray, counts_V: np.ndarray) -> np.ndarray:
    """Returns the information predicted by copying what followed the last two tokens, [B, T].

    In nats. At position t >= 1 let s < t be the last earlier position with (x[s-1], x[s]) =
    (x[t-1], x[t]). If there is one and x[s+1] = x[t+1], position t counts -log p(x[t+1]), with p
    the corpus' unigram distribution: copying a rare token is worth more. Else, and at t = 0, it
    counts 0.
    """
    tokens = np.asarray(tokens_BS, dtype=np.int64)
    pairs = tokens[:, :-2] * len(counts_V) + tokens[:, 1:-1]  # ends at t = 1 .. T - 1
    order = np.argsort(pairs, axis=1, kind="stable")  # equal pairs side by side, in their order
    ranked = np.take_along_axis(pairs, order, 1)
    same = ranked[:, 1:] == ranked[:, :-1]
    earlier = np.full_like(pairs, -1)
    np.put_along_axis(earlier, order[:, 1:], np.where(same, order[:, :-1], -1), 1)
    following = tokens[:, 2:]
    copied = np.take_along_axis(following, np.maximum(earlier, 0), 1)
    information = -np.log(np.maximum(counts_V, 1) / counts_V.sum())
    nats = np.where((earlier >= 0) & (copied == following), information[following], 0.0)
    return np.pad(nats, ((0, 0), (1, 0)))
