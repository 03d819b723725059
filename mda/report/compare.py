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
from mda.analysis.metrics import Measurements, measure, random_values
from mda.analysis.null import NullCheck, null_check
from mda.analysis.table import write_table
from mda.report import tables
from mda.report.catalysts import catalyst_rows
from mda.report.figures import draw_all
from mda.report.notes import discoveries, notes_on, study_line
from mda.report.page import sections, write_page
from mda.report.page_data import page_data
from mda.report.samples import pack_samples, read_samples
from mda.report.sections import Compared
from mda.report.summary import write_summary
from mda.schema import ReportConfig, StudyConfig
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
    written = files | _run_files()
    if samples is not None:
        written |= {one["file"]: f"samples of {one['name']}" for one in samples["sources"]}
    written |= {one["file"]: f"what explains the scores of {one['name']}" for one in causes}
    command = command or f"mda compare {_runs_argument(run_folders)}"
    shown = Compared(
        measured, rows, verdicts, checks, study, report, notes, data, causes, written, out, command,
        sentence,
    )  # fmt: skip
    context = {"title": report.title, "sections": sections(shown)}
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
        "<run>/edit.csv": "what the run's edit did to which sample",
        "<run>/config.yaml": "the run's resolved configuration",
    }


def _runs_argument(folders: Sequence[Path]) -> str:
    return f"report.runs=[{','.join(folder.as_posix() for folder in folders)}]"
