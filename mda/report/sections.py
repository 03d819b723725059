"""The values that the sections of a comparison's page show, a function for each template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mda import store
from mda.analysis.claims import Verdict
from mda.analysis.effects import Comparison
from mda.analysis.metrics import METRICS, Measurements
from mda.analysis.null import NullCheck
from mda.report import tables
from mda.report.notes import ONE_SEED, lead, study_line
from mda.report.page import percent
from mda.report.page_data import provenance
from mda.schema import ReportConfig, StudyConfig
from mda.schema.old_words import DATED

Values = dict[str, Any]


@dataclass(frozen=True)
class Compared:
    """A comparison of arms, as the sections of its page show it."""

    measured: Measurements
    rows: Sequence[Comparison]
    verdicts: Sequence[Verdict]
    checks: Mapping[tuple[str, str], Sequence[NullCheck]]  # of random edits by arm and metric
    study: StudyConfig
    report: ReportConfig
    notes: Sequence[str]
    drawn: Mapping[str, Any]  # by the page's script, see `page_data`
    causes: Sequence[Mapping[str, Any]]  # see `catalysts.catalyst_rows`
    files: Mapping[str, str]  # what each written file holds
    folder: Path  # of the page
    command: str  # that repeats the comparison
    headline: str  # the finding in one sentence


def curves(compared: Compared) -> Values:
    """Returns the sentence below the curves, which the page's script draws, and its limits."""
    return {
        "headline": compared.headline,
        "one_seed": ONE_SEED if ONE_SEED in compared.notes else "",
    }


def verdicts(compared: Compared) -> Values:
    """Returns the claims and their tests, below the notes on the whole comparison."""
    dated = compared.study.hash in DATED
    return {
        "lead": lead(compared.measured),
        "notes": [note for note in compared.notes if note != ONE_SEED],  # that is above
        "one_seed": len({run.seed for run in compared.measured.runs}) == 1,
        "study": study_line(compared.study),
        "percent": percent(compared.report.confidence),
        "interval": "BCa bootstrap over seeds, too narrow with few"
        if dated
        else "of Student, for the mean over seeds",
        "verdicts": tables.verdict_rows(compared.verdicts),
        "families": {v.claim.family: v.family for v in compared.verdicts},
    }


def effects(compared: Compared) -> Values:
    """Returns the table of all effects, and that of random edits against each other."""
    return {
        "references": tables.reference_rows(compared.rows),
        "metrics": METRICS,
        "effects": tables.effect_rows(compared.rows),
        "percent": percent(compared.report.confidence),
        "null_checks": tables.null_rows(compared.checks),
    }


def dose(compared: Compared) -> Values | None:
    """Returns nothing, which the page's script draws; None without edits of bands of scores."""
    return {} if compared.drawn["dose"] else None


def samples(compared: Compared) -> Values | None:
    """Returns nothing: the page's script lists the samples. None without a trace."""
    return None if compared.drawn["samples"] is None else {}


def catalysts(compared: Compared) -> Values | None:
    """Returns what explains the scores of each trace, None without one."""
    return {"catalysts": compared.causes} if compared.causes else None


def recompute(compared: Compared) -> Values:
    """Returns the commands, folders, hashes and versions behind the page."""
    return {
        "command": compared.command,
        "files": compared.files,
        "runs": provenance(compared.measured.runs, compared.folder),
        "git": store.git_state(),
        "versions": store.versions(),
    }
