"""Comparing arms: effects, tests, verdicts, figures and the page, from finished run folders."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from mda import store
from mda.analysis.bearing import bearing
from mda.analysis.claims import Verdict, judge
from mda.analysis.effects import Comparison, compare_arms
from mda.analysis.folders import read_runs
from mda.analysis.headline import headline
from mda.analysis.metrics import METRICS, Measurements, measure, random_values
from mda.analysis.null import NullCheck, null_check
from mda.analysis.statistics import benjamini_hochberg
from mda.analysis.table import write_table
from mda.report import tables
from mda.report.catalysts import catalyst_rows
from mda.report.figures import draw_all
from mda.report.page import percent, sections, write_page
from mda.report.page_data import page_data, provenance
from mda.report.samples import pack_samples, read_samples
from mda.report.summary import write_summary
from mda.schema import ReportConfig, StudyConfig
from mda.schema.old_words import DATED
from mda.schema.setting import printable

FILES = {
    "report.html": "this comparison as one page, with interactive figures",
    "effects.csv": "every arm against its references on every metric: difference, interval, p",
    "verdicts.csv": "every claim, the numbers of its test, the verdict and its reason",
    "values.csv": "every metric of every run, with the folder whose curve.csv it was read from",
    "null.csv": "each random edit against the others of its seed, which should not differ",
    "summary.json": "the same results by arm and metric, with versions and hashes",
}
NULL_METRICS = ("unit", "icl_score")
LARGE_MB = 10.0  # a page above it shows less of each sample, as its largest part
FEWER_TOKENS = (100_000, 20_000)  # of all samples together, one after the other


def compare(
    run_folders: Sequence[Path],
    out: Path,
    study: StudyConfig,
    report: ReportConfig,
    traces: Sequence[Path] = (),
    command: str = "",
    seed: int = 0,
) -> dict[str, Any]:
    """Compares all arms in and below the folders; writes `FILES` and figures into `out`.

    `traces` are folders of `mda trace` whose samples the page shows, `command` repeats the
    comparison, and `seed` is that of all random draws. Prints the tables and returns the content of
    summary.json. With one seed there are differences but no tests, as every output states. A folder
    that cannot be read is left out and named in the notes. Raises ValueError, before anything is
    written, where the folders hold nothing to compare.
    """
    begin = time.perf_counter()
    left_out: list[str] = []
    try:
        runs = read_runs(run_folders, left_out.append)
    except ValueError as error:
        raise ValueError("; ".join([str(error), *left_out])) from error
    measured = measure(runs)
    shared = (report.confidence, report.resamples, seed)
    rows = compare_arms(measured, study, *shared)
    verdicts = judge(study, measured, *shared)
    sentence = headline(measured, study)
    checks = null_checks(measured, study.alpha, seed)
    traced = [read_samples(folder) for folder in traces]
    samples, causes = pack_samples(traced, out), catalyst_rows(traced, out)
    out.mkdir(parents=True, exist_ok=True)
    _write_tables(out, measured, rows, verdicts, checks)
    files = FILES | draw_all(measured, rows, out, report.dpi)
    data = page_data(measured, rows, verdicts) | {"samples": samples}
    notes = [f"Left out: {printable(reason)}." for reason in left_out]
    notes += [*bearing(measured, study), *notes_on(measured, rows, checks, study)]
    notes += discoveries(verdicts)
    about = study_line(study)
    if report.pack:
        write_table(measured.runs, Path(report.pack))
    context = {
        "title": report.title,
        "headline": sentence,
        "lead": lead(measured),
        "study": about,
        "interval": "BCa bootstrap over seeds, too narrow with few"
        if study.hash in DATED
        else "of Student, for the mean over seeds",
        "one_seed": len({run.seed for run in measured.runs}) == 1,
        "references": tables.reference_rows(rows),
        "notes": notes,
        "percent": percent(report.confidence),
        "verdicts": tables.verdict_rows(verdicts),
        "families": {v.claim.family: v.family for v in verdicts},
        "effects": tables.effect_rows(rows),
        "metrics": METRICS,
        "null_checks": tables.null_rows(checks),
        "has_dose": bool(data["dose"]),
        "has_samples": samples is not None,
        "catalysts": causes,
        "sections": sections(measured, rows, verdicts),
        "command": command or f"mda compare {_runs_argument(run_folders)}",
        "files": files
        | _run_files()
        | ({} if samples is None else _sample_files(samples))
        | {one["file"]: f"what explains the scores of {one['name']}" for one in causes},
        "runs": provenance(measured.runs, out),
        "git": store.git_state(),
        "versions": store.versions(),
    }
    size = write_page(out / "report.html", context, data)
    for budget in FEWER_TOKENS:
        if size > LARGE_MB and traced:
            data["samples"] = pack_samples(traced, out, budget)
            size = write_page(out / "report.html", context, data)
    summary = write_summary(
        out,
        "compare",
        seed=seed,
        fingerprints={f"{r.arm.name} seed {r.seed} {r.fingerprint}": r.fingerprint
                      for r in measured.runs},
        results={
            "headline": sentence,
            "arms": tables.by_arm_and_metric(measured, rows),
            "verdicts": tables.verdict_rows(verdicts),
            "null": tables.null_rows(checks),
            "other_heads": tables.spread(rows),
            "page_mb": round(size, 2),
        },
        files=files,
        times={"total_s": time.perf_counter() - begin},
        notes=notes,
        study=asdict(study) | {"hash": study.hash, "content_hash": study.content_hash()},
    )  # fmt: skip
    tables.print_comparison(sentence, rows, verdicts, notes, about)
    return summary


def null_checks(
    measured: Measurements, alpha: float, seed: int
) -> dict[tuple[str, str], list[NullCheck]]:
    """Returns the null checks of random arms with two or more seeds and replicates."""
    checks = {
        (arm, metric): one
        for metric in NULL_METRICS
        for arm, one in random_values(measured, metric).items()
    }
    return {
        key: null_check(values, alpha, replicates, len(checks), seed=seed)
        for key, (replicates, values) in checks.items()
    }


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
            f"Effects include runs of seeds that the study does not list, verdicts do not: "
            f"{', '.join(map(str, sorted(others)))}."
        )
    if len(seeds) == 1:
        notes.append(
            "One seed: these are differences between single runs. There is no test, no interval "
            "and no p-value, and every claim is undecided."
        )
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
                    f"Random edits that should not differ do: replicate {one.replicate} of {arm} "
                    f"against the others on {metric}, corrected p = {one.p_holm:.2g}. Either it is "
                    "no random edit, or the comparisons with random edits cannot be trusted."
                )
    if any(len(units) > 1 for units in _units(measured).values()):
        notes.append(
            "Several units: tables compare each arm for its own. In figures too an arm's curve is "
            "that of its unit, but the control's, and that of random edits, is of one of them."
        )
    if any(row.censored or row.reference_censored for row in rows):
        notes.append(
            "Some runs never reached the onset threshold. Their onset counts as the window's end, "
            "so a delay is a lower bound where that is so of the arm alone, an upper one where it "
            "is so of the reference alone, and no bound where it is so of both."
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
            f"whatever their families, {said}."]  # fmt: skip


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


def _write_tables(
    out: Path,
    measured: Measurements,
    rows: Sequence[Comparison],
    verdicts: Sequence[Verdict],
    checks: Mapping[tuple[str, str], Sequence[NullCheck]],
) -> None:
    store.write_csv(out / "values.csv", tables.value_rows(measured, out))
    store.write_csv(out / "effects.csv", tables.effect_rows(rows))
    store.write_csv(out / "verdicts.csv", tables.verdict_rows(verdicts), tables.VERDICT_COLUMNS)
    names = ["arm", "metric", *(item.name for item in fields(NullCheck))]
    store.write_csv(out / "null.csv", tables.null_rows(checks), names)


def _run_files() -> dict[str, str]:
    return {
        "<run>/curve.csv": "a run's emergence curve: every metric on this page is read from it",
        "<run>/plan.csv": "what the run's edit did to which sample",
        "<run>/config.yaml": "the run's resolved configuration",
    }


def _sample_files(samples: Mapping[str, Any]) -> dict[str, str]:
    return {one["file"]: f"samples of {one['name']}" for one in samples["sources"]}


def _runs_argument(folders: Sequence[Path]) -> str:
    return f"report.runs=[{','.join(folder.as_posix() for folder in folders)}]"
