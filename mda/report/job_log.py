"""The one stream of values that a job logs, and the choice of where it goes besides the CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from mda.schema import Config, TensorboardConfig, WandbConfig
from mda.types import HeadId

HEAD = re.compile(r"^emergence/\w+/L\d+H\d+$")
"""Columns of single heads: of a model of 270 heads there are more than a thousand."""


class JobLog:
    """The target of one job's rows and figures, which this class drops: that of `logger=csv`."""

    id: str | None = None
    """W&B's id of the run."""

    @property
    def hint(self) -> str:
        """The command that shows or uploads what was logged, as a line, or an empty text."""
        return ""

    def row(self, row: Mapping[str, float]) -> None:
        """Logs one row of a table; its `step` is the x-axis of all its metrics.

        Missing values (NaN) are left out, and so are single heads, which `heads` and `unit` log.
        """
        self.scalars(
            {
                name: value
                for name, value in row.items()
                if not (math.isnan(value) or HEAD.match(name))
            }
        )

    def scalars(self, values: Mapping[str, float]) -> None:
        """Logs the values of one step, which is among them."""

    def figures(self, paths: Sequence[Path]) -> None:
        """Logs pictures under `figures/<file name>`."""

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Logs a table whose columns are the first row's keys."""

    def heads(self, curve: Sequence[Mapping[str, float]]) -> None:
        """Logs the metrics of every head at every measured step as the table `heads`."""
        names = [name for name in curve[0] if HEAD.match(name)]
        metrics = list(dict.fromkeys(name.split("/")[1] for name in names))
        heads = list(dict.fromkeys(HeadId.parse(name.split("/")[2]) for name in names))
        rows = [
            {"layer": head.layer, "head": head.head, "step": int(row["step"])}
            | {metric: row[f"emergence/{metric}/{head}"] for metric in metrics}
            for row in curve
            for head in heads
        ]
        self.table("heads", rows)

    def unit(
        self, metric: str, members: Sequence[str], curve: Sequence[Mapping[str, float]]
    ) -> None:
        """Logs a unit's metric, its mean over the unit's members, as `emergence/<metric>/unit`."""
        columns = [f"emergence/{metric}/{member}" for member in members]
        for row in curve:
            value = sum(row[column] for column in columns) / len(columns)
            self.row({"step": row["step"], f"emergence/{metric}/unit": value})

    def artifact(self, name: str, kind: str, files: Sequence[Path]) -> None:
        """Logs files as one artifact of the run."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Sets values of the run's summary."""


def job_log(
    config: Config, folder: Path, *, settings: Mapping[str, Any], job_type: str, arm: str = ""
) -> AbstractContextManager[JobLog]:
    """Returns the log of one job, open in a `with` block: W&B's, TensorBoard's, or none.

    `settings` is the whole configuration as nested dictionaries. `arm` names the job's arm, which
    is the same over seeds, so W&B can group by it. Raises ConfigError, when the block is entered,
    where W&B cannot be reached or the package tensorboard is missing.
    """
    if isinstance(config.logger, WandbConfig):
        from mda.report.wandb_logging import wandb_log

        return wandb_log(config, folder, settings=settings, job_type=job_type, arm=arm)
    if isinstance(config.logger, TensorboardConfig):
        from mda.report.tensorboard_logging import tensorboard_log

        return tensorboard_log(folder, settings)
    return nullcontext(JobLog())
