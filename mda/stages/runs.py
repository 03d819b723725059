"""Training: the base run, and arms that retrain a window of it on an edited stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mda import store
from mda.cost import stages as cost
from mda.data.stream import Corpus, followed_by, stream_hash
from mda.emergence.measure import Follow
from mda.model.architecture import Architecture, family
from mda.model.build import (
    CONFIG_FILE,
    configuration,
    function_of,
    initial_model,
    read_model,
)
from mda.schema import ModelConfig, metrics
from mda.schema.model import FAMILIES
from mda.stages.context import Runtime
from mda.stages.declared import ARM, BASE, STATE
from mda.stages.ending import Ending
from mda.stages.found import Made, NotBuilt, is_there, known
from mda.stages.order import Order
from mda.stages.plugin import module_of
from mda.stages.recipe import Recipe, Training
from mda.stages.stage import HashFile, Stage, make
from mda.store import Artifact, hash_file
from mda.training import checkpoint
from mda.training.scoped import Reach
from mda.training.table import LOGGED_EVERY, RowLog, read_rows
from mda.types import Stream, Window

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Start:
    """A state to train from: a checkpoint of an artifact."""

    artifact: Artifact
    step: int
    perturbed: bool = False  # and so not the base run's own

    @property
    def folder(self) -> Path:
        """Weights and optimizer."""
        return checkpoint.checkpoint_folder(self.artifact.path / "checkpoints", self.step)


@dataclass(frozen=True)
class Published:
    """The identity of a published run: each step's weights, and what all steps share."""

    weights: Mapping[int, str]  # step -> hash
    curve: str  # its key
    shared: Mapping[str, object]


@dataclass(frozen=True)
class Run(Made):
    """A finished training, a base run or an arm: its checkpoints and its curve."""

    device: torch.device  # where its models are put
    checkpoints: tuple[int, ...]  # steps whose checkpoint was kept
    config: Mapping[str, Any]  # of its model, as config.json has it
    order: Order  # what it was trained on, and in which order
    recipe: Recipe
    published: Published | None = None  # None for a run that was trained here

    def read_at(self, *steps: int) -> object:
        """Returns the key inputs of a stage that reads models of these steps and the corpus only.

        That is the run; for a published one these weights alone, independent of its curve, its
        other steps, and its arms.
        """
        if self.published is None:
            return self.fingerprint
        weights = {str(step): self.published.weights[step] for step in steps}
        return {**self.published.shared, "weights": weights}

    def key_at(self, *steps: int) -> object:
        """Returns `read_at`, or the run's key where the weights have yet to be fetched."""
        return known(lambda: self.read_at(*steps), {"run": self.fingerprint})

    @cached_property
    def curve(self) -> list[dict[str, float]]:
        """The emergence curve, one mapping for each measured step."""
        return read_rows(self.folder / "curve.csv")

    def checkpoint(self, step: int) -> Path:
        """Returns the folder of a kept checkpoint. Raises KeyError with the kept steps."""
        if step not in self.checkpoints:
            raise KeyError(f"no checkpoint at step {step}; there are {list(self.checkpoints)}")
        return checkpoint.checkpoint_folder(self.folder / "checkpoints", step)

    def model(self, step: int) -> PreTrainedModel:
        """Returns the model of a kept checkpoint, on the run's device."""
        weights = self.checkpoint(step) / "model.safetensors"
        return read_model(self.folder / CONFIG_FILE, weights).to(self.device)  # type: ignore[arg-type]

    @property
    def corpus(self) -> Corpus:
        """The rows that it was trained on."""
        return self.order.corpus

    @property
    def measured_key(self) -> str:
        """The key of the inputs of its curve, and so of the unit's onset."""
        return self.published.curve if self.published else self.fingerprint

    @property
    def code(self) -> tuple[str, ...]:
        """The module of its family's adapter, a part of the key of stages that read its models."""
        return adapter_of(self.config)

    @cached_property
    def architecture(self) -> Architecture:
        """The layout of its model."""
        return family(self.config["model_type"])(configuration(self.config))


@dataclass(frozen=True)
class BaseStage(Stage[Run]):
    """Training from the initial weights to the end, with the emergence curve and checkpoints."""

    declared = BASE
    costs = staticmethod(cost.base)

    order: Order
    model: ModelConfig
    recipe: Recipe
    ending: Ending | None = None  # before the last step

    @property
    def checkpoints(self) -> list[int]:
        """Steps that are kept, unless the run ends before."""
        return self.recipe.training.checkpoints

    def inputs(self, hash_file: HashFile) -> Mapping[str, object]:
        with suppress(NotBuilt):  # refused here where the stream is too short
            self.order.stream(0, self.recipe.training.last_step)
        return {
            "corpus": self.order.corpus.fingerprint,
            "stream": self.order.inputs,
            "model": model_inputs(self.model, hash_file),
            "training": self.recipe.inputs,
            "emergence": self.recipe.curve_inputs(hash_file),
            "metrics": metrics.functions(),
            "seed": self.order.seed,
            "checkpoints": self.checkpoints,
            **({"ends": self.ending.inputs} if self.ending else {}),
        }

    def code(self) -> tuple[str, ...]:
        return ("mda.stages.runs", *metrics.modules(), *adapter_of(function_of(self.model)))

    def device(self) -> torch.device:
        return self.recipe.device

    def build(self, part: Path, at: Runtime) -> None:
        training = Training(self.order, self.recipe, self.checkpoints, ending=self.ending)
        model = initial_model(self.model, self.order.seed)
        stream = self.order.stream(0, self.recipe.training.last_step)
        training.run(part, at, model, stream, None, "base run")

    def open(self, artifact: Artifact, at: Runtime) -> Run:
        _log(artifact, at.log)
        kept, function = self.checkpoints, function_of(self.model)
        if self.ending and is_there(artifact):
            kept = checkpoint.steps(artifact.path / "checkpoints")
        return Run(artifact, self.device(), tuple(kept), function, self.order, self.recipe)


@dataclass(frozen=True)
class StateStage(Stage[Start]):
    """Weights and optimizer of the base run at a step between two kept ones.

    It is computed by resuming from the nearest earlier checkpoint, which is exact.
    """

    declared = STATE
    costs = staticmethod(cost.state)

    base: Run
    step: int

    def inputs(self, hash_file: HashFile) -> Mapping[str, object]:
        return {"base": self.base.fingerprint, "step": self.step}

    def code(self) -> tuple[str, ...]:
        return ("mda.stages.runs", *self.base.code)

    def device(self) -> torch.device:
        return self.base.device

    def build(self, part: Path, at: Runtime) -> None:
        earlier = max(kept for kept in self.base.checkpoints if kept < self.step)
        start, order = self.base.checkpoint(earlier), self.base.order
        training = Training(order, self.base.recipe, [self.step])
        stream, model = order.stream(earlier, self.step), _model_in(self.base, start)
        training.run(part, at, model, stream, start, f"to step {self.step}")

    def open(self, artifact: Artifact, at: Runtime) -> Start:
        return Start(artifact, self.step)


def state_at(base: Run, step: int, at: Runtime) -> Start:
    """Returns weights and optimizer of the base run at any step."""
    return (
        Start(base.artifact, step) if step in base.checkpoints else make(StateStage(base, step), at)
    )


@dataclass(frozen=True)
class EditedStream:
    """The stream of an arm: steps, and the inputs that decide the samples of each."""

    steps: tuple[int, int] | None  # None where the window is not known yet
    inputs: object  # what enters the key: how the stream is made, or its hash
    stream: Callable[[], Stream]
    corpus: Corpus  # with the rows from outside
    inside: Callable[[PreTrainedModel], Mapping[str, torch.Tensor]] | None = None
    """The parameters that it reaches, bool by name; None: all."""
    until: int | None = None  # where training ends, unedited after the window; None: with it


@dataclass(frozen=True)
class Followed:
    """A unit that is measured where curves do not have it anyway."""

    inputs: object  # which unit, for the key
    kind: str  # the module of its kind
    follow: Follow


@dataclass(frozen=True)
class ArmStage(Stage[Run]):
    """Training on an edited stream from the base run's state; all else as in that run.

    The key holds the base run and the edited stream, not how the edit was chosen: arms with the
    same training share it.
    """

    declared = ARM
    costs = staticmethod(cost.arm)

    base: Run
    edit: EditedStream
    start: Start | None  # in place of the base run's state; None where the window is not known
    followed: Followed | None = None

    def inputs(self, hash_file: HashFile) -> Mapping[str, object]:
        base, inputs = self.base, dict[str, object]()
        if base.published:  # the key of a trained one has it
            inputs["every"] = base.recipe.emergence.every
        if (every := base.recipe.emergence.arm_held_out_every) is not None:
            inputs["held_out_every"] = every
        if self.followed is not None:
            inputs["followed"] = self.followed.inputs
        if self.start is not None and self.start.perturbed:
            inputs["start"] = self.start.artifact.fingerprint
        if self.edit.until is not None:
            inputs["until"] = self.edit.until
        return {"base": base.fingerprint, "stream": self.edit.inputs, **inputs}

    def code(self) -> tuple[str, ...]:
        follows = (module_of(self.followed.kind),) if self.followed else ()
        scoped = ("mda.unit.scope",) if self.edit.inside else ()
        return ("mda.stages.runs", *self.base.code, *follows, *scoped)

    def device(self) -> torch.device:
        return self.base.device

    def build(self, part: Path, at: Runtime) -> None:
        assert self.start is not None
        stream, model = self.edit.stream(), _model_in(self.base, self.start.folder)
        order = replace(self.base.order, corpus=self.edit.corpus)
        end = stream.end
        if self.edit.until is not None:
            stream = followed_by(stream, order.stream(end, self.edit.until))
        also = (*self.base.checkpoints, end) if self.base.published else (end,)
        follow = self.followed.follow if self.followed else None
        recipe = replace(self.base.recipe, emergence=self.base.recipe.emergence.in_arms)
        training = Training(order, recipe, sorted({end, stream.end}), follow, also)
        reach = None
        if self.edit.inside is not None:
            unedited = self.base.order.stream(stream.start, stream.end)
            reach = Reach(unedited, self.edit.inside(model))
        training.run(part, at, model, stream, self.start.folder, "arm", reach)

    def open(self, artifact: Artifact, at: Runtime) -> Run:
        _log(artifact, at.log)
        base, end = self.base, () if self.edit.steps is None else (self.edit.steps[1],)
        return Run(artifact, base.device, end, base.config, base.order, base.recipe)


def origin_of(base: Run, window: Window, hash_file: HashFile) -> str:
    """Returns the hash of the base run's first weights and of the window's samples in order.

    Runs of two seeds that share it are one: neither weights nor data differ.
    """
    weights = base.checkpoint(base.checkpoints[0]) / "model.safetensors"
    unedited = base.order.stream(window.start, window.end)
    inputs = {"weights": hash_file(weights), "window": stream_hash(unedited)}
    return store.fingerprint("origin", inputs)


def adapter_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the adapter's module of a model's family; none without its config.json."""
    try:
        return (module_of(FAMILIES[config["model_type"]]),)
    except NotBuilt:
        return ()


def _model_in(base: Run, checkpoint_folder: Path) -> PreTrainedModel:
    """Returns the model of one of a run's checkpoints, or of a state derived from one."""
    return read_model(base.folder / CONFIG_FILE, checkpoint_folder / "model.safetensors")


def _log(artifact: Artifact, log: RowLog) -> None:
    """Logs a run from the store as if it had just been trained."""
    if artifact.built or not is_there(artifact):
        return
    curve = read_rows(artifact.path / "curve.csv")
    losses = read_rows(artifact.path / "train.csv")
    thinned = [row for row in losses if row["step"] % LOGGED_EVERY == 0]
    for row in sorted([*curve, *thinned], key=lambda row: row["step"]):
        log(row)


def model_inputs(model: ModelConfig, hash_of: HashFile = hash_file) -> dict[str, object]:
    """Returns the model's key inputs: its function, and the source of its weights."""
    files = {path.name: hash_of(path) for path in model.weight_files()}
    return {"config": function_of(model), "weights": files or "scratch"}
