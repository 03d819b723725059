"""Many runs as one table of curves and one of runs, to keep and to read back."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mda import store
from mda.analysis.arms import Run, read_curve, run_of

CURVES, RUNS = "curves.csv.gz", "runs.json"
KEPT = (
    "program", "seed", "unit", "heads", "metric", "threshold", "edit", "intervention",
    "estimator",
    "window", "batch_size", "seq_len", "fingerprints", "git", "versions", "unit_settings",
    "capabilities", "begun",
)  # fmt: skip


def write_table(runs: Sequence[Run], folder: Path) -> None:
    """Writes `CURVES` and `RUNS`: the same runs give the same bytes.

    A row of `CURVES` is one measured step of one run, named in the column `run` as in `RUNS`, with
    every digit that the run's own curve has. A training that two arms mean is one curve, two runs.
    """
    unique = {(run.seed, run.arm, run.fingerprint): run for run in runs}
    ordered = sorted(unique.values(), key=lambda run: (run.seed, run.arm.name, run.fingerprint))
    named = {_name(run): run for run in ordered}
    columns = list(dict.fromkeys(column for run in ordered for column in run.curve))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *columns])
    for name, run in named.items():
        for row in range(len(run.curve["step"])):
            cells = [_cell(run, column, row) for column in columns]
            writer.writerow([name, *cells])
    content = [{"run": _name(run), **_kept(run)} for run in ordered]
    with store.replacing(folder / CURVES, "wb") as file:
        file.write(gzip.compress(text.getvalue().encode(), 9, mtime=0))
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in content)
    with store.replacing(folder / RUNS) as file:
        file.write(f"[\n{lines}\n]\n")


def read_table(folder: Path) -> list[Run]:
    """Returns the runs of a table. Raises ValueError, naming the folder, for a damaged one."""
    try:
        with gzip.open(folder / CURVES, "rt", encoding="utf-8", newline="") as file:
            rows: dict[str, list[dict[str, str]]] = {}
            for row in store.csv_rows(file):
                rows.setdefault(row.pop("run"), []).append(row)
        runs = []
        for record in store.read_json(folder / RUNS):
            full = read_curve(rows[record["run"]])
            curve = {name: values for name, values in full.items() if values.size and not
                     all(value != value for value in values)}  # fmt: skip
            runs.append(run_of(folder / record["run"], record, curve, record.get("overrides", ())))
        return runs
    except (
        OSError,
        EOFError,
        zlib.error,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{folder} is not a table of runs: {reason}") from error


def _name(run: Run) -> str:
    return f"{run.seed}-{run.fingerprint}"


def _cell(run: Run, column: str, row: int) -> str:
    if column not in run.curve:
        return ""
    value = float(run.curve[column][row])
    return "" if value != value else str(int(value)) if value.is_integer() else repr(value)


def _kept(run: Run) -> dict[str, Any]:
    kept = {key: run.summary[key] for key in KEPT if key in run.summary}
    results = {
        "started": run.started.isoformat() if run.started else None,
        "base_heads": run.base_heads,
    }
    return kept | {"results": results, "overrides": list(run.overrides)}
