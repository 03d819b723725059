"""Train a base run and watch its attention heads emerge.

Builds the corpus (or takes it from the store), trains the model with checkpoints and an emergence
curve, and writes tables, figures and a W&B run. If interrupted, the same command resumes and gives
the same result, bit for bit on a CPU.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mda.config import next_command
from mda.schema import Config
from mda.stages.declared import BASE, needs

NEEDS = (*needs(BASE), "plan", "report", "logger")


def train(config: Config, folder: Path) -> None:
    """Trains the base run and writes its tables and figures into `folder`."""
    from mda import pipeline
    from mda.report.base import files_of, report_base
    from mda.report.job_log import job_log
    from mda.report.summary import of_stages, write_summary
    from mda.stages.context import Context

    start = time.perf_counter()
    with job_log(config, folder, settings=asdict(config), job_type="base", arm="base run") as log:
        context = Context.of(config, log.row)
        corpus, base = pipeline.train(context)
        results = report_base(config, base.curve, base.folder, folder)
        files = files_of(config)
        log.figures([folder / name for name in files if name.endswith(".png")])
        log.heads(base.curve)
        log.summary({"heads": results["heads"]})
    write_summary(
        folder,
        "train",
        seed=config.seed,
        **of_stages(corpus.fingerprint, {"base": base}, start),
        results=results,
        files=files,
        warnings=list(context.store.warnings.values()),
    )
    print(f"checkpoints: {base.folder / 'checkpoints'}")
    print(f"{log.hint}next: {next_command('trace', folder, f'seed={config.seed}')}")
    print(folder)


def preview(configs: Sequence[Config], side_by_side: int) -> None:
    """Prints what would be built, and its cost."""
    from mda import pipeline
    from mda.stages.preview import print_preview

    print_preview(configs, pipeline.train, side_by_side)
