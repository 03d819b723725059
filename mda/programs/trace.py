"""Trace a unit of a base run back to the training samples that made it.

Finds the unit, scores every sample of the critical window for every head in one pass, and writes
the scores, the extreme samples with token-level influence, the distribution and the labels that are
enriched. Finished stages are reused; an interrupted pass resumes. Under `torchrun --nproc-per-node
N` the processes share the work.
"""

import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

from mda.config import next_command
from mda.schema import Config
from mda.stages.declared import SCORES, needs

NEEDS = (*needs(SCORES), "plan", "report", "logger")


def trace(config: Config, folder: Path) -> None:
    """Scores the window's samples and writes scores, tables and the page into `folder`."""
    from mda import pipeline
    from mda.report.job_log import job_log
    from mda.report.summary import of_stages, write_summary
    from mda.report.trace import FILES, report_trace, sample_rows
    from mda.sae.neuronpedia import feature_page
    from mda.stages.attribution import loss_influence, token_influence
    from mda.stages.context import Context, process_group

    start = time.perf_counter()
    context, name = Context.of(config), f"trace {config.estimator.name}"
    log_of_job = (
        job_log(config, folder, settings=asdict(config), job_type="trace", arm=name)
        if int(os.environ.get("RANK", "0")) == 0  # of torchrun's processes
        else nullcontext()
    )
    with log_of_job as log:
        with process_group(config):
            found = pipeline.trace(context)
        if log is None:
            return
        base, unit, traced = found.base, found.unit, found.traced
        results = report_trace(
            found.corpus,
            traced.scores,
            unit.name,
            partial(token_influence, traced, context.at),
            partial(loss_influence, traced, context.at),
            folder,
            config.report.samples,
            config.report.dpi,
            before=unit.emerged.before,
            elsewhere=feature_page(config.unit, unit.name),
        )
        told = [w] if (w := (results["positions"] or {}).get("warning")) else []
        log.figures([folder / "distribution.png"])
        log.table("top_samples", sample_rows(folder))
        files = [folder / name for name in ("scores.csv", "top_samples.json")]
        log.artifact(f"scores-{traced.fingerprint}", "scores", files)
        log.summary(results)
    write_summary(
        folder,
        "trace",
        seed=config.seed,
        **of_stages(found.corpus.fingerprint, {"base": base, "scores": traced}, start),
        results=results,
        files=FILES,
        warnings=[*context.store.warnings.values(), *told],
        unit=unit.name,
        window=asdict(unit.window),
        scored_steps=list(traced.steps),
    )
    if traced.steps:
        print(f"scored at step {', '.join(map(str, traced.steps))}")
    print(f"scores of all units: {traced.folder}")
    edit = [] if config.intervention.edits else ["intervention=remove"]
    print(f"{log.hint}next: {next_command('run', folder, f'seed={config.seed}', *edit)}")
    print(folder)


def preview(configs: Sequence[Config], side_by_side: int) -> None:
    """Prints what would be built, and its cost."""
    from mda import pipeline
    from mda.stages.preview import print_preview

    print_preview(configs, pipeline.trace, side_by_side)
