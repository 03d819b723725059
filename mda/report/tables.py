"""The numbers of a comparison as rows for CSV, summary.json and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mda.analysis.arms import Arm, band_of, by_arm, relative, without_band
from mda.analysis.claims import VERDICTS, Verdict
from mda.analysis.effects import Comparison, told
from mda.analysis.metrics import Measurements, metrics_of
from mda.analysis.null import NullCheck
from mda.report.page import number, p_value
from mda.report.terminal import shown
from mda.schema import REFERENCES
from mda.schema.old_words import metric_now

VERDICT_STYLE: dict[str, str] = dict(
    zip(VERDICTS, ("green", "red", "magenta", "yellow"), strict=True)
)
VERDICT_COLUMNS = (
    "claim", "text", "verdict", "reason", "status", "status_reason", "arm", "reference", "metric",
    "direction", "n", "seeds", "mean", "low", "high", "p", "p_holm", "against_holm", "family",
    "family_size", "alpha", "min_seeds", "margin", "expected", "dropped",
)  # fmt: skip
SHOWN = ("unit", "icl_score")


def value_rows(measured: Measurements, folder: Path) -> list[dict[str, Any]]:
    """Returns every metric of every run for its targeted unit, with the folder of the run."""
    return [
        {
            "arm": run.arm.name,
            "seed": run.seed,
            "unit": run.unit,
            "metric": metric,
            "value": value,
            "censored": metric in one.censored,
            "run": relative(run.folder, folder),
        }
        for run in measured.runs
        for one in [measured.of(run, run)]
        for metric, value in one.values.items()
    ]


def effect_rows(rows: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Returns a row for each arm, reference and metric; numbers are empty without a test."""
    return [
        {
            "arm": row.arm.name,
            **_band(row.arm),
            "reference": row.reference,
            "metric": row.metric,
            "n": row.effect.n,
            "seeds": " ".join(map(str, row.seeds)),
            "arm_mean": row.arm_mean,
            "arm_sd": row.arm_sd,
            "reference_mean": row.reference_mean,
            "difference": row.effect.mean,
            "difference_sd": row.effect.sd,
            "ci_low": row.effect.low,
            "ci_high": row.effect.high,
            "p_two_sided": row.effect.p,
            "p_less": row.effect.p_less,
            "p_greater": row.effect.p_greater,
            "p_holm": row.p_holm,
            "at_least_p": row.at_least_p,
            "family": row.family,
            "censored": row.censored,
            "reference_censored": row.reference_censored,
            "dropped": told(row.dropped),
            "note": row.effect.note,
        }
        for row in rows
    ]


def _band(arm: Arm) -> dict[str, Any]:
    """Returns the dose-response that an arm belongs to, and its score band.

    It is empty for other arms.
    """
    if not arm.edit.is_band:
        return dict.fromkeys(("line", "band_low", "band_high"))
    band = band_of(arm)
    return {"line": without_band(arm).name, "band_low": band.low, "band_high": band.high}


def verdict_rows(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Returns a row for each claim: the claim, the numbers, the verdict and its reason."""
    return [
        {
            "claim": v.name,
            "text": v.claim.text,
            "verdict": v.verdict,
            "reason": v.reason,
            "status": v.status,
            "status_reason": v.status_reason,
            "arm": v.arm,
            "reference": v.claim.reference,
            "metric": metric_now(v.claim.metric),
            "direction": v.claim.direction,
            "n": v.effect.n,
            "seeds": " ".join(map(str, v.seeds)),
            "mean": v.effect.mean,
            "low": v.effect.low,
            "high": v.effect.high,
            "p": v.p,
            "p_holm": v.p_holm,
            "against_holm": v.against_holm,
            "family": v.claim.family,
            "family_size": v.family,
            "alpha": v.alpha,
            "min_seeds": v.claim.min_seeds,
            "margin": v.claim.margin,
            "expected": v.claim.expected,
            "dropped": told(v.dropped),
        }
        for v in verdicts
    ]


def null_rows(checks: Mapping[tuple[str, str], Sequence[NullCheck]]) -> list[dict[str, Any]]:
    """Returns a row for each random arm, metric and replicate whose null was checked."""
    return [
        {"arm": arm, "metric": metric, **asdict(one)}
        for (arm, metric), found in checks.items()
        for one in found
    ]


def reference_rows(rows: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Returns every reference in words, and how many arms were compared with it."""
    return [
        {
            "reference": name,
            "what": what,
            "arms": len({row.arm for row in rows if row.reference == name}),
        }
        for name, what in REFERENCES.items()
    ]


def dropped_pairs(rows: Sequence[Comparison]) -> list[str]:
    """Returns one line for each reason to leave pairs out of the comparisons."""
    left_out: dict[str, tuple[set[str], set[int]]] = {}
    for row in rows:
        for text in row.dropped:
            seed, _, why = text.partition(": ")
            arms, seeds = left_out.setdefault(why, (set(), set()))
            arms.add(row.arm.name)
            seeds.add(int(seed.removeprefix("seed ")))
    return [
        f"{why} (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, sorted(seeds)))}; "
        f"{next(iter(arms)) if len(arms) == 1 else f'{len(arms)} arms'})"
        for why, (arms, seeds) in left_out.items()
    ]


def by_arm_and_metric(measured: Measurements, rows: Sequence[Comparison]) -> dict[str, Any]:
    """Returns mean, sd and n over seeds, and paired differences, by arm and metric."""
    summary: dict[str, Any] = {}
    for arm, seeds in by_arm(measured.runs).items():
        summary[arm.name] = {}
        for metric in metrics_of(measured):
            per_seed = []
            for runs in seeds.values():
                values = [measured.of(run, run).values.get(metric) for run in runs]
                known = [value for value in values if value is not None]
                if known:
                    per_seed.append(float(np.mean(known)))
            summary[arm.name][metric] = {
                "mean": float(np.mean(per_seed)) if per_seed else None,
                "sd": float(np.std(per_seed, ddof=1)) if len(per_seed) > 1 else None,
                "n": len(per_seed),
            }
    for row in rows:
        effect = row.effect
        summary[row.arm.name][row.metric][f"to_{row.reference}"] = {
            "difference": effect.mean,
            "sd": effect.sd,
            "n": effect.n,
            "ci": None if effect.low is None else [effect.low, effect.high],
            "p": effect.p,
            "p_holm": row.p_holm,
            "note": effect.note,
        }
    return summary


def spread(rows: Sequence[Comparison]) -> dict[str, dict[str, float | None]]:
    """Returns each arm's change of the other induction heads and of all other heads.

    Changes are shares of the control, because the two groups start from very different values.
    """
    changes: dict[str, dict[str, float | None]] = {}
    for row in rows:
        if row.reference == "control" and row.metric in ("heads/induction", "heads/rest"):
            name, change, start = row.metric, row.effect.mean, row.reference_mean
            share = change / start if change is not None and start else None
            changes.setdefault(row.arm.name, {})[name.removeprefix("heads/")] = share
    return changes


def print_comparison(
    headline: str,
    rows: Sequence[Comparison],
    verdicts: Sequence[Verdict],
    notes: Sequence[str],
    study: str,
) -> None:
    """Prints the finding in a sentence, effects of all arms but bands, verdicts and caveats."""
    console = Console()
    console.print(f"[bold]{shown(headline)}[/bold]\n", highlight=False)
    table = Table(title="difference at the window's end, mean over seeds", title_justify="left")
    for name in ("arm", "against", *SHOWN, "seeds"):
        table.add_column(name, justify="left" if name in ("arm", "against") else "right")
    plain = [row for row in rows if not row.arm.edit.is_band]
    for arm, reference in dict.fromkeys((row.arm, row.reference) for row in plain):
        own = {r.metric: r for r in plain if (r.arm, r.reference) == (arm, reference)}
        cells = [_cell(own[metric]) if metric in own else "" for metric in SHOWN]
        seeds = str(max(r.effect.n for r in own.values()))
        table.add_row(shown(arm.name), reference, *cells, seeds)
    console.print(table)
    for one in reference_rows(rows):
        run = "" if one["arms"] else " (not run)"
        console.print(f"{one['reference']}{run}: {one['what']}", highlight=False, style="dim")
    one_seed = bool(rows) and max(row.effect.n for row in rows) < 2
    if not one_seed:
        said = "p: two-sided, corrected over the study's arms (no p: not an arm of the study)"
        console.print(f"{said}; below it the interval", markup=False)
    if verdicts and one_seed:
        console.print(f"verdicts: with one seed none of {len(verdicts)} claims can be tested")
    elif verdicts:
        _print_verdicts(console, verdicts, study)
    for note in notes:
        console.print(shown(note), highlight=False)


def _print_verdicts(console: Console, verdicts: Sequence[Verdict], study: str) -> None:
    table = Table(title=f"verdicts of {study}", title_justify="left")
    for name in ("claim", "arm", "verdict", "why"):
        table.add_column(name)
    for v in verdicts:
        word = f"[{VERDICT_STYLE[v.verdict]}]{v.verdict}[/]\n{v.status}"
        why = v.reason + (f"\nleft out: {told(v.dropped)}" if v.dropped else "")
        table.add_row(shown(v.claim.text), shown(v.arm or "-"), word, shown(why))
    console.print(table)
    why = dict.fromkeys(f"{v.status}: {v.status_reason}" for v in verdicts)
    for line in why:
        console.print(shown(line), highlight=False)


def _cell(row: Comparison) -> str:
    effect = row.effect
    if effect.low is None or effect.high is None:
        return number(effect.mean)
    ends = f"{effect.low:.2g}, {effect.high:.2g}"
    return f"{number(effect.mean)}  p {p_value(row.p_holm)}\n\\[{ends}]"
