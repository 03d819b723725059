"""Training: the base run, and arms that retrain a window of it on an edited stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from mda.data.stream import Corpus, schedule_hash
from mda.emergence.callback import EmergenceCurve, curve_steps
from mda.emergence.measure import make_probes
from mda.model.pythia import initial_model
from mda.schema import Config
from mda.stages.context import Context, without
from mda.stages.corpus import base_schedule
from mda.store import Artifact, hash_file
from mda.training import checkpoint
from mda.training.callbacks import LossLog
from mda.training.loop import train
from mda.training.table import RowLog, read_rows
from mda.types import Schedule

VERSION = 1
NOT_INPUTS = ("devices", "accelerator")  # where a run is trained; the rest decides its result


@dataclass(frozen=True)
class Run:
    """A finished training: a base run or an arm."""

    folder: Path
    fingerprint: str
    built: bool
    wall_s: float

    @cached_property
    def curve(self) -> list[dict[str, float]]:
        """The emergence curve, one mapping a measured step."""
        return read_rows(self.folder / "curve.csv")

    @cached_property
    def checkpoints(self) -> list[int]:
        """Steps whose checkpoint was kept."""
        return checkpoint.steps(self.folder / "checkpoints")

    def checkpoint(self, step: int) -> Path:
        """Folder of a kept checkpoint. Raises KeyError with the steps there are."""
        if step not in self.checkpoints:
            raise KeyError(f"no checkpoint at step {step}; there are {self.checkpoints}")
        return checkpoint.checkpoint_folder(self.folder / "checkpoints", step)

    def weights(self, step: int) -> Path:
        """Weights file of a kept checkpoint."""
        return self.checkpoint(step) / "model.safetensors"

    def kept(self, step: float) -> int:
        """The kept checkpoint nearest to a step, the earlier one of two."""
        return min(self.checkpoints, key=lambda at: (abs(at - step), at))


def base_run(context: Context, rows: Corpus) -> Run:
    """Train from the initial weights to the end, with the emergence curve and checkpoints."""
    config, settings = context.config, context.config.training
    plan = base_schedule(config, rows)
    keep = checkpoint.declared_steps(
        0,
        plan.end,
        settings.checkpoint_every,
        settings.checkpoint_log_spaced,
        config.intervention.steps or (),
    )
    inputs = {
        "version": VERSION,
        "corpus": rows.fingerprint,
        "schedule": schedule_hash(plan),
        "model": model_inputs(config),
        "training": without(asdict(settings), *NOT_INPUTS),
        "emergence": asdict(config.emergence),
        "seed": config.seed,
        "checkpoints": keep,
    }
    artifact = context.store.get_or_build(
        "base", inputs, lambda part: _train(context, rows, plan, part, keep, None, "base run")
    )
    return _finished(artifact, context.log)


def retrained(
    context: Context, rows: Corpus, base: Run, plan: Schedule, inserted: str | None = None
) -> Run:
    """Train `plan` from the base run's checkpoint at its start; all else as in the base run.

    The fingerprint holds the base run and the edited stream, not how the edit was chosen: arms
    that mean the same training share it. `inserted` is the hash of rows from outside the corpus.
    """
    inputs = {
        "version": VERSION,
        "base": base.fingerprint,
        "schedule": schedule_hash(plan),
        "inserted": inserted,
    }
    start_from = base.checkpoint(plan.start)
    artifact = context.store.get_or_build(
        "arm",
        inputs,
        lambda part: _train(context, rows, plan, part, [plan.end], start_from, "arm"),
    )
    return _finished(artifact, context.log)


def _train(
    context: Context,
    rows: Corpus,
    plan: Schedule,
    part: Path,
    keep: Sequence[int],
    start_from: Path | None,
    name: str,
) -> None:
    config = context.config
    tokens_per_step = plan.batch_size * rows.seq_len
    curve = EmergenceCurve(
        part / "curve.csv",
        make_probes(rows, config.emergence),
        curve_steps(plan.start, plan.end, config.emergence.every),
        tokens_per_step,
    )
    train(
        part,
        initial_model(config.model, config.seed),
        rows,
        plan,
        config.training,
        checkpoints=keep,
        start_from=start_from,
        curves=[curve],
        log=context.log,
        progress=f"{name} (seed {config.seed})" if context.progress else None,
    )


def _finished(artifact: Artifact, log: RowLog) -> Run:
    run = Run(artifact.path, artifact.fingerprint, artifact.built, artifact.manifest["wall_s"])
    if not artifact.built:  # a run that was found is logged as if it had just been trained
        losses = read_rows(artifact.path / "train.csv")
        thinned = [row for row in losses if row["step"] % LossLog.EVERY == 0]
        for row in sorted([*run.curve, *thinned], key=lambda row: row["step"]):
            log(row)
    return run


def model_inputs(config: Config) -> dict[str, object]:
    """What enters of the model: its shape, and the hash of a local checkpoint's weights."""
    inputs = without(asdict(config.model), "name", "peak_lr", "source")
    source = config.model.source
    if source == "scratch":
        return inputs | {"source": source}
    files = sorted(Path(source).glob("*.safetensors"))
    return inputs | {"source": {path.name: hash_file(path) for path in files}}
