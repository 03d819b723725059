"""Applying an EditPlan to the base run's Stream: the stream that the arm trains on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mda.types import EditPlan, Stream


def edit(plan: EditPlan, base: Stream, following: np.ndarray | None = None) -> Stream:
    """Returns the base stream with the plan applied; nothing else differs.

    - `none`: the base stream itself, array for array.
    - `mask`, `upweight`: the sample keeps its place and gets the plan's weight.
    - `replace`: the replacement takes the sample's place, with the weight of the plan.
    - `drop`: later samples move forward, through the end of `base`; batch sizes stay, and the
      tail is filled from `following`, the sample ids that come next in the stream.
    - `mask_tokens`: the sample keeps its place and weight; the plan's tokens lose theirs.
    - `spans`: the sample's rewritten row takes its place.
    - `duplicate`, `insert`: extra rows at the end of the step's batch, so that the base's rows
      keep their places. The batch grows; `batch_size`, by which the loss is divided, does not.

    Raises ValueError where the plan does not fit the stream.
    """
    _check_window(plan, base)
    if plan.action == "none":
        if len(plan.sample_ids):
            raise ValueError(f"a plan without action lists {len(plan.sample_ids)} samples")
        return base
    if plan.action in ("duplicate", "insert"):
        if plan.action == "duplicate":
            _rows_of(plan, base)
        return _with_extra(plan, base)
    if plan.action == "mask_tokens":
        return _without_tokens(plan, base)
    rows = _rows_of(plan, base)
    if plan.action == "drop":
        return _closed_up(plan, base, rows, following)
    sample_ids, weights = base.sample_ids.copy(), base.weights.copy()
    if plan.action in ("replace", "spans"):
        _check_replacements(plan, base)
        sample_ids[rows] = plan.replacements
    elif plan.action not in ("mask", "upweight"):
        raise ValueError(f"action={plan.action!r} is unknown")
    weights[rows] = plan.weights
    return replace(base, sample_ids=sample_ids, weights=weights)


def _check_window(plan: EditPlan, base: Stream) -> None:
    if not base.start <= plan.start < plan.end <= base.end:
        raise ValueError(
            f"the plan's window [{plan.start}, {plan.end}) is not inside the stream "
            f"[{base.start}, {base.end})"
        )
    if (outside := (plan.steps < plan.start) | (plan.steps >= plan.end)).any():
        raise ValueError(
            f"the plan edits step {plan.steps[outside][0]}, outside its window "
            f"[{plan.start}, {plan.end})"
        )


def _row_steps(base: Stream) -> np.ndarray:
    return np.repeat(np.arange(base.start, base.end), np.diff(base.offsets))


def _without_tokens(plan: EditPlan, base: Stream) -> Stream:
    masked = np.stack([_rows_of(plan, base), plan.positions], 1)
    order = np.lexsort((masked[:, 1], masked[:, 0]))
    return replace(base, masked=masked[order])


def _rows_of(plan: EditPlan, base: Stream) -> np.ndarray:
    """Returns the row of the stream for each (step, sample) of the plan, int64 [n].

    Each pair occurs once; where the plan edits single tokens, each token occurs once.
    """
    row_at = {
        pair: row
        for row, pair in enumerate(
            zip(_row_steps(base).tolist(), base.sample_ids.tolist(), strict=True)
        )
    }
    pairs = list(zip(plan.steps.tolist(), plan.sample_ids.tolist(), strict=True))
    for step, sample in pairs:
        if (step, sample) not in row_at:
            raise ValueError(f"sample {sample} is not in the stream's step {step}")
    named = np.stack([plan.steps, plan.sample_ids, plan.positions], 1)
    values, counts = np.unique(named, axis=0, return_counts=True)
    if (counts > 1).any():
        step, sample, position = values[counts > 1][0]
        token = f"position {position} of " if plan.by_token else ""
        raise ValueError(f"the plan lists {token}sample {sample} at step {step} twice")
    if plan.by_token and (plan.positions < 0).any():
        raise ValueError(f"the plan names no position of sample {plan.sample_ids[0]}")
    return np.array([row_at[pair] for pair in pairs], dtype=np.int64)


def _check_replacements(plan: EditPlan, base: Stream) -> None:
    if (plan.replacements < 0).any():
        sample = plan.sample_ids[plan.replacements < 0][0]
        raise ValueError(f"the plan names no replacement for sample {sample}")
    if len(used := np.intersect1d(plan.replacements, base.sample_ids)):
        raise ValueError(f"replacement {used[0]} is already in the stream")
    pairs = np.unique(np.stack([plan.sample_ids, plan.replacements], 1), axis=0)
    if len(np.unique(plan.replacements)) < len(pairs):
        raise ValueError("a sample replaces two others")


def _closed_up(
    plan: EditPlan, base: Stream, rows: np.ndarray, following: np.ndarray | None
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


def _with_extra(plan: EditPlan, base: Stream) -> Stream:
    steps = np.concatenate([_row_steps(base), plan.steps])
    order = np.argsort(steps, kind="stable")
    counts = np.bincount(steps - base.start, minlength=base.end - base.start)
    return replace(
        base,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        sample_ids=np.concatenate([base.sample_ids, plan.sample_ids])[order],
        weights=np.concatenate([base.weights, plan.weights])[order],
    )
