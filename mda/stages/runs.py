"""Training: the base run, and arms that retrain a window of it on an edited stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedModel

from mda import store
from mda.data.stream import Corpus, schedule_hash
from mda.emergence.callback import EmergenceCurve, Follow, curve_steps, held_out_every
from mda.emergence.measure import make_probes
from mda.model.architecture import Architecture, architecture
from mda.model.build import (
    CONFIG_FILE,
    function_of,
    initial_model,
    on_meta,
    read_model,
    saved_config,
)
from mda.schema import Config
from mda.schema.model import FAMILIES
from mda.stages.context import Context, without
from mda.stages.corpus import base_schedule, fetch
from mda.stages.plugin import module_of
from mda.store import Artifact, hash_file
from mda.training import checkpoint
from mda.training.callbacks import LossLog
from mda.training.loop import train
from mda.training.table import RowLog, read_rows
from mda.types import Schedule, Window

NOT_INPUTS = ("accelerator",)  # the kind of device is part of the key as it is


@dataclass(frozen=True)
class Start:
    """A state to train from that is not the base run's own: a checkpoint folder, and its key."""

    folder: Path
    fingerprint: str


@dataclass(frozen=True)
class Published:
    """What decides what is read of a published run: each step's weights, and what all share."""

    weights: Mapping[int, str]  # step -> hash
    shared: Mapping[str, object]


@dataclass(frozen=True)
class Run:
    """A finished training, a base run or an arm: its checkpoints, and the curve it left."""

    folder: Path
    fingerprint: str
    built: bool
    wall_s: float
    device: torch.device  # where its models are put
    published: Published | None = None  # None for a run that was trained here

    def read_at(self, *steps: int) -> object:
        """What enters a stage that reads models of these steps and the corpus, and no more of it.

        That is the run; of a published one these weights alone, whatever its curve measured, which
        other steps it has, and how its arms go on.
        """
        if self.published is None:
            return self.fingerprint
        weights = {str(step): self.published.weights[step] for step in steps}
        return {**self.published.shared, "weights": weights}

    @cached_property
    def curve(self) -> list[dict[str, float]]:
        """The emergence curve, one mapping a measured step."""
        return read_rows(self.folder / "curve.csv")

    @cached_property
    def checkpoints(self) -> list[int]:
        """Steps whose checkpoint was kept, as the manifest names them: no other folder counts."""
        return checkpoint.steps_among(store.read_json(self.folder / "manifest.json")["files"])

    def checkpoint(self, step: int) -> Path:
        """Folder of a kept checkpoint. Raises KeyError with the steps there are."""
        if step not in self.checkpoints:
            raise KeyError(f"no checkpoint at step {step}; there are {self.checkpoints}")
        return checkpoint.checkpoint_folder(self.folder / "checkpoints", step)

    def model(self, step: int) -> PreTrainedModel:
        """The model of a kept checkpoint, on the run's device."""
        weights = self.checkpoint(step) / "model.safetensors"
        return read_model(self.folder / CONFIG_FILE, weights).to(self.device)  # type: ignore[arg-type]

    @cached_property
    def model_type(self) -> str:
        """The family of its model, as its config.json names it."""
        return store.read_json(self.folder / CONFIG_FILE)["model_type"]

    @property
    def adapter(self) -> str:
        """The module of its family's adapter: part of the key of all that reads its models."""
        return module_of(FAMILIES[self.model_type])

    @cached_property
    def architecture(self) -> Architecture:
        """The layout of its model."""
        return architecture(on_meta(self.folder / CONFIG_FILE))


def base_run(context: Context, corpus: Corpus) -> Run:
    """Train from the initial weights to the end, with the emergence curve and checkpoints."""
    config, settings, device = context.config, context.config.training, device_of(context.config)
    schedule = base_schedule(config, corpus)
    keep = settings.checkpoints
    inputs = {
        "corpus": corpus.fingerprint,
        "schedule": schedule_hash(schedule),
        "model": model_inputs(config, context.store.hash_file),
        "training": training_inputs(config, device),
        "emergence": without(asdict(config.emergence), "onset"),
        "seed": config.seed,
        "checkpoints": keep,
    }

    def build(part: Path) -> None:
        model = initial_model(config.model, config.seed)
        _train(context, corpus, model, schedule, part, keep, None, "base run")

    family = str(function_of(config.model)["model_type"])
    artifact = context.store.get_or_build("base", inputs, build, code_of(family), device)
    return _finished(artifact, context.log, device)


def retrained(
    context: Context,
    corpus: Corpus,
    base: Run,
    schedule: Schedule,
    inserted: str | None = None,
    follow: Follow | None = None,
    followed: object = None,
    kind: str | None = None,
    start: Start | None = None,
) -> Run:
    """Train `schedule` from the base run's state at its start; all else as in the base run.

    The fingerprint holds the base run and the edited stream, not how the edit was chosen: arms
    that mean the same training share it. `inserted` is the hash of rows from outside the corpus;
    `follow` measures a unit besides; `followed`, which, and `kind`, the module of its kind, are for
    the key. `start` takes the place of the base run's state.
    """
    inputs = {
        "base": base.fingerprint,
        "schedule": schedule_hash(schedule),
        "inserted": inserted,
    }
    if context.config.base.published:  # the key of a trained one has it
        inputs["every"] = context.config.emergence.every
    if follow is not None:
        inputs["followed"] = followed
    if start is not None:
        inputs["start"] = start.fingerprint
    start_from = start.folder if start else state_at(context, corpus, base, schedule.start)

    def build(part: Path) -> None:
        model = _model_in(base, start_from)
        keep, measured = [schedule.end], base.checkpoints if base.published else []
        _train(context, corpus, model, schedule, part, keep, start_from, "arm", follow, measured)

    code = code_of(base.model_type) + ((module_of(kind),) if follow and kind else ())
    artifact = context.store.get_or_build("arm", inputs, build, code, base.device)
    return _finished(artifact, context.log, base.device)


def state_at(context: Context, corpus: Corpus, base: Run, step: int) -> Path:
    """Folder with weights and optimizer of the base run at any step.

    A step between two kept ones comes from resuming the nearest earlier one, which is exact.
    """
    if step in base.checkpoints:
        return base.checkpoint(step)
    earlier = max(kept for kept in base.checkpoints if kept < step)
    schedule = base_schedule(context.config, corpus, earlier, step)

    def build(part: Path) -> None:
        start = base.checkpoint(earlier)
        model = _model_in(base, start)
        _train(context, corpus, model, schedule, part, [step], start, f"to step {step}")

    inputs = {"base": base.fingerprint, "step": step}
    artifact = context.store.get_or_build(
        "state", inputs, build, code_of(base.model_type), base.device
    )
    return checkpoint.checkpoint_folder(artifact.path / "checkpoints", step)


def origin_of(context: Context, corpus: Corpus, base: Run, window: Window) -> str:
    """Hash of the base run's first weights and of the samples that its window sees in turn.

    Runs of two seeds that share it are one: neither weights nor data differ.
    """
    weights = base.checkpoint(base.checkpoints[0]) / "model.safetensors"
    unedited = base_schedule(context.config, corpus, window.start, window.end)
    inputs = {"weights": context.store.hash_file(weights), "window": schedule_hash(unedited)}
    return store.fingerprint("origin", inputs)


def code_of(family: str) -> tuple[str, ...]:
    """The modules that train: this one, with what it imports, and the family's adapter."""
    return "mda.stages.runs", module_of(FAMILIES[family])


def device_of(config: Config) -> torch.device:
    """Where models are trained and scored."""
    gpu = config.training.accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


def training_inputs(config: Config, device: torch.device) -> dict[str, object]:
    """What enters of the settings of training: the number of threads where results depend on it."""
    return without(asdict(config.training), *NOT_INPUTS, "threads") | threads_in(config, device)


def threads_in(config: Config, device: torch.device) -> dict[str, object]:
    """The number of threads, where results depend on it: on a CPU."""
    return {"threads": config.training.threads} if device.type == "cpu" else {}


def _model_in(base: Run, checkpoint_folder: Path) -> PreTrainedModel:
    """The model of one of a run's checkpoints, or of one that it was trained on to."""
    return read_model(base.folder / CONFIG_FILE, checkpoint_folder / "model.safetensors")


def _train(
    context: Context,
    corpus: Corpus,
    model: PreTrainedModel,
    schedule: Schedule,
    part: Path,
    keep: Sequence[int],
    start_from: Path | None,
    name: str,
    follow: Follow | None = None,
    measured: Sequence[int] = (),  # steps at which the curve has a row besides
) -> None:
    config = context.config
    also = {step for step in measured if schedule.start <= step <= schedule.end}
    fetch(context, corpus, schedule.sample_ids)
    store.free_memory()
    store.write_json(part / CONFIG_FILE, saved_config(model))
    curve = EmergenceCurve(
        part / "curve.csv",
        make_probes(corpus, config.emergence),
        also.union(curve_steps(schedule.start, schedule.end, config.emergence.every)),
        also.union(curve_steps(schedule.start, schedule.end, held_out_every(config.emergence))),
        schedule.batch_size * corpus.seq_len,
        follow,
    )
    train(
        part,
        model,
        corpus,
        schedule,
        config.training,
        checkpoints=keep,
        start_from=start_from,
        curves=[curve],
        log=context.log,
        progress=f"{name} (seed {config.seed})" if context.progress else None,
    )


def _finished(artifact: Artifact, log: RowLog, device: torch.device) -> Run:
    wall_s = artifact.manifest["wall_s"]
    run = Run(artifact.path, artifact.fingerprint, artifact.built, wall_s, device)
    if not artifact.built:  # a run that was found is logged as if it had just been trained
        losses = read_rows(artifact.path / "train.csv")
        thinned = [row for row in losses if row["step"] % LossLog.EVERY == 0]
        for row in sorted([*run.curve, *thinned], key=lambda row: row["step"]):
            log(row)
    return run


def model_inputs(config: Config, hash_of: Callable[[Path], str] = hash_file) -> dict[str, object]:
    """What enters of the model: all that decides its function, and where its weights come from."""
    files = {path.name: hash_of(path) for path in config.model.weight_files()}
    return {"config": function_of(config.model), "weights": files or "scratch"}
