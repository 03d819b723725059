"""Training: the base run, and arms that retrain a window of it on an edited stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

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
    layout,
    read_model,
    saved_config,
)
from mda.schema import Config
from mda.schema.model import FAMILIES
from mda.stages.context import Context, without
from mda.stages.corpus import base_schedule, fetch, stream_inputs
from mda.stages.found import Made, NotBuilt, is_there
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
    """A state to train from: a checkpoint of an artifact."""

    artifact: Artifact
    step: int

    @property
    def folder(self) -> Path:
        """Weights and optimizer."""
        return checkpoint.checkpoint_folder(self.artifact.path / "checkpoints", self.step)


@dataclass(frozen=True)
class Published:
    """What decides what is read of a published run: each step's weights, and what all share."""

    weights: Mapping[int, str]  # step -> hash
    curve: str  # its key
    shared: Mapping[str, object]


@dataclass(frozen=True)
class Run(Made):
    """A finished training, a base run or an arm: its checkpoints, and the curve it left."""

    device: torch.device  # where its models are put
    checkpoints: tuple[int, ...]  # steps whose checkpoint was kept
    config: Mapping[str, Any]  # of its model, as config.json has it
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

    def checkpoint(self, step: int) -> Path:
        """Folder of a kept checkpoint. Raises KeyError with the steps there are."""
        if step not in self.checkpoints:
            raise KeyError(f"no checkpoint at step {step}; there are {list(self.checkpoints)}")
        return checkpoint.checkpoint_folder(self.folder / "checkpoints", step)

    def model(self, step: int) -> PreTrainedModel:
        """The model of a kept checkpoint, on the run's device."""
        weights = self.checkpoint(step) / "model.safetensors"
        return read_model(self.folder / CONFIG_FILE, weights).to(self.device)  # type: ignore[arg-type]

    @property
    def measured_key(self) -> str:
        """The key of what its curve, and so the unit's onset, depends on."""
        return self.published.curve if self.published else self.fingerprint

    @property
    def code(self) -> tuple[str, ...]:
        """The module of its family's adapter: part of the key of all that reads its models."""
        return adapter_of(self.config)

    @cached_property
    def architecture(self) -> Architecture:
        """The layout of its model."""
        return architecture(layout(self.config))


def base_run(context: Context, corpus: Corpus) -> Run:
    """Train from the initial weights to the end, with the emergence curve and checkpoints."""
    config, settings, device = context.config, context.config.training, device_of(context.config)
    keep, function = settings.checkpoints, function_of(config.model)
    with suppress(NotBuilt):
        base_schedule(config, corpus)  # refused here where the stream is too short
    inputs = {
        "corpus": corpus.fingerprint,
        "stream": stream_inputs(config),
        "model": model_inputs(config, context.store.hash_file),
        "training": training_inputs(config, device),
        "emergence": without(asdict(config.emergence), "onset"),
        "seed": config.seed,
        "checkpoints": keep,
    }

    def build(part: Path) -> None:
        model, schedule = initial_model(config.model, config.seed), base_schedule(config, corpus)
        _train(context, corpus, model, schedule, part, keep, None, "base run")

    code = ("mda.stages.runs", *adapter_of(function))
    artifact = context.store.get_or_build("base", inputs, build, code, device)
    _log(artifact, context.log)
    return Run(artifact, device, tuple(keep), function)


@dataclass(frozen=True)
class Stream:
    """What an arm is trained on: steps, and what decides the samples of each."""

    steps: tuple[int, int] | None  # None where the window is not known yet
    inputs: object  # what enters the key: how the stream is made, or its hash
    schedule: Callable[[], Schedule]
    corpus: Corpus  # with the rows from outside


def retrained(
    context: Context,
    stream: Stream,
    base: Run,
    follow: Callable[[], Follow | None] = lambda: None,
    followed: object = None,
    kind: str | None = None,
    start: Start | None = None,
) -> Run:
    """Train a stream from the base run's state at its start; all else as in the base run.

    The fingerprint holds the base run and the edited stream, not how the edit was chosen: arms
    that mean the same training share it. `follow` measures a unit besides; `followed`, which, and
    `kind`, the module of its kind, are for the key. `start` takes the place of the base run's
    state.
    """
    inputs: dict[str, object] = {"base": base.fingerprint, "stream": stream.inputs}
    if base.published:  # the key of a trained one has it
        inputs["every"] = context.config.emergence.every
    if followed is not None:
        inputs["followed"] = followed
    if start is not None:
        inputs["start"] = start.artifact.fingerprint
    if start is None and stream.steps is not None:
        start = state_at(context, stream.corpus, base, stream.steps[0])

    def build(part: Path) -> None:
        assert start is not None
        schedule, model = stream.schedule(), _model_in(base, start.folder)
        keep, measured = [schedule.end], base.checkpoints if base.published else ()
        _train(
            context, stream.corpus, model, schedule, part, keep, start.folder, "arm", follow(),
            measured,
        )  # fmt: skip

    code = ("mda.stages.runs", *base.code, *((module_of(kind),) if kind else ()))
    artifact = context.store.get_or_build("arm", inputs, build, code, base.device)
    _log(artifact, context.log)
    end = () if stream.steps is None else (stream.steps[1],)
    return Run(artifact, base.device, end, base.config)


def state_at(context: Context, corpus: Corpus, base: Run, step: int) -> Start:
    """Weights and optimizer of the base run at any step.

    A step between two kept ones comes from resuming the nearest earlier one, which is exact.
    """
    if step in base.checkpoints:
        return Start(base.artifact, step)
    earlier = max(kept for kept in base.checkpoints if kept < step)

    def build(part: Path) -> None:
        start = base.checkpoint(earlier)
        model, schedule = (
            _model_in(base, start),
            base_schedule(context.config, corpus, earlier, step),
        )
        _train(context, corpus, model, schedule, part, [step], start, f"to step {step}")

    inputs = {"base": base.fingerprint, "step": step}
    code = ("mda.stages.runs", *base.code)
    return Start(context.store.get_or_build("state", inputs, build, code, base.device), step)


def origin_of(context: Context, corpus: Corpus, base: Run, window: Window) -> str:
    """Hash of the base run's first weights and of the samples that its window sees in turn.

    Runs of two seeds that share it are one: neither weights nor data differ.
    """
    weights = base.checkpoint(base.checkpoints[0]) / "model.safetensors"
    unedited = base_schedule(context.config, corpus, window.start, window.end)
    inputs = {"weights": context.store.hash_file(weights), "window": schedule_hash(unedited)}
    return store.fingerprint("origin", inputs)


def adapter_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The module of the adapter of a model's family; none where its config.json is not there."""
    try:
        return (module_of(FAMILIES[config["model_type"]]),)
    except NotBuilt:
        return ()


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


def _log(artifact: Artifact, log: RowLog) -> None:
    """Log a run that was found as if it had just been trained."""
    if artifact.built or not is_there(artifact):
        return
    curve = read_rows(artifact.path / "curve.csv")
    losses = read_rows(artifact.path / "train.csv")
    thinned = [row for row in losses if row["step"] % LossLog.EVERY == 0]
    for row in sorted([*curve, *thinned], key=lambda row: row["step"]):
        log(row)


def model_inputs(config: Config, hash_of: Callable[[Path], str] = hash_file) -> dict[str, object]:
    """What enters of the model: all that decides its function, and where its weights come from."""
    files = {path.name: hash_of(path) for path in config.model.weight_files()}
    return {"config": function_of(config.model), "weights": files or "scratch"}
