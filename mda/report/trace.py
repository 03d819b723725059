"""The output of a trace: all samples as CSV, the extremes as text, the distribution."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mda import store
from mda.analysis.enrichment import Enrichment, heavy_tail, label_enrichment
from mda.analysis.positions import PositionShares, position_shares
from mda.data.stream import Corpus
from mda.emergence.onset import there_before
from mda.report.catalysts import FILE as CATALYSTS
from mda.report.catalysts import catalysts_of, print_catalysts
from mda.report.drawing import plt, save_figure
from mda.report.page import environment
from mda.report.terminal import shown
from mda.types import Scores

FILES = {
    "scores.csv": "every sample of the window: id, step, label, loss in nats, score of the unit",
    "top_samples.html": "highest and lowest samples, each token coloured by its influence",
    "top_samples.json": "the same as data: tokens and their influence",
    "distribution.png": "distribution of the scores and share of influence of the top samples",
    "enrichment.csv": "share of each label in the top and bottom decile, with p-values",
    "catalysts.json": "how much of the scores repetition, loss and label explain, and by decile",
}
SPREAD = 64  # samples, evenly over the window, whose influence is divided by position
TAIL = (0.01, 0.05, 0.1, 0.2, 0.5)


def extremes(values: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns positions of the n highest scores, highest first, and the n lowest, lowest first."""
    order = np.argsort(-values, kind="stable")
    return order[:n], order[::-1][:n]


def write_scores(path: Path, scores: Scores, unit: str, labels: Sequence[str]) -> None:
    """Writes a CSV of all samples in stream order; the loss is empty where none was computed."""
    columns = zip(
        scores.sample_ids.tolist(),
        scores.steps.tolist(),
        labels,
        scores.losses.tolist(),
        scores.of(unit).tolist(),
        strict=True,
    )
    store.write_csv(
        path,
        [
            {"id": i, "step": s, "label": c, "loss": None if loss != loss else loss, "score": v}
            for i, s, c, loss, v in columns
        ],
    )


def decile_enrichment(values: np.ndarray, labels: Sequence[str]) -> dict[str, list[Enrichment]]:
    """Compares the labels of the top and bottom decile with the whole window."""
    top, bottom = extremes(values, max(1, round(0.1 * len(values))))
    return {"top": label_enrichment(labels, top), "bottom": label_enrichment(labels, bottom)}


def write_enrichment(path: Path, found: dict[str, list[Enrichment]]) -> None:
    """Writes a CSV with a row for each decile and label."""
    store.write_csv(path, [{"decile": d, **asdict(e)} for d, rows in found.items() for e in rows])


def plot_distribution(values: np.ndarray, unit: str, path: Path, dpi: int) -> None:
    """Plots a histogram of the scores, and the cumulative influence of the top x %, if any."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4))
    left.hist(values, bins=120, color="tab:blue")
    left.set(yscale="log", xlabel=f"score for {unit}", ylabel="samples")
    if (values > 0).any():
        shares = np.linspace(0, 1, 201)
        right.plot(100 * shares, 100 * heavy_tail(values, shares), lw=2)
        right.plot([0, 100], [0, 100], color="0.7", ls=":")
        at_ten = 100 * heavy_tail(values, [0.1])[0]
        right.plot(10, at_ten, "o", color="tab:red")
        right.annotate(f"top 10 % carry {at_ten:.0f} %", (10, at_ten), (18, at_ten - 8), fontsize=9)
    else:
        right.text(0.5, 0.5, "no score is positive", ha="center", transform=right.transAxes)
    right.set(xlabel="top samples, % of the window", ylabel="% of all positive influence")
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    save_figure(fig, path, dpi)


def sample_records(
    corpus: Corpus,
    scores: Scores,
    unit: str,
    positions: np.ndarray,
    influence_NT: np.ndarray,
    by_loss_NT: np.ndarray | None,
) -> list[dict[str, Any]]:
    """Returns text and token-level influence of some samples, as plain data.

    `influence` is that of the input tokens; the last token is only a target and has none. `by_loss`
    attributes the same score to the losses: its first number is that of predicting the second
    token.
    """
    ids = scores.sample_ids[positions]
    tokens = corpus.rows(ids).tolist()
    labels, values = corpus.labels_of(ids), scores.of(unit)
    return [
        {
            "id": int(ids[i]),
            "step": int(scores.steps[p]),
            "label": labels[i],
            "score": float(values[p]),
            "loss": None if np.isnan(scores.losses[p]) else float(scores.losses[p]),
            "tokens": corpus.decode(tokens[i]),
            "influence": [float(f"{x:.4g}") for x in influence_NT[i]],
            "by_loss": None if by_loss_NT is None else [float(f"{x:.4g}") for x in by_loss_NT[i]],
        }
        for i, p in enumerate(positions)
    ]


def write_samples_page(
    path: Path,
    unit: str,
    records: dict[str, list[dict[str, Any]]],
    before: bool,
    elsewhere: str | None = None,
) -> None:
    """Writes an HTML page without scripts; red tokens have positive influence, blue negative.

    With `before`, the unit emerged before the first step, so no sample here made it. `elsewhere` is
    the address of the unit's page on another site.
    """
    shaded = {
        title: [{**sample, "texts": list(_texts(sample))} for sample in samples]
        for title, samples in records.items()
    }
    values = {"unit": unit, "records": shaded, "before": there_before(unit) if before else ""}
    values["elsewhere"] = elsewhere
    with store.replacing(path) as file:
        file.write(environment().get_template("trace.html.j2").render(**values))


def _texts(sample: Mapping[str, Any]) -> Iterator[list[tuple[str, float, float]]]:
    """Yields tokens with their part of the score and its share of the largest, [-1, 1].

    First by where the unit's parameters act, then by the loss of predicting the token.
    """
    by_loss = sample["by_loss"]
    for parts in ([*sample["influence"], 0.0], *([] if by_loss is None else [[0.0, *by_loss]])):
        largest = max((abs(x) for x in parts), default=0.0) or 1.0
        shares = (part / largest for part in parts)
        yield list(zip(sample["tokens"], parts, shares, strict=True))


def print_enrichment(found: dict[str, list[Enrichment]]) -> None:
    """Prints every label's share in the window, in the top and in the bottom decile."""
    bottom = {e.label: e for e in found["bottom"]}
    table = Table(title="labels of the top and bottom decile", title_justify="left")
    for column in ("label", "window", "top decile", "ratio", "p enriched", "bottom decile"):
        table.add_column(column, justify="left" if column == "label" else "right")
    for e in found["top"]:
        table.add_row(
            shown(e.label),
            f"{e.share_all:.1%}",
            f"{e.share_chosen:.1%}",
            f"{e.ratio:.2f}",
            f"{e.p_enriched:.1e}",
            f"{bottom[e.label].share_chosen:.1%}",
        )
    Console().print(table)


def print_positions(found: PositionShares) -> None:
    """Prints the shares of the bands of positions, and a warning where one has too much."""
    bands = ", ".join(f"{name}: {share:.0%}" for name, share in found.bands.items())
    print(f"absolute influence by position, mean of {found.samples} samples: {bands}")
    if found.warning is not None:
        print(f"warning: {found.warning}")


def sample_rows(folder: Path) -> list[dict[str, Any]]:
    """Returns the samples of `top_samples.json` as rows of a table, each with its text."""
    kept = ("id", "step", "label", "score", "loss")
    return [
        {"set": title, **{key: record[key] for key in kept}, "text": "".join(record["tokens"])}
        for title, records in store.read_json(folder / "top_samples.json")["samples"].items()
        for record in records
    ]


def report_trace(
    corpus: Corpus,
    scores: Scores,
    unit: str,
    influence: Callable[[np.ndarray], np.ndarray],
    by_loss: Callable[[np.ndarray], np.ndarray | None],
    folder: Path,
    n: int,
    dpi: int,
    before: bool,
    elsewhere: str | None = None,
) -> dict[str, Any]:
    """Writes `FILES` into `folder`, prints the tables and returns the results for the summary.

    `influence` gives the influence [n, T] of the positions of some sample ids, `by_loss` that of
    their losses, or None; with `before`, the unit emerged before the first step. `elsewhere` is the
    address of the unit's page on another site.
    """
    values, labels = scores.of(unit), corpus.labels_of(scores.sample_ids)
    top, bottom = extremes(values, n)
    write_scores(folder / "scores.csv", scores, unit, labels)
    enrichment = decile_enrichment(values, labels)
    write_enrichment(folder / "enrichment.csv", enrichment)
    plot_distribution(values, unit, folder / "distribution.png", dpi)
    spread = np.unique(np.linspace(0, len(values) - 1, SPREAD).astype(int))
    at_once = np.concatenate((top, bottom, spread))  # a direction is solved for once
    parts_NT, losses_NT = influence(scores.sample_ids[at_once]), by_loss(scores.sample_ids[at_once])
    records, place = {}, 0
    for title, at in ((f"The {n} highest", top), (f"The {n} lowest", bottom)):
        rows, place = slice(place, place + len(at)), place + len(at)
        own_NT = None if losses_NT is None else losses_NT[rows]
        records[title] = sample_records(corpus, scores, unit, at, parts_NT[rows], own_NT)
    positions = position_shares(parts_NT[place:])
    told = None if positions is None else asdict(positions) | {"warning": positions.warning}
    content = {"unit": unit, "positions": told, "samples": records}
    store.write_json(folder / "top_samples.json", content)
    write_samples_page(folder / "top_samples.html", unit, records, before, elsewhere)
    print_enrichment(enrichment)
    if positions is not None:
        print_positions(positions)
    causes = catalysts_of(corpus, scores, unit)
    if causes is not None:
        print_catalysts(causes)
    store.write_json(folder / CATALYSTS, None if causes is None else asdict(causes))
    tail, said = None, "no score is positive"
    if (values > 0).any():
        tail = dict(zip(map(str, TAIL), heavy_tail(values, TAIL).tolist(), strict=True))
        said = f"the top 10 % carry {tail['0.1']:.0%} of all positive influence"
    print(f"{len(values):,} samples scored for {unit}; {said}")
    if before:
        print(there_before(unit))
    return {
        "unit": unit,
        "there_before": before,
        "samples": len(values),
        "cumulative_influence": tail,
        "catalysts": None if causes is None else asdict(causes),
        "positions": told,
        "enrichment": {d: [asdict(e) for e in rows] for d, rows in enrichment.items()},
    }
