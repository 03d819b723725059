"""One W&B run per job, offline unless told otherwise, closed before the next job begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from mda.schema import LoggerConfig

AXES = ("step", "tokens")
RowLog = Callable[[Mapping[str, float]], None]


@contextmanager
def wandb_logs(
    settings: LoggerConfig,
    folder: Path,
    *,
    config: Mapping[str, object],
    metrics: Sequence[str],
    name: str,
    group: str | None,
    job_type: str,
) -> Iterator[list[RowLog]]:
    """Where one job's rows go: a W&B run under `folder`, or none with `logger=csv`.

    `metrics` are defined by their exact names (overlapping globs resolve at random) on the axis
    `step`. Every record is flushed at once, so that a killed job keeps what it logged.
    """
    if settings.name != "wandb":
        yield []
        return
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    with wandb.init(
        project=settings.project,
        entity=settings.entity,
        group=group,
        job_type=job_type,
        name=name,
        dir=folder,
        mode=settings.mode,
        config=dict(config),
        reinit="finish_previous",
        settings=wandb.Settings(
            x_transaction_log_flush_interval=1, silent=True, console="off", disable_git=False
        ),
    ) as run:
        for axis in AXES:
            run.define_metric(axis, hidden=True)
        for metric in metrics:
            run.define_metric(metric, step_metric="step")
        yield [run.log]

