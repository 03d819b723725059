"""The samples of a trace as text, packed for the page: tokens with their own influence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mda import store
from mda.analysis.arms import relative

FILE = "top_samples.json"
LEVELS = 100  # influence is shown in hundredths of the sample's largest


@dataclass(frozen=True)
class TracedSamples:
    """The highest and lowest samples of one trace; `groups` are its records by title."""

    unit: str
    seed: int
    estimator: str
    path: Path
    groups: dict[str, list[dict[str, Any]]]


def read_samples(folder: Path) -> TracedSamples:
    """Returns the samples of a folder of `mda trace`.

    Raises ValueError where there are none.
    """
    try:
        content = store.read_object(folder / FILE)
        summary = store.read_object(folder / "summary.json")
        groups = {str(title): list(records) for title, records in content["samples"].items()}
        for record in (one for records in groups.values() for one in records):
            if not 0 <= len(record["tokens"]) - len(record["influence"]) <= 1:
                raise ValueError(f"sample {record['id']} has tokens without influence")
            if not {"id", "step", "label", "score"} <= set(record):
                raise ValueError(f"a sample has only {', '.join(record)}")
        return TracedSamples(
            unit=str(content["unit"]),
            seed=int(summary["seed"]),
            estimator=str(_estimator(folder, summary)),
            path=folder / FILE,
            groups=groups,
        )
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{folder} is not the folder of a finished trace: {reason}") from error


def _estimator(folder: Path, summary: dict[str, Any]) -> str:
    if (path := folder / "config.yaml").exists():
        return yaml.safe_load(path.read_text("utf-8"))["estimator"]["name"]
    return summary["estimator"]["name"]


def traces_of(run_folders: Iterable[Path], runs: Path) -> list[Path]:
    """Returns the trace folders below `runs` whose scores the arms in the folders used.

    There is one folder for each scores artifact, in the order of their names.
    """
    arms = [path for folder in run_folders for path in folder.rglob("summary.json")]
    fingerprints = {_scores_of(path, "intervention") for path in arms} - {None}
    folders_of: dict[str, Path] = {}
    for path in sorted(runs.rglob(FILE)):
        name = _scores_of(path.parent / "summary.json", "fingerprints")
        if name is not None and name in fingerprints:
            folders_of.setdefault(name, path.parent)
    return list(folders_of.values())


def _scores_of(summary: Path, key: str) -> str | None:
    """Returns the fingerprint of the scores that a summary with this key names, or None."""
    try:
        content = store.read_object(summary)
        name = content["fingerprints"]["scores"] if key in content else None
    except (OSError, KeyError, TypeError, ValueError):
        return None  # whoever reads it as an arm says what is wrong with it
    return name if isinstance(name, str) else None


def pack_samples(
    traced: Sequence[TracedSamples], out: Path, budget: int = 350_000
) -> dict[str, Any] | None:
    """Returns the samples of all traces in a compact form for a page in `out`; None without any.

    Tokens are indices into one list; influence is in hundredths of the sample's largest. If all
    samples together have more than `budget` tokens, each is cut to the stretch with most of its
    absolute influence, and the result records this.
    """
    records = [
        (s, title, record)
        for s, one in enumerate(traced)
        for title, group in one.groups.items()
        for record in group
    ]
    if not records:
        return None
    longest = max(1, budget // len(records))
    labels = sorted({record["label"] for _, _, record in records})
    titles = list(dict.fromkeys(title for _, title, _ in records))
    vocabulary: dict[str, int] = {}
    samples, cut = [], False
    for source, title, record in records:
        first, last = _densest(record["influence"], len(record["tokens"]), longest)
        cut = cut or last - first < len(record["tokens"])
        parts = np.zeros(len(record["tokens"]))
        parts[: len(record["influence"])] = record["influence"]
        largest = float(np.abs(parts).max()) or 1.0
        levels = np.round(LEVELS * parts / largest).astype(int)
        tokens = record["tokens"][first:last]
        samples.append(
            {
                "source": source,
                "group": titles.index(title),
                "id": record["id"],
                "step": record["step"],
                "label": labels.index(record["label"]),
                "score": record["score"],
                "loss": record.get("loss"),
                "first": first,
                "largest": float(f"{largest:.3g}"),
                "tokens": [vocabulary.setdefault(token, len(vocabulary)) for token in tokens],
                "levels": levels[first:last].tolist(),
            }
        )
    sources = [
        {"name": f"{one.unit}, {one.estimator}, seed {one.seed}", "file": relative(one.path, out)}
        for one in traced
    ]
    return {
        "sources": sources,
        "groups": titles,
        "labels": labels,
        "vocabulary": list(vocabulary),
        "samples": samples,
        "cut": longest if cut else None,
    }


def _densest(influence: Sequence[float], n: int, longest: int) -> tuple[int, int]:
    if n <= longest:
        return 0, n
    mass = np.concatenate([[0.0], np.cumsum(np.abs(np.asarray(influence)))])
    mass = np.pad(mass, (0, n + 1 - len(mass)), mode="edge")
    first = int(np.argmax(mass[longest:] - mass[:-longest]))
    return first, first + longest
