"""The comparison of a sweep as a W&B report: curves, effects, run comparer, claims and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import wandb
from wandb_workspaces.reports.v2 import interface as wr

from mda.report.page import markdown, number, p_value
from mda.schema.metrics import HEAD_METRICS

ARM = "config.arm"  # what runs are grouped by; `job_log` puts it into every run's configuration
TITLE = 128  # characters that W&B allows
SHOWN = ("unit", "strongest", "onset_step", "copy_gain", "icl_score", "val/loss")


def build_report(
    project: str,
    entity: str,
    title: str,
    ids: Sequence[str],
    metrics: Sequence[str],
    summary: Mapping[str, Any],
) -> wr.Report:
    """Returns the report of the arms whose W&B runs have these ids, without sending it.

    `metrics` are the units', such as prefix_matching, and `summary` that of the comparison. With an
    `entity` W&B's server is asked for the project; leave it empty without an account.
    """
    results = summary["results"]
    return wr.Report(
        project=project,
        entity=entity,
        title=title[:TITLE],
        description=f"{len(ids)} runs, each retrain once",
        width="fluid",
        blocks=[
            wr.H1("Claims and verdicts"),
            wr.MarkdownBlock(_verdicts(results["verdicts"])),
            *(wr.MarkdownBlock(f"> {note}") for note in summary["notes"]),
            wr.H1("Emergence"),
            wr.P("Mean over the runs of an arm, with its standard error."),
            wr.PanelGrid(runsets=[_arms(project, entity, ids)], panels=_curves(metrics)),
            wr.H1("Effects"),
            wr.PanelGrid(runsets=[_arms(project, entity, ids)], panels=_bars()),
            wr.MarkdownBlock(_effects(results["arms"])),
            wr.H1("Runs"),
            wr.PanelGrid(
                runsets=[_arms(project, entity, ids, grouped=False)],
                panels=[wr.RunComparer(diff_only="split", layout=wr.Layout(w=24, h=14))],
            ),
            wr.MarkdownBlock(f"Recompute: {summary['program']} at commit {summary['git']['sha']}."),
        ],
    )


def default_entity() -> str:
    """Returns the user or team that the account publishes under, from W&B's server."""
    return str(wandb.Api().default_entity)


def spec(report: wr.Report) -> dict[str, Any]:
    """Returns the report as plain data, in the form that W&B's server accepts."""
    return report._to_model().model_dump(mode="json", by_alias=True)


def _arms(project: str, entity: str, ids: Sequence[str], grouped: bool = True) -> wr.Runset:
    names = ", ".join(f"'{one}'" for one in ids)
    return wr.Runset(
        project=project,
        entity=entity,
        name="arms",
        filters=f"Metric('ID') in [{names}]",
        groupby=[ARM] if grouped else [],
    )


def _curves(metrics: Sequence[str]) -> list[Any]:
    shown = {
        f"{metric.replace('_', ' ')}, strongest head": f"emergence/{metric}/strongest"
        for metric in metrics
        if metric in HEAD_METRICS
    } | {
        "gain on the second copy (nats)": "emergence/copy_gain",
        "in-context-learning score (nats)": "emergence/icl_score",
        "held-out loss (nats)": "val/loss",
    }
    return [
        wr.LinePlot(
            title=title,
            x=axis,
            y=[name],
            groupby=ARM,
            groupby_aggfunc="mean",
            groupby_rangefunc="stderr",
            layout=wr.Layout(x=12 * (i % 2), y=8 * (i // 2), w=12, h=8),
        )
        for i, (title, name, axis) in enumerate(
            (title, name, axis) for title, name in shown.items() for axis in ("tokens", "step")
        )
    ]


def _bars() -> list[Any]:
    shown = {
        "unit at the window's end": "unit_metric",
        "ICL score at the window's end": "emergence/icl_score",
    }
    return [
        wr.BarPlot(
            title=title,
            metrics=[name],
            groupby=ARM,
            groupby_aggfunc="mean",
            groupby_rangefunc="stderr",
            layout=wr.Layout(x=12 * i, w=12, h=8),
        )
        for i, (title, name) in enumerate(shown.items())
    ]


def _verdicts(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = ("claim", "arm", "verdict", "effect", "p, corrected", "seeds")
    lines = [
        (
            row["text"],
            row["arm"] or "-",
            f"**{row['verdict']}**: {row['reason']}",
            _effect(row["mean"], None if row["low"] is None else (row["low"], row["high"])),
            p_value(row["p_holm"]),
            str(row["n"]),
        )
        for row in rows
    ]
    return "\n".join(markdown(heads, lines))


def _effects(arms: Mapping[str, Mapping[str, Any]]) -> str:
    heads = ("arm", "metric", "mean", "against", "difference", "p, corrected")
    lines = [
        (
            arm,
            metric,
            number(metrics[metric]["mean"]),
            reference,
            _effect(effect["difference"], effect["ci"]),
            p_value(effect["p_holm"]),
        )
        for arm, metrics in arms.items()
        for metric in SHOWN
        if metric in metrics
        for reference in ("control", "random")
        if (effect := metrics[metric].get(f"to_{reference}")) is not None
    ]
    return "\n".join(markdown(heads, lines))


def _effect(mean: float | None, ends: Sequence[float] | None) -> str:
    interval = "" if ends is None else f" [{number(ends[0])}, {number(ends[1])}]"
    return f"{number(mean)}{interval}"
