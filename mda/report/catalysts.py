"""Explanations of a trace's influence: measured, printed, and read back for the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mda import store
from mda.analysis.arms import relative
from mda.analysis.catalysts import SAMPLES, Catalysts, catalysts
from mda.data.stream import Corpus
from mda.estimator.repetition import repetition
from mda.report.page import DASH, MINUS
from mda.report.samples import TracedSamples
from mda.types import Scores

FILE = "catalysts.json"
BATCH = 4096
WIDEST = 92  # of a cell, in per cent: a bar ends before the next column


def catalysts_of(corpus: Corpus, scores: Scores, unit: str) -> Catalysts | None:
    """Returns the explanation of the unit's scores; None for fewer than ten samples.

    A window of more than `SAMPLES` is sampled at random.
    """
    n = len(scores.sample_ids)
    if n < 10:
        return None
    at = np.arange(n)
    if n > SAMPLES:
        at = np.sort(np.random.default_rng(0).choice(n, SAMPLES, replace=False))
    ids = scores.sample_ids[at]
    repeats = [
        repetition(corpus.rows(ids[i : i + BATCH]).numpy(), corpus.counts).sum(1)
        for i in range(0, len(ids), BATCH)
    ]
    found = np.concatenate(repeats)
    return catalysts(scores.of(unit)[at], found, scores.losses[at], corpus.labels_of(ids))


def print_catalysts(found: Catalysts) -> None:
    """Prints two tables: the properties that explain the scores, and the means of each decile."""
    title = f"what explains the scores (ranks): together R² {found.together:.2f}"
    table = Table("cause", "R² alone", "partial correlation", title=title, title_justify="left")
    for one in found.causes:
        table.add_row(one.name, f"{one.alone:.2f}", _signed(one.partial, one.name))
    Console().print(table)


def _signed(partial: float | None, name: str) -> str:
    if partial is None:
        return DASH
    return f"{partial:.2f}" if name == "label" else f"{partial:+.2f}".replace("-", MINUS)


def catalyst_rows(traced: Sequence[TracedSamples], out: Path) -> list[dict[str, Any]]:
    """Returns the page's rows on the explanation of each trace that has one.

    The bars of a decile are shares of the largest mean over the deciles. The numbers are in `file`,
    whose path is relative to the page's folder `out`.
    """
    rows = []
    for one in traced:
        path = one.path.with_name(FILE)
        content = store.read_json(path) if path.exists() else None
        if content is not None:
            name = f"{one.unit}, {one.estimator}, seed {one.seed}"
            causes = [
                {**c, "alone": f"{c['alone']:.2f}", "partial": _signed(c["partial"], c["name"])}
                for c in content["causes"]
            ]
            together = f"{content['together']:.2f}"
            shown = {"name": name, "together": together, "causes": causes}
            shown["file"] = relative(path, out)
            rows.append({**content, **shown, "deciles": _with_bars(content["deciles"])})
    return rows


def _with_bars(deciles: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    largest = {
        key: max((one[key] for one in deciles if one[key] is not None), default=0) or 1
        for key in ("repetition", "loss")
    }
    return [
        {
            **one,
            "number": number,
            **{f"{key}_bar": round(WIDEST * (one[key] or 0) / largest[key]) for key in largest},
        }
        for number, one in enumerate(deciles, 1)
    ]
