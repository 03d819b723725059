"""Sentences about a comparison as a whole: its study, its runs, and its caveats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mda.analysis.claims import Verdict
from mda.analysis.effects import Comparison
from mda.analysis.metrics import Measurements
from mda.analysis.null import NullCheck
from mda.analysis.statistics import benjamini_hochberg
from mda.report import tables
from mda.schema import StudyConfig

ONE_SEED = (
    "One seed: these are differences between single runs. There is no test, no interval and no "
    "p-value, and every claim is undecided. Whether an effect comes again, how large it is on "
    "average, and which estimator is better, only several seeds can say."
)


def study_line(study: StudyConfig) -> str:
    """Returns name, date and hash of the study, for every output."""
    date = f", written down {study.date}" if study.date else ""
    return f"study {study.name}{date}, hash {study.hash or 'none: it may have been changed'}"


def notes_on(
    measured: Measurements,
    rows: Sequence[Comparison],
    checks: Mapping[tuple[str, str], Sequence[NullCheck]],
    study: StudyConfig,
) -> list[str]:
    """Returns the caveats of the comparison: few seeds, pairs left out, a null that fails."""
    seeds = {run.seed for run in measured.runs}
    notes = []
    if study.claims and study.seeds and (others := seeds - set(study.seeds)):
        notes.append(
            f"Effects, but not verdicts, include runs of seeds that the study does not list: "
            f"{', '.join(map(str, sorted(others)))}."
        )
    if len(seeds) == 1:
        notes.append(ONE_SEED)
    else:
        smallest = 2.0 ** (1 - len(seeds))
        if smallest > 0.05:
            notes.append(
                f"With {len(seeds)} seeds no two-sided p-value of one run against one can be "
                f"below {smallest:.3g}."
            )
        counts = {row.effect.n for row in rows if row.metric == "unit"}
        if len(counts) > 1:
            notes.append("Not every arm was run with every seed; see the column of seeds.")
    for (arm, metric), found in checks.items():
        for one in found:
            if one.differs:
                notes.append(
                    f"Random edits differ that should not: replicate {one.replicate} of {arm} "
                    f"against the others on {metric}, corrected p = {one.p_holm:.2g}. Either it is "
                    "not a random edit, or comparisons with random edits cannot be trusted."
                )
    if any(len(units) > 1 for units in _units(measured).values()):
        notes.append(
            "There are several units. Tables and figures show each arm for its own unit; in "
            "figures the curves of the control and of random edits are those of one of these units."
        )
    if any(row.censored or row.reference_censored for row in rows):
        notes.append(
            "Some runs never reached the onset threshold. Their onset counts as the window's end. "
            "If only runs of the arm are concerned, the delay is a lower bound; if only runs of "
            "the reference, an upper bound; if both, it is neither."
        )
    notes += [f"Left out: {line}." for line in tables.dropped_pairs(rows)]
    return notes


def discoveries(verdicts: Sequence[Verdict]) -> list[str]:
    """Returns a note of the claims that hold by their false discovery rate over the whole study."""
    if not any(one.p is not None for one in verdicts):
        return []
    alpha, n = verdicts[0].alpha, len(verdicts)
    adjusted = benjamini_hochberg([one.p for one in verdicts], n)
    held = [f"{one.name} ({p:.2g})" for one, p in zip(verdicts, adjusted, strict=True)
            if p is not None and p <= alpha]  # fmt: skip
    said = f"{len(held)} hold: {', '.join(held)}" if held else "none holds"
    return [f"Over all {n} claims at a false discovery rate of {alpha:g} (Benjamini and Hochberg), "
            f"across families, {said}."]  # fmt: skip


def lead(measured: Measurements) -> str:
    """Returns one sentence that describes the comparison."""
    arms = {run.arm for run in measured.runs}
    units = _units(measured)
    seeds = list(units)
    named = ", ".join(f"{' and '.join(units[seed])} in seed {seed}" for seed in seeds[:12])
    more = " and others" if len(seeds) > 12 else ""
    plural = "s" if len(seeds) > 1 else ""
    return (
        f"{len(measured.runs)} runs: {len(arms)} arms over {len(seeds)} seed{plural}. The unit is "
        f"{named}{more}. Every arm retrains the same window from the same checkpoint as its "
        "control; only the edited samples differ."
    )


def _units(measured: Measurements) -> dict[int, list[str]]:
    """Returns for each seed the units of its edits; for a control without edits, its own."""
    units = {}
    for seed in sorted({run.seed for run in measured.runs}):
        runs = [run for run in measured.runs if run.seed == seed]
        edits = [run for run in runs if not run.arm.edit.is_control]
        units[seed] = list(dict.fromkeys(run.unit for run in edits or runs))
    return units
