"""Compare arms in a W&B report: curves with error bands, bars, run comparer, verdicts.

Compares the arms as mda compare does and builds the report of their W&B runs (report.runs: the
folders of sweeps whose jobs logged to W&B). Offline it is written to wandb_report.json; with
logger.mode=online it is published, and its address printed.
"""

from pathlib import Path

from mda.config import next_command
from mda.schema import Config, ConfigError, WandbConfig

NEEDS = ("study", "report", "logger")


def wandb_report(config: Config, folder: Path) -> None:
    """Compares the arms and writes or publishes their W&B report."""
    from mda import store
    from mda.analysis.folders import read_runs
    from mda.programs.compare import compared
    from mda.report.wandb_logging import mode_of, project_of, reaching
    from mda.report.wandb_report import build_report, default_entity, spec

    logger = config.logger
    if not isinstance(logger, WandbConfig):
        raise ConfigError(f"logger={logger.name} is invalid; expected wandb")
    summary = compared(config, folder, next_command("wandb_report", folder))
    print(f"page: {folder / 'report.html'}")
    runs = read_runs([Path(name) for name in config.report.runs])
    ids = [str(run.summary.get("wandb_id") or "") for run in runs]
    if "" in ids:
        missing = runs[ids.index("")].folder
        raise ConfigError(f"{missing} has no W&B run; expected runs with logger=wandb")
    online, project = mode_of(logger) == "online", project_of(logger)
    with reaching(logger):
        entity = (logger.entity or default_entity()) if online else ""
        metrics = sorted({run.metric for run in runs})
        report = build_report(project, entity, config.report.title, ids, metrics, summary)
        store.write_json(folder / "wandb_report.json", spec(report))
        if online:
            report.save()
    if online:
        print(f"published: {report.url}")
    else:
        print("written, not published: logger.mode=online publishes it")
    print(folder)
