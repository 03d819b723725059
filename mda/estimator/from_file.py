"""Scores that were made elsewhere: by another tool, by hand, or by a run that was pushed.

A file of three kinds, or a folder as others write it:

.npy                 one score for each sample of the window, in stream order
.csv, .parquet       columns `sample_id` and, by `estimator.column`, the scores
mda push             a data set's folder: its `scores.parquet`
bergson              `info.json`, `scores.bin` and `config.yaml`: rows are the window's samples in
                     stream order; scores are turned around where the configuration says
                     `higher_is_better: false`, as approximate unrolling does
dattri-llm           `metadata.json` and `scores.pt`: rows are sample ids, `row_train_ids`

Sign: above 0 where training on more of the sample makes the unit stronger; `estimator.negate=true`
turns scores around whose sign is the other way. bergson's scores are of a loss, so above 0 means
that the sample lowers it, which is stronger where the loss is that of the unit's measurement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
import torch
import yaml

from mda import store
from mda.estimator.baselines import for_all
from mda.estimator.estimator import Work
from mda.estimator.score import SampleScores
from mda.schema import ConfigError, FileConfig, refuse
from mda.schema.estimator import PUSHED
from mda.types import Window

ID = "sample_id"
BERGSON, DATTRI = "scores.bin", "scores.pt"
UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, RuntimeError, pa.ArrowException, yaml.YAMLError,
)  # fmt: skip


class FromFile:
    """The estimator of `estimator=file`."""

    def __init__(self, settings: FileConfig) -> None:
        self.settings = settings

    def steps(self, kept: Sequence[int], window: Window) -> tuple[int, ...]:
        """Returns no checkpoint: no model is read."""
        return ()

    def score(self, work: Work) -> SampleScores:
        """Returns the file's scores for every unit. Raises ConfigError where a sample has none."""
        path, ids = Path(self.settings.path), work.sample_ids
        scores = read_scores(path, self.settings.column)
        values = in_order(scores, ids, path) * (-1 if self.settings.negate else 1)
        values_N = torch.from_numpy(values)
        return SampleScores(for_all(values_N, work.units), torch.full_like(values_N, torch.nan))

    def token_influence(self, work: Work, sample_ids: np.ndarray) -> None:
        """Returns nothing: the file scores whole samples."""
        return None


def read_scores(path: Path, column: str | None) -> np.ndarray | Mapping[int, float]:
    """Returns the scores of a file, [N] in the window's order or by sample id.

    Raises ConfigError, a sentence, for a file that is none of the kinds above.
    """
    try:
        if (path / BERGSON).exists():
            return _bergson(path, column)
        if (path / DATTRI).exists():
            return _dattri(path, column)
        if (path / PUSHED).exists():
            path = path / PUSHED
        if path.suffix == ".npy":
            return _flat(np.load(path, allow_pickle=False))
        if path.suffix == ".csv":
            return _table(pa_csv.read_csv(path), column, path)
        if path.suffix == ".parquet":
            return _table(pa_parquet.read_table(path), column, path)
    except UNREADABLE as error:
        raise ConfigError(f"estimator.path={path} cannot be read: {error}") from error
    accepted = (
        f".npy, .csv, .parquet, or a folder with {PUSHED} (mda push), {BERGSON} (bergson) or "
        f"{DATTRI} (dattri-llm)"
    )
    raise refuse("estimator.path", str(path), accepted)


def in_order(
    scores: np.ndarray | Mapping[int, float], sample_ids: np.ndarray, path: Path
) -> np.ndarray:
    """Returns the scores of some samples, float64 [N]; those of other samples are left out.

    Raises ConfigError where a sample has no score, or one that is not finite.
    """
    if isinstance(scores, np.ndarray):
        if scores.shape != (n := len(sample_ids),):
            raise ConfigError(
                f"estimator.path={path} has {scores.shape} scores; expected {n}, one for each "
                "sample of the window in stream order"
            )
        values = scores.astype(np.float64)
    else:
        missing = [int(sample) for sample in sample_ids if int(sample) not in scores]
        if missing:
            raise ConfigError(
                f"estimator.path={path} has no score for {len(missing):,} of {len(sample_ids):,} "
                f"samples of the window, the first is {missing[0]}; expected one for each"
            )
        values = np.array([scores[int(sample)] for sample in sample_ids], dtype=np.float64)
    if not np.isfinite(values).all():
        bad = sample_ids[~np.isfinite(values)]
        raise ConfigError(
            f"estimator.path={path}: {len(bad):,} scores are not finite, the first is that of "
            f"sample {bad[0]}; expected numbers"
        )
    return values


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1) if values.ndim == 2 and 1 in values.shape else values


def _table(table: pa.Table, column: str | None, path: Path) -> dict[int, float]:
    others = [name for name in table.column_names if name != ID]
    if ID not in table.column_names:
        raise ValueError(f"it has no column {ID}; it has {', '.join(table.column_names)}")
    name = column or (others[0] if len(others) == 1 else "score")
    if name not in others:
        raise ValueError(
            f"estimator.column={name} is not in it; expected one of {', '.join(others)}"
        )
    ids = table[ID].to_numpy()
    if len(np.unique(ids)) < len(ids):
        values, counts = np.unique(ids, return_counts=True)
        raise ValueError(f"sample {values[counts > 1][0]} has several scores")
    return dict(zip(ids.tolist(), table[name].to_numpy().tolist(), strict=True))


def _bergson(folder: Path, column: str | None) -> np.ndarray:
    """Scores of `bergson score`: records (score_i, written_i) for the i-th question."""
    about = store.read_json(folder / "info.json")
    if about.get("attribute_tokens"):
        raise ValueError("it scores single tokens; expected one score for each sample")
    fields: Any = {key: about["dtype"][key] for key in ("names", "formats", "offsets", "itemsize")}
    kind, n = np.dtype(fields), about["num_rows"]
    records = np.fromfile(folder / BERGSON, dtype=kind, count=n)
    name = column or "score_0"
    if name not in (kind.names or ()):
        there = ", ".join(field for field in kind.names or () if field.startswith("score_"))
        raise ValueError(f"estimator.column={name} is not in it; expected one of {there}")
    if not records[name.replace("score_", "written_")].all():
        raise ValueError("some of its scores were never written; expected a finished run")
    rows = folder / "candidates.npy"
    if rows.exists() and not np.array_equal(np.load(rows, allow_pickle=False), np.arange(n)):
        raise ValueError(f"it scores {n:,} candidates of an earlier run; expected every sample")
    return records[name].astype(np.float64) * (1 if _higher_is_better(folder) else -1)


def _higher_is_better(folder: Path) -> bool:
    """Returns whether a score above 0 means that the sample lowers the question's loss."""
    file = folder / "config.yaml"
    steps = yaml.safe_load(file.read_text("utf-8"))["steps"] if file.exists() else []
    said = [one["score_cfg"] for step in steps for one in step.values() if "score_cfg" in one]
    if not said:
        raise ValueError(
            "it has no config.yaml with score_cfg.higher_is_better (`bergson magic` writes none); "
            "expected it, or the scores as .npy, with estimator.negate=true where less is better"
        )
    return said[0].get("higher_is_better", True)


def _dattri(folder: Path, column: str | None) -> dict[int, float]:
    """Scores of dattri-llm, [rows, questions]; a row is one training sample at one step."""
    about = store.read_json(folder / "metadata.json")
    scores = torch.load(folder / DATTRI, weights_only=True).double().numpy()
    question = int(column) if column else 0
    total: dict[int, float] = {}
    for name, value in zip(about["row_train_ids"], scores[:, question].tolist(), strict=True):
        total[int(name)] = total.get(int(name), 0.0) + value
    return total
