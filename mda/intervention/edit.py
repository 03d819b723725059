"""Applying Changes to the base run's Stream: the stream that the arm trains on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mda.types import Changes, Stream


def edit(changes: Changes, base: Stream, following: np.ndarray | None = None) -> Stream:
    """Returns the base stream with the changes applied; nothing else differs.

    - `none`: the base stream itself, array for array.
    - `mask`, `upweight`: the sample keeps its place and gets the weight of its change.
    - `replace`: the replacement takes the sample's place, with the weight of the change.
    - `drop`: later samples move forward, through the end of `base`; batch sizes stay, and the
      tail is filled from `following`, the sample ids that come next in the stream.
    - `mask_tokens`: the sample keeps its place and weight; the listed tokens lose theirs.
    - `spans`: the sample's rewritten row takes its place.
    - `duplicate`, `insert`: extra rows at the end of the step's batch, so that the base's rows
      keep their places. The batch grows; `batch_size`, by which the loss is divided, does not.

    Raises ValueError where the changes do not fit the stream.
    """
    _check_window(changes, base)
    if changes.action == "none":
        if len(changes.sample_ids):
            raise ValueError(f"an edit without action lists {len(changes.sample_ids)} samples")
        return base
    if changes.action in ("duplicate", "insert"):
        if changes.action == "duplicate":
            _rows_of(changes, base)
        return _with_extra(changes, base)
    if changes.action == "mask_tokens":
        return _without_tokens(changes, base)
    rows = _rows_of(changes, base)
    if changes.action == "drop":
        return _closed_up(changes, base, rows, following)
    sample_ids, weights = base.sample_ids.copy(), base.weights.copy()
    if changes.action in ("replace", "spans"):
        _check_replacements(changes, base)
        sample_ids[rows] = changes.replacements
    elif changes.action not in ("mask", "upweight"):
        raise ValueError(f"action={changes.action!r} is unknown")
    weights[rows] = changes.weights
    return replace(base, sample_ids=sample_ids, weights=weights)


def _check_window(changes: Changes, base: Stream) -> None:
    if not base.start <= changes.start < changes.end <= base.end:
        raise ValueError(
            f"the edit's window [{changes.start}, {changes.end}) is not inside the stream "
            f"[{base.start}, {base.end})"
        )
    if (outside := (changes.steps < changes.start) | (changes.steps >= changes.end)).any():
        raise ValueError(
            f"the edit changes step {changes.steps[outside][0]}, outside its window "
            f"[{changes.start}, {changes.end})"
        )


def _row_steps(base: Stream) -> np.ndarray:
    return np.repeat(np.arange(base.start, base.end), np.diff(base.offsets))


def _without_tokens(changes: Changes, base: Stream) -> Stream:
    masked = np.stack([_rows_of(changes, base), changes.positions], 1)
    order = np.lexsort((masked[:, 1], masked[:, 0]))
    return replace(base, masked=masked[order])


def _rows_of(changes: Changes, base: Stream) -> np.ndarray:
    """Returns the row of the stream for each (step, sample) of the changes, int64 [n].

    Each pair occurs once; where the changes are of single tokens, each token occurs once.
    """
    row_at = {
        pair: row
        for row, pair in enumerate(
            zip(_row_steps(base).tolist(), base.sample_ids.tolist(), strict=True)
        )
    }
    pairs = list(zip(changes.steps.tolist(), changes.sample_ids.tolist(), strict=True))
    for step, sample in pairs:
        if (step, sample) not in row_at:
            raise ValueError(f"sample {sample} is not in the stream's step {step}")
    named = np.stack([changes.steps, changes.sample_ids, changes.positions], 1)
    values, counts = np.unique(named, axis=0, return_counts=True)
    if (counts > 1).any():
        step, sample, position = values[counts > 1][0]
        token = f"position {position} of " if changes.by_token else ""
        raise ValueError(f"the edit lists {token}sample {sample} at step {step} twice")
    if changes.by_token and (changes.positions < 0).any():
        raise ValueError(f"the edit names no position of sample {changes.sample_ids[0]}")
    return np.array([row_at[pair] for pair in pairs], dtype=np.int64)


def _check_replacements(changes: Changes, base: Stream) -> None:
    if (changes.replacements < 0).any():
        sample = changes.sample_ids[changes.replacements < 0][0]
        raise ValueError(f"the edit names no replacement for sample {sample}")
    if len(used := np.intersect1d(changes.replacements, base.sample_ids)):
        raise ValueError(f"replacement {used[0]} is already in the stream")
    pairs = np.unique(np.stack([changes.sample_ids, changes.replacements], 1), axis=0)
    if len(np.unique(changes.replacements)) < len(pairs):
        raise ValueError("a sample replaces two others")


def _closed_up(
    changes: Changes, base: Stream, rows: np.ndarray, following: np.ndarray | None
) -> Stream:
    tail = np.empty(0, np.int64) if following is None else np.asarray(following, np.int64)
    if len(tail) < len(rows):
        raise ValueError(
            f"dropping {len(rows)} samples moves as many of the following ones into the window; "
            f"the stream has {len(tail)} left after step {base.end}"
        )
    kept = np.ones(len(base.sample_ids), dtype=bool)
    kept[rows] = False
    fill = np.ones(len(rows), dtype=base.weights.dtype)
    return replace(
        base,
        sample_ids=np.concatenate([base.sample_ids[kept], tail[: len(rows)]]),
        weights=np.concatenate([base.weights[kept], fill]),
    )


def _with_extra(changes: Changes, base: Stream) -> Stream:
    steps = np.concatenate([_row_steps(base), changes.steps])
    order = np.argsort(steps, kind="stable")
    counts = np.bincount(steps - base.start, minlength=base.end - base.start)
    return replace(
        base,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        sample_ids=np.concatenate([base.sample_ids, changes.sample_ids])[order],
        weights=np.concatenate([base.weights, changes.weights])[order],
    )
