"""The tokens of a window that an intervention masks: functions of the tokens' scores.

A token is a pair (row, position): the row of the window's samples, and the position whose loss it
is, that of predicting token position + 1. Every selection is two int64 arrays, sorted by row, then
by position. Ties in the scores go to the earlier token of the stream.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mda.intervention.changes import mask_tokens
from mda.intervention.choice import Choice
from mda.intervention.select import amount
from mda.schema import RemoveConfig
from mda.types import Changes

Tokens = tuple[np.ndarray, np.ndarray]
"""Rows and positions, int64 [n] each."""


def masking(config: RemoveConfig, choice: Choice) -> Changes:
    """Plans `intervention.mode=mask_tokens`; tokens without scores are drawn at random."""
    scores, length, n = choice.scores, choice.corpus.seq_len, choice.n_tokens
    pool = None if config.label is None else choice.order("random")
    if config.within is not None:
        ordered = choice.order()
        pool = ordered[: amount(len(ordered), config.within)]
    if choice.of_tokens is None:
        chosen = random_tokens(len(scores.sample_ids), length, n, choice.seed(), pool)
    else:
        chosen = top_tokens(choice.of_tokens.parts(), n, pool, config.select)
    if config.match == "sample":
        exclude = config.match_targeted == "exclude"
        chosen = matched_tokens(chosen, length, choice.seed(), exclude)
    rows, positions = chosen
    steps = scores.steps[rows]
    return mask_tokens(scores.sample_ids[rows], steps, positions, choice.start, choice.end)


def top_tokens(
    parts: Iterable[np.ndarray], n: int, pool: np.ndarray | None = None, select: str = "top"
) -> Tokens:
    """Returns the n tokens of highest (or, for `bottom`, of lowest) score.

    `parts` are the scores [rows, T] of the window's samples in turn, of which no more than one is
    held at a time, beside 2 n candidates. `pool` are the rows to choose from, None for all. Raises
    ValueError where there are fewer tokens, or scores that are not finite.
    """
    if select not in ("top", "bottom"):
        raise ValueError(f"select={select!r} is unknown here; choose one of top, bottom")
    sign = -1.0 if select == "bottom" else 1.0
    values, places = np.empty(0), np.empty(0, np.int64)
    done, length, least = 0, 0, -np.inf
    for part in parts:
        length = part.shape[1]
        rows = np.arange(done, done + len(part))
        done += len(part)
        allowed = part[np.isin(rows, pool)] if pool is not None else part
        rows = rows[np.isin(rows, pool)] if pool is not None else rows
        if not np.isfinite(allowed).all():
            raise ValueError(f"{(~np.isfinite(allowed)).sum()} scores of tokens are not finite")
        signed = sign * allowed.astype(np.float64).ravel()
        here = (rows[:, None] * length + np.arange(length)).ravel()
        keep = signed > least  # a tie with the n-th of before is later in the stream
        values, places = np.append(values, signed[keep]), np.append(places, here[keep])
        if len(values) > 2 * n:
            values, places = _highest(values, places, n)
            least = values.min()
    if len(values) < n:
        raise ValueError(f"{n} tokens are wanted; there are {len(values)}")
    _, places = _highest(values, places, n)
    return _split(places, length)


def random_tokens(n_rows: int, length: int, n: int, seed: int, pool: np.ndarray | None) -> Tokens:
    """Draws n tokens without repetition among `length` of each row of `pool` (None: all rows)."""
    rows = np.arange(n_rows) if pool is None else np.sort(pool)
    drawn = np.random.default_rng(seed).choice(len(rows) * length, n, replace=False)
    return _split(rows[drawn // length] * length + drawn % length, length)


def matched_tokens(targeted: Tokens, length: int, seed: int, exclude: bool = True) -> Tokens:
    """Returns random tokens, as many of each sample as are targeted, of its `length` positions.

    With `exclude` no targeted token is drawn. Raises ValueError where a sample has too few others.
    """
    rng = np.random.default_rng(seed)
    rows, first = np.unique(targeted[0], return_index=True)
    places = []
    for row, own in zip(rows, np.split(targeted[1], first[1:]), strict=True):
        others = np.setdiff1d(np.arange(length), own) if exclude else np.arange(length)
        if len(others) < len(own):
            raise ValueError(
                f"{len(own)} of the {length} tokens of a sample are targeted: too few others are "
                "left. Edit a smaller fraction, or allow targeted tokens "
                "(intervention.match_targeted=allow)"
            )
        places.append(row * length + rng.choice(others, len(own), replace=False))
    return _split(np.concatenate(places), length)


def _highest(values: np.ndarray, places: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((places, -values))[:n]
    return values[order], places[order]


def _split(places: np.ndarray, length: int) -> Tokens:
    places = np.sort(places)
    return places // length, places % length
