"""The changes that an edit makes of chosen samples, and their readable CSV file."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mda import store
from mda.data.token_files import read_inserted
from mda.schema import AugmentConfig, ControlConfig, RemoveConfig
from mda.types import Changes, Scores

if TYPE_CHECKING:
    from mda.intervention.choice import Choice

REMOVALS = ("mask", "drop", "replace")
AUGMENTATIONS = ("duplicate", "upweight")
BY_TOKEN = ("mask_tokens", "spans")
ACTIONS = ("none", *REMOVALS, *AUGMENTATIONS, "insert", *BY_TOKEN)
_COLUMNS = ("sample_id", "step", "weight", "replacement", "position", "token")


def unedited(config: ControlConfig, choice: Choice) -> Changes:
    """Plans `intervention=control`: nothing."""
    return control(choice.start, choice.end)


def removal(config: RemoveConfig, choice: Choice) -> Changes:
    """Plans `intervention=remove` of whole samples: modes mask, drop and replace."""
    given = choice.scores, choice.sample_ids, choice.start, choice.end
    return remove(*given, config.mode, choice.unused, choice.seed())


def augmentation(config: AugmentConfig, choice: Choice) -> Changes:
    """Plans `intervention=augment` of samples of the window: modes duplicate and upweight."""
    given = choice.scores, choice.sample_ids, choice.start, choice.end
    return augment(*given, config.mode, config.weight)


def insertion(config: AugmentConfig, choice: Choice) -> Changes:
    """Plans `intervention.mode=insert`: rows of a file."""
    n, corpus = len(choice.corpus.tokens), choice.corpus
    rows = read_inserted(Path(str(config.rows)), corpus.seq_len, corpus.vocab_size)
    first = choice.start if config.at_step is None else config.at_step
    ids = np.arange(n, n + len(rows))
    return replace(insert(ids, choice.start, choice.end, first, config.per_step), rows=rows)


def control(start: int, end: int) -> Changes:
    """Returns no changes, for the arm that trains on the unedited stream."""
    empty = np.empty(0, dtype=np.int64)
    return _changes("none", start, end, empty, empty, 1.0, empty)


def remove(
    scores: Scores,
    chosen: np.ndarray,
    start: int,
    end: int,
    action: str = "mask",
    unused: np.ndarray | None = None,
    seed: int = 0,
) -> Changes:
    """Returns the changes that take the chosen samples out of the window's training.

    `mask` sets their loss weight to 0 and leaves them in place; `drop` lets the stream close up;
    `replace` puts a sample drawn (seeded, without repetition) from `unused` in each one's place,
    so the number of trained tokens stays the same.
    """
    _known(action, REMOVALS)
    steps = steps_of(scores, chosen, start, end)
    if action != "replace":
        return _changes(action, start, end, chosen, steps, 0.0)
    pool = np.setdiff1d(np.empty(0, np.int64) if unused is None else unused, scores.sample_ids)
    if len(pool) < len(chosen):
        raise ValueError(
            f"replacing {len(chosen)} samples needs as many unused ones; there are {len(pool)}"
        )
    drawn = np.random.default_rng(seed).choice(pool, len(chosen), replace=False)
    return _changes(action, start, end, chosen, steps, 1.0, drawn)


def augment(
    scores: Scores,
    chosen: np.ndarray,
    start: int,
    end: int,
    action: str = "duplicate",
    weight: float = 2.0,
) -> Changes:
    """Returns the changes that give the chosen samples more weight.

    `duplicate` adds one extra copy of each to the step that has it; `upweight` multiplies its
    loss by `weight`, which must be finite and positive. With weight 2 both give the same gradient.
    """
    _known(action, AUGMENTATIONS)
    if action == "upweight" and not (np.isfinite(weight) and weight > 0):
        raise ValueError(f"weight={weight} cannot up-weight a sample; it must be above 0")
    steps = steps_of(scores, chosen, start, end)
    return _changes(action, start, end, chosen, steps, 1.0 if action == "duplicate" else weight)


def insert(sample_ids: np.ndarray, start: int, end: int, at_step: int, per_step: int) -> Changes:
    """Returns the changes that add rows, `per_step` to each step from `at_step` on, in their order.

    The last step takes what is left. Raises ValueError where the rows do not fit before `end`.
    """
    if per_step < 1:
        raise ValueError(f"per_step={per_step} inserts nothing; it must be at least 1")
    if not len(sample_ids):
        raise ValueError("there are no rows to insert")
    if not start <= at_step < end:
        raise ValueError(f"at_step={at_step} is outside the window [{start}, {end})")
    steps = at_step + np.arange(len(sample_ids)) // per_step
    if steps[-1] >= end:
        raise ValueError(
            f"{len(sample_ids)} rows, {per_step} a step from step {at_step}, need steps up to "
            f"{steps[-1] + 1}; the window ends at {end}"
        )
    return _changes("insert", start, end, sample_ids, steps, 1.0)


def mask_tokens(
    sample_ids: np.ndarray, steps: np.ndarray, positions: np.ndarray, start: int, end: int
) -> Changes:
    """Returns the changes that remove single tokens' losses from the window's training.

    Position t is that of predicting token t + 1. The arrays are parallel, a token each.
    """
    return _changes("mask_tokens", start, end, sample_ids, steps, 0.0, positions=positions)


def spans(
    sample_ids: np.ndarray,
    steps: np.ndarray,
    positions: np.ndarray,
    tokens: np.ndarray,
    start: int,
    end: int,
    first_id: int,
) -> Changes:
    """Returns the changes that replace the tokens at `positions`, one entry for each token.

    The samples so changed are new rows, which take the samples' places under the ids `first_id`,
    `first_id` + 1, ..., in the order in which the samples are first named; see `rewritten`.
    """
    _, first, inverse = np.unique(sample_ids, return_index=True, return_inverse=True)
    replacements = first_id + np.argsort(np.argsort(first))[inverse]
    return _changes("spans", start, end, sample_ids, steps, 1.0, replacements, positions, tokens)


def rewritten(changes: Changes, rows: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Returns the rows that changes of spans insert, in the order of their ids, [n, T + 1].

    `rows` gives the tokens of samples by their ids.
    """
    new_ids, first, place = np.unique(changes.replacements, return_index=True, return_inverse=True)
    originals = np.array(rows(changes.sample_ids[first]))
    originals[place, changes.positions] = changes.tokens
    assert len(originals) == len(new_ids)
    return originals


def save_changes(changes: Changes, path: Path) -> None:
    """Writes changes as CSV under one comment line with their action and window, atomically.

    Weights are written without loss of precision.
    """
    weights = (repr(float(w)) for w in changes.weights)
    rest = (changes.replacements, changes.positions, changes.tokens)
    with store.replacing(path) as file:
        file.write(f"# action={changes.action} start={changes.start} end={changes.end}\n")
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(_COLUMNS)
        rows.writerows(zip(changes.sample_ids, changes.steps, weights, *rest, strict=True))


def _changes(
    action: str,
    start: int,
    end: int,
    sample_ids: np.ndarray,
    steps: np.ndarray,
    weight: float,
    replacements: np.ndarray | None = None,
    positions: np.ndarray | None = None,
    tokens: np.ndarray | None = None,
) -> Changes:
    if not 0 <= start < end:
        raise ValueError(f"the window [{start}, {end}) is empty; it needs 0 <= start < end")
    n = len(sample_ids)

    def column(values: np.ndarray | None) -> np.ndarray:
        return np.full(n, -1, np.int64) if values is None else np.asarray(values, np.int64)

    return Changes(
        action=action,
        start=start,
        end=end,
        sample_ids=np.asarray(sample_ids, dtype=np.int64),
        steps=np.asarray(steps, dtype=np.int64),
        weights=np.full(n, weight, dtype=np.float32),
        replacements=column(replacements),
        positions=column(positions),
        tokens=column(tokens),
    )


def _known(action: str, accepted: tuple[str, ...]) -> None:
    if action not in accepted:
        raise ValueError(f"action={action!r} is unknown here; choose one of {', '.join(accepted)}")


def steps_of(scores: Scores, chosen: np.ndarray, start: int, end: int) -> np.ndarray:
    """Returns the step at which each of some samples is seen, int64 [n].

    Raises ValueError for a sample without a score, or outside the window.
    """
    order = np.argsort(scores.sample_ids)
    at = np.searchsorted(scores.sample_ids, chosen, sorter=order)
    at = order[np.minimum(at, len(order) - 1)]
    if (wrong := scores.sample_ids[at] != chosen).any():
        raise ValueError(f"sample {chosen[wrong][0]} has no score, so its step is unknown")
    steps = scores.steps[at]
    if (outside := (steps < start) | (steps >= end)).any():
        raise ValueError(
            f"sample {chosen[outside][0]} is seen at step {steps[outside][0]}, outside the window "
            f"[{start}, {end})"
        )
    return steps
