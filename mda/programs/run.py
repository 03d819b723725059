"""Run one arm of the experiment: edit the stream, retrain the window, measure the unit.

Corpus, base run, scores and edit come from the store, or are built first. The arm starts from the
base run's weights and optimizer at the window's start; everything but the edit is unchanged.
`intervention=control` retrains the unedited stream and repeats the base run. A run that is started
with `study=` keeps the hash of that study (conf/study), which registers its claims: claims written
or changed later are exploratory. A published base run has no optimizer state: its arms and their
control start with a fresh AdamW, unless `base.state` gives one, and the control measures the
distance from the published run.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

from mda.config import command_of, overrides_of, setting_word
from mda.schema import Config
from mda.schema.attribution import ControlConfig
from mda.schema.edit import Count, as_data
from mda.stages.declared import CAPABILITIES, needs

NEEDS = (*needs(CAPABILITIES), "study", "plan", "report", "logger")


def run(config: Config, folder: Path) -> None:
    """Retrains the configured arm and writes its curve, edit and summary into `folder`."""
    from mda import pipeline
    from mda.report.arm import FILES, arm_name, report_arm
    from mda.report.job_log import job_log
    from mda.report.summary import of_stages, write_summary
    from mda.stages.context import Context

    start = time.perf_counter()
    name, context = arm_name(config), Context.of(config)
    with job_log(config, folder, settings=asdict(config), job_type="arm", arm=name) as log:
        arm = pipeline.arm(replace(context, log=log.row), context)
        results = report_arm(
            config,
            arm.unit.members[0],
            arm.unit.window,
            arm.edited.changes,
            arm.unit.curve,
            arm.run.curve,
            arm.run.folder,
            folder,
            arm.capabilities.values,
        )
        log.figures([folder / "curves.png", folder / "heads.png"])
        log.heads(arm.run.curve)
        log.unit(config.unit.metric, arm.unit.members, arm.run.curve)
        log.summary(results)
    scores = arm.traced
    stages = {"base": arm.base, "scores": scores, "tokens": arm.tokens, "arm": arm.run,
              "capabilities": arm.capabilities}  # fmt: skip
    used = of_stages(arm.corpus.fingerprint, stages, start)
    used["fingerprints"]["origin"] = arm.origin
    settings = asdict(config.intervention) | {"action": arm.edited.changes.action}
    settings |= {"n": arm.edited.changes.n_samples, "tokens": arm.edited.n_tokens}
    edit = config.intervention.edit(config.estimator.name)
    if config.intervention.inserted is not None:
        edit = replace(edit, amount=Count(arm.edited.changes.n_samples, of="rows"))
    write_summary(
        folder,
        "run",
        seed=config.seed,
        **used,
        results=results,
        files=FILES,
        wandb_id=log.id,
        unit=arm.unit.name,
        heads=list(arm.unit.members),
        metric=config.unit.metric,
        threshold=config.unit.onset_threshold,
        unit_settings=asdict(config.unit),
        capabilities=asdict(config.capabilities),
        edit=as_data(edit),
        intervention=settings,
        estimator=asdict(config.estimator) if scores else {},
        window=asdict(arm.unit.window),
        scored_steps=list(scores.steps) if scores else [],
        batch_size=config.training.batch_size,
        seq_len=arm.corpus.seq_len,
        begun={name: arm.run.artifact.manifest.get(name) for name in ("started", "study", "git")},
        warnings=list(context.store.warnings.values()),
    )
    if not used["times"]["built"]:
        print("nothing to build: this arm was in the store")
    print(f"{log.hint}next: {following(config, folder, arm.base.fingerprint)}")
    print(folder)


def following(config: Config, folder: Path, base: str) -> str:
    """Returns the command that compares the arms beside this one, or runs their missing control.

    A sweep's jobs are compared together, whichever of them comes first.
    """
    if folder.name.isdigit() or any(
        _is_control(path, base) for path in folder.parent.rglob("summary.json")
    ):
        follows = [setting_word("output_dir", config.output_dir)]
        follows += [setting_word("report.runs", [str(folder.parent)])]
        return command_of("compare", follows)
    known = {f"intervention.{one.name}" for one in fields(ControlConfig)}
    own = [word for word in overrides_of(folder)
           if not word.startswith("intervention.") or word.partition("=")[0] in known]  # fmt: skip
    kept = [word for word in own if not word.startswith("intervention=")]
    return command_of("run", [*kept, "intervention=control"])


def _is_control(summary: Path, base: str) -> bool:
    """Returns whether a summary is that of a finished control of this base run."""
    from mda import store

    try:
        content = store.read_object(summary)
        control = content["intervention"]["name"] == "control"
        return control and content["fingerprints"]["base"] == base
    except (OSError, KeyError, TypeError, ValueError):
        return False


def preview(configs: Sequence[Config], side_by_side: int) -> None:
    """Prints what would be built, and its cost."""
    from mda import pipeline
    from mda.stages.preview import print_preview

    print_preview(configs, pipeline.arm, side_by_side)
