"""One W&B run per job, offline by default, closed before the next job begins.

A killed job continues its W&B run when it is restarted in its folder. A file there has the run's id
and a line for every record. Online, the server reports how many it has, and these are not logged
again. Offline, W&B cannot resume: the job logs everything again under the same id, and uploading
the last of its offline folders replaces earlier uploads.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mda import store
from mda.report.job_log import JobLog
from mda.schema import Config, ConfigError, WandbConfig

if TYPE_CHECKING:
    import wandb

TAG = 64  # characters that W&B allows
KEPT = "wandb_records.txt"
"""In the folder of a job that has not ended well: the run's id, settings, and records."""


class WandbLog(JobLog):
    """A W&B run.

    `kept` is the file of its records; the server already has `lines` of them.
    """

    def __init__(self, run: wandb.Run, kept: Path, lines: Sequence[str] = ()):
        self.run, self.kept, self.there = run, kept, frozenset(lines)
        self.defined: set[str] = set()

    @property
    def id(self) -> str | None:
        return self.run.id

    @property
    def hint(self) -> str:
        if not self.run.settings.mode.startswith("offline"):
            return ""
        return f"to upload:  wandb sync {shlex.quote(str(Path(self.run.dir).parent))}\n"

    def scalars(self, values: Mapping[str, float]) -> None:
        """Logs the values of one step.

        Metrics are defined by their exact names, since overlapping globs resolve at random; a star
        in the name of a class is replaced, because W&B reads it as a glob.
        """
        row = {name.replace("*", "\N{ASTERISK OPERATOR}"): value for name, value in values.items()}
        for name in row.keys() - self.defined:
            if name == "step":
                self.run.define_metric(name, hidden=True)
            else:
                self.run.define_metric(name, step_metric="step")
            self.defined.add(name)
        names = hashlib.sha256(" ".join(sorted(row)).encode()).hexdigest()[:16]
        if (record := f"{row['step']} {names}") not in self.there:
            self._log(row, record)

    def _log(self, values: Mapping[str, Any], record: str = "-") -> None:
        # First the line: the server may have less than that, not more.
        with self.kept.open("a", encoding="utf-8") as file:
            file.write(f"{record}\n")
        self.run.log(dict(values))

    def figures(self, paths: Sequence[Path]) -> None:
        import wandb

        self._log({f"figures/{path.stem}": wandb.Image(str(path)) for path in paths})

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        import wandb

        if rows:
            columns: list[Any] = list(rows[0])
            data: list[Any] = [[row[column] for column in columns] for row in rows]
            self._log({name: wandb.Table(columns=columns, data=data)})

    def artifact(self, name: str, kind: str, files: Sequence[Path]) -> None:
        import wandb

        artifact = wandb.Artifact(name, type=kind)
        for path in files:
            artifact.add_file(str(path))
        self.run.log_artifact(artifact)

    def summary(self, values: Mapping[str, Any]) -> None:
        self.run.summary.update(dict(values))


def group_of(logger: WandbConfig, folder: Path) -> str:
    """Returns the configured group, else W&B's own sweep, Hydra's sweep, or the run alone.

    The folder of a job in Hydra's sweep is named by its number.
    """
    alone = folder.parent.name if folder.name.isdigit() else folder.name
    return logger.group or os.environ.get("WANDB_SWEEP_ID") or alone


def mode_of(logger: WandbConfig) -> str:
    """Returns the configured mode, else that of WANDB_MODE, else offline."""
    return logger.mode or os.environ.get("WANDB_MODE") or "offline"


def project_of(logger: WandbConfig) -> str:
    """Returns the configured project, else that of WANDB_PROJECT, else mda."""
    return logger.project or os.environ.get("WANDB_PROJECT") or "mda"


def tags_of(config: Config, job_type: str) -> list[str]:
    """Returns tags to filter runs by: the job's type, model, data and metric, and WANDB_TAGS."""
    own = (job_type, config.model.name, config.data.name, config.unit.metric)
    given = filter(None, os.environ.get("WANDB_TAGS", "").split(","))
    return list(dict.fromkeys(tag[:TAG] for tag in (*own, *given)))


def _command(folder: Path) -> str | None:
    """Returns the command that repeats the job of a folder, if known."""
    job = folder / "job.json"
    return store.read_object(job)["command"] if job.exists() else None


@contextmanager
def reaching(logger: WandbConfig) -> Iterator[None]:
    """Turns W&B's own errors in the block, such as a missing key, into a ConfigError."""
    from wandb.errors import Error

    try:
        yield
    except Error as error:
        raise ConfigError(
            f"logger.mode={mode_of(logger)}: W&B says: {' '.join(str(error).split())}; expected "
            "an account, by `wandb login` or WANDB_API_KEY, or logger.mode=offline"
        ) from error


@contextmanager
def wandb_log(
    config: Config, folder: Path, *, settings: Mapping[str, Any], job_type: str, arm: str
) -> Iterator[WandbLog]:
    """Yields the log of one job, a W&B run.

    Every record is flushed at once, so that a killed job keeps what it logged. The environment is
    not changed, and the run is closed with the block, so jobs of a sweep cannot mix. Files are in
    `folder`, or in WANDB_DIR if set; the address of an online run is printed. Raises ConfigError
    where W&B cannot be reached.
    """
    import wandb

    logger = config.logger
    assert isinstance(logger, WandbConfig)
    folder.mkdir(parents=True, exist_ok=True)
    kept, online = folder / KEPT, mode_of(logger) == "online"
    about = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    found, lines = _records(kept, about)
    with reaching(logger):
        run = wandb.init(
            project=project_of(logger),
            entity=logger.entity,
            group=group_of(logger, folder),
            job_type=job_type,
            name=f"{arm or job_type} seed {config.seed}",
            dir=os.environ.get("WANDB_DIR") or folder,
            mode=mode_of(logger),  # type: ignore[arg-type]  # W&B refuses another WANDB_MODE
            id=found,
            resume="allow" if online else None,  # offline W&B warns that it can't
            config=dict(settings) | {"arm": arm, "git": store.git_state()},
            tags=tags_of(config, job_type),
            notes=os.environ.get("WANDB_NOTES") or _command(folder),
            reinit="finish_previous",
            settings=wandb.Settings(
                x_transaction_log_flush_interval=1, silent=True, console="off", x_disable_meta=True
            ),
        )
    if online:
        print(f"W&B: {run.url}")
    logged = lines[: run.starting_step] if online else []
    kept.write_text("".join(f"{line}\n" for line in (f"{run.id} {about}", *logged)), "utf-8")
    try:
        yield WandbLog(run, kept, logged)
    except BaseException:
        run.finish(exit_code=1)  # as a `with` block would, which prints the traceback besides
        raise
    run.finish()
    kept.unlink()


def _records(kept: Path, about: str) -> tuple[str | None, list[str]]:
    """Returns id and records of the run of a killed job with the same settings, if any."""
    if not kept.exists():
        return None, []
    head, *lines = kept.read_text("utf-8").splitlines() or [""]
    name, _, settings = head.partition(" ")
    return (name, lines) if settings == about else (None, [])
