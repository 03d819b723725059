"""The tables of the benchmark, row by row, each from retrainings of one `Bench`.

Rows are flat, so that they can be kept as CSV and read back; all statements on estimators are
computed from them. Artifacts missing from a store that only finds are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from mda.analysis.enrichment import label_enrichment
from mda.analysis.leaderboard import SIDE_BY_SIDE
from mda.analysis.truth import recall_at, roc_area, spearman
from mda.intervention.select import choose
from mda.intervention.subsets import Subset, draw_subsets
from mda.schema import ConfigError, TruthConfig
from mda.stages.attribution import Traced
from mda.stages.found import NotBuilt
from mda.stages.truth import Bench, Outcome, causes, scoring_seconds, seconds
from mda.types import Changes

Row = dict[str, object]
Traces = Mapping[str, Mapping[str, Traced]]
"""unit -> estimator -> its scores."""
T = TypeVar("T")
TEXT = 200  # characters of a sample's text


def finished(build: Callable[[], T]) -> T | None:
    """Returns the result of `build`; None where a store that only finds lacks a part of it."""
    try:
        return build()
    except NotBuilt:
        return None


def values_of(bench: Bench, traces: Traces, unit: str, estimator: str) -> np.ndarray:
    """Returns the scores of one unit by one estimator, float64 [N]."""
    scores = traces[unit][estimator].scores
    return scores.of(bench.located[unit].name).astype(np.float64)


def subsets_of(bench: Bench, settings: TruthConfig, traces: Traces) -> list[Subset]:
    """Returns the sets to remove; bands are of the first unit's scores."""
    first = settings.units[0]
    if missing := [name for name in settings.strata_of if name not in traces[first]]:
        raise ConfigError(
            f"truth.strata_of: scores of {missing[0]} for {first} are not in the store; "
            "expected estimators that have scores, or truth.finished_only=false"
        )
    bands_of = {name: values_of(bench, traces, first, name) for name in settings.strata_of}
    return draw_subsets(
        bench.stream.sample_ids, settings.subsets, settings.fractions, bands_of,
        settings.strata, settings.seed,
    )  # fmt: skip


def subset_rows(bench: Bench, settings: TruthConfig, traces: Traces) -> Iterator[Row]:
    """Returns (a): for every set and unit, the outcome without the set, and the predictions."""
    subsets = subsets_of(bench, settings, traces) if settings.subsets else []
    if not subsets or (control := outcomes_of(bench, None)) is None:
        return
    arms = [(i, run) for run in range(1 + settings.reruns) for i in range(len(subsets))]
    measured: dict[tuple[int, int], dict[str, Outcome]] = {}
    for i, run in bench.at.bar(arms, "sets removed", len(arms)):
        changes = bench.removal(subsets[i].sample_ids)
        if (found := outcomes_of(bench, changes, settings, run)) is not None:
            measured[i, run] = found
    for i, subset in enumerate(subsets):
        if (i, 0) not in measured:
            continue
        reruns = [measured[i, run] for run in range(1, 1 + settings.reruns) if (i, run) in measured]
        inside = np.isin(bench.stream.sample_ids, subset.sample_ids)
        for unit in settings.units:
            predicted = {
                f"removed/{name}": float(values_of(bench, traces, unit, name)[inside].sum())
                for name in traces[unit]
            }
            yield {
                "seed": bench.seed,
                "unit": unit,
                "subset": i,
                "fraction": subset.fraction,
                "draw": subset.draw,
                **_columns("", measured[i, 0][unit]),
                **_columns("control_", control[unit]),
                "reruns": len(reruns),
                **_columns("rerun_", _mean([one[unit] for one in reruns])),
                **predicted,
            }


def edit_rows(
    bench: Bench,
    settings: TruthConfig,
    traces: Traces,
    edits: Sequence[str] = ("remove", "augment"),
    to: Bench | None = None,
) -> Iterator[Row]:
    """Returns (b), the highest samples removed and doubled, and (d), the same sets in `to`."""
    arms = [
        (fraction, edit, unit, name)
        for fraction in sorted(settings.edits, reverse=True)
        for edit in edits
        for unit in settings.edited
        for name in traces[unit]
        if np.ptp(values_of(bench, traces, unit, name)) > 0  # equal scores choose nothing
    ]
    where = to or bench
    if not arms or (control := outcomes_of(where, None)) is None:
        return
    said = "highest scores edited" if to is None else f"the same sets in seed {to.seed}"
    for fraction, edit, unit, name in bench.at.bar(arms, said, len(arms)):
        scores = traces[unit][name].scores
        chosen = choose(scores, bench.located[unit].name, "top", fraction=fraction)
        changes = where.removal(chosen) if edit == "remove" else where.doubling(chosen)
        if (found := outcomes_of(where, changes)) is not None:
            yield {
                "seed": bench.seed,
                "to_seed": where.seed,
                "unit": unit,
                "located": where.located[unit].name,
                "estimator": name,
                "edit": edit,
                "fraction": fraction,
                "n": len(chosen),
                **_columns("", found[unit]),
                **_columns("control_", control[unit]),
            }


def planted_rows(bench: Bench, settings: TruthConfig, traces: Traces) -> Iterator[Row]:
    """Returns (c): the number of planted causes that each estimator finds; k is their number."""
    for unit in settings.units if settings.planted else ():
        is_cause = causes(bench, unit, settings.planted)
        for name in traces[unit]:
            values = values_of(bench, traces, unit, name)
            yield {
                "seed": bench.seed,
                "unit": unit,
                "estimator": name,
                "causes": int(is_cause.sum()),
                "samples": len(is_cause),
                "roc_auc": roc_area(values, is_cause),
                "recall_at_k": recall_at(values, is_cause, int(is_cause.sum())),
                "recall_at_1_percent": recall_at(values, is_cause, round(0.01 * len(values))),
                "recall_at_10_percent": recall_at(values, is_cause, round(0.1 * len(values))),
            }


def estimator_rows(bench: Bench, settings: TruthConfig, traces: Traces) -> Iterator[Row]:
    """Returns the cost of each estimator, and the correlation of its scores with others'."""
    control, share = bench.base, (bench.window.end - bench.window.start) / bench.last_step
    if settings.retrains:  # else no window was trained: as large a part of the base run
        control, share = finished(lambda: bench.arm(None)), 1.0
    trained_s = seconds(control.folder) if control else None
    window_s = None if trained_s is None else trained_s * share
    for unit in settings.units:
        values = {name: values_of(bench, traces, unit, name) for name in traces[unit]}
        for name, traced in traces[unit].items():
            spent = scoring_seconds(bench, traced)
            yield {
                "seed": bench.seed,
                "unit": unit,
                "estimator": name,
                "seconds": spent,
                "window_seconds": window_s,
                "cost": spent / window_s if spent is not None and window_s else None,
                **{
                    f"spearman/{other}": None if np.isnan(rho) else rho
                    for other in values
                    for rho in [float(spearman(values[name], values[other]))]
                },
            }


def top_rows(bench: Bench, settings: TruthConfig, traces: Traces, n: int = 10) -> Iterator[Row]:
    """Returns the n samples of highest score of some estimators, with their first words."""
    ids = bench.stream.sample_ids
    for unit, name in _shown(settings, traces):
        values = values_of(bench, traces, unit, name)
        for place, at in enumerate(np.argsort(-values, kind="stable")[:n], 1):
            (tokens,) = bench.corpus.rows(ids[[at]])
            yield {
                "seed": bench.seed,
                "unit": unit,
                "estimator": name,
                "rank": place,
                "sample": int(ids[at]),
                "step": int(traces[unit][name].scores.steps[at]),
                "label": bench.corpus.labels_of(ids[[at]])[0],
                "score": float(values[at]),
                "text": " ".join("".join(bench.corpus.decode(tokens.tolist()))[:TEXT].split()),
            }


def label_rows(bench: Bench, settings: TruthConfig, traces: Traces) -> Iterator[Row]:
    """Returns the labels of the top 10 %, against the window."""
    labels = bench.corpus.labels_of(bench.stream.sample_ids)
    for unit, name in _shown(settings, traces):
        values = values_of(bench, traces, unit, name)
        top = np.argsort(-values, kind="stable")[: round(0.1 * len(values))]
        for one in label_enrichment(labels, top):
            yield {"seed": bench.seed, "unit": unit, "estimator": name, "label": one.label,
                   "share_of_top": one.share_chosen, "share_of_window": one.share_all}  # fmt: skip


def _shown(settings: TruthConfig, traces: Traces) -> list[tuple[str, str]]:
    return [(unit, name) for unit in settings.units for name in SIDE_BY_SIDE
            if name in traces[unit]]  # fmt: skip


def outcomes_of(
    bench: Bench, changes: Changes | None, settings: TruthConfig | None = None, rerun: int = 0
) -> dict[str, Outcome] | None:
    """Returns every unit after an arm, from a perturbed start if `rerun` is not 0, or None."""

    def build() -> dict[str, Outcome]:
        start = None
        if settings is not None and rerun:
            start = bench.perturbed_start(settings.perturbation, settings.seed, rerun)
        return bench.outcomes(bench.arm(changes, start))

    return finished(build)


def _columns(prefix: str, outcome: Outcome | None) -> Row:
    return {
        f"{prefix}metric": outcome.metric if outcome else None,
        f"{prefix}measurement": outcome.measurement if outcome else None,
    }


def _mean(outcomes: Iterable[Outcome]) -> Outcome | None:
    keys = list(outcomes)
    return Outcome(*np.mean(keys, axis=0).tolist()) if keys else None
