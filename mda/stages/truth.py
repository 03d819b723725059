"""The stages of a benchmark of estimators: scores of every unit, and retrained windows.

All units have one window and one base run, so a set of samples is retrained once for all units and
estimators: an arm's key is the base run and the edited stream, and for a rerun the perturbed start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mda import store
from mda.data.stream import Corpus, stream_hash
from mda.estimator import ekfac
from mda.estimator.replay import TrainingWindow, load_state, perturbed
from mda.intervention.changes import augment, remove
from mda.intervention.edit import edit
from mda.schema import (
    Config,
    EstimatorConfig,
    FileConfig,
    InterventionConfig,
    SaeConfig,
    UnitConfig,
)
from mda.stages.attribution import Traced, score
from mda.stages.context import Runtime
from mda.stages.declared import STATE
from mda.stages.locating import Located, locate
from mda.stages.order import Order
from mda.stages.runs import ArmStage, EditedStream, Run, Start, origin_of, state_at
from mda.stages.stage import HashFile, Stage, make
from mda.store import Artifact
from mda.training import checkpoint
from mda.training.optimizer import adamw
from mda.types import Changes, Scores, Stream, Window


class Outcome(NamedTuple):
    """A unit at the end of a window: its metric on the curve, and its measurement."""

    metric: float
    measurement: float


@dataclass(frozen=True)
class Asked:
    """The settings that find a unit, and its window."""

    unit: UnitConfig
    sae: SaeConfig
    edit: InterventionConfig

    def within(self, window: Window) -> Asked:
        """Returns the same unit in a given window."""
        return replace(self, edit=replace(self.edit, window=[window.start, window.end]))

    def locate(self, base: Run, at: Runtime) -> Located:
        """Returns the unit in a base run."""
        return locate(base, self.unit, self.sae, self.edit, at)


@dataclass(frozen=True)
class Bench:
    """A base run, a window of it, and the units that are measured in every arm."""

    base: Run
    units: Mapping[str, Asked]  # by the name in the tables
    window: Window
    at: Runtime

    @classmethod
    def of(cls, units: Mapping[str, Asked], base: Run, window: Window | None, at: Runtime) -> Bench:
        """Returns a benchmark; its window is that of the first unit unless given."""
        window = window or next(iter(units.values())).locate(base, at).window
        within = {name: one.within(window) for name, one in units.items()}
        return cls(base, within, window, at)

    @property
    def corpus(self) -> Corpus:
        return self.base.corpus

    @property
    def seed(self) -> int:
        return self.base.order.seed

    @property
    def last_step(self) -> int:
        return self.base.checkpoints[-1]

    @cached_property
    def located(self) -> dict[str, Located]:
        """Each unit, found by its metric at the end of the base run."""
        return {name: one.locate(self.base, self.at) for name, one in self.units.items()}

    @cached_property
    def stream(self) -> Stream:
        """The unedited stream of the window."""
        return self.base.order.stream(self.window.start, self.window.end)

    def traced(self, unit: str, settings: EstimatorConfig) -> Traced:
        """Returns scores of one unit by an estimator."""
        return score(self.located[unit], settings, self.at)

    def arm(self, changes: Changes | None, start: Start | None = None) -> Run:
        """Returns the window trained again with an edit; None means the unedited stream."""
        stream = self.stream if changes is None else edit(changes, self.stream)
        quiet = replace(self.at, progress=False)  # who retrains many draws a bar of its own
        start = start or state_at(self.base, self.window.start, quiet)
        steps = self.window.start, self.window.end
        inputs: object = [stream_hash(stream), None]
        if changes is None:
            inputs = self.base.order.inputs | {"window": list(steps)}
        edited = EditedStream(steps, inputs, lambda: stream, self.corpus)
        return make(ArmStage(self.base, edited, start), quiet)

    def removal(self, sample_ids: np.ndarray) -> Changes:
        """Returns the changes that mask some samples: weight 0, all else in place."""
        window = self.window
        return remove(self._placed, sample_ids, window.start, window.end, "mask")

    def doubling(self, sample_ids: np.ndarray) -> Changes:
        """Returns the changes with one more copy of some samples, in the step that has them."""
        window = self.window
        return augment(self._placed, sample_ids, window.start, window.end, "duplicate")

    @cached_property
    def _placed(self) -> Scores:
        """The step of every sample of the window, as edits read it from scores."""
        ids, rows = self.stream.sample_ids, np.diff(self.stream.offsets)
        steps = np.repeat(np.arange(self.stream.start, self.stream.end), rows)
        empty = np.empty((len(ids), 0), np.float32)
        return Scores(ids, steps, empty, (), np.full(len(ids), np.nan, np.float32))

    def outcomes(self, run: Run) -> dict[str, Outcome]:
        """Returns every unit at the end of an arm."""
        model = run.model(self.window.end)
        return {
            name: Outcome(
                _metric(self.units[name].unit.metric, located, run),
                float(located.kind.measurements(model, [_unit(located)])[0]),
            )
            for name, located in self.located.items()
        }

    @property
    def origin(self) -> str:
        """The identity of a seed's data: first weights, and the window's samples in order."""
        return origin_of(self.base, self.window, self.at.store.hash_file)

    def perturbed_start(self, size: float, seed: int, number: int) -> Start:
        """Returns the base run's state at the window's start with noise in the weights."""
        return make(PerturbedStage(self.base, self.stream, (size, seed, number)), self.at)


@dataclass(frozen=True)
class PerturbedStage(Stage[Start]):
    """The base run's state at the start of a window with noise in the weights."""

    declared = STATE

    base: Run
    window: Stream
    noise: tuple[float, int, int]  # size, seed, number

    def inputs(self, hash_file: HashFile) -> Mapping[str, object]:
        noise = list(self.noise)
        return {"base": self.base.fingerprint, "step": self.window.start, "noise": noise}

    def code(self) -> tuple[str, ...]:
        return ("mda.estimator.replay", *self.base.code)

    def device(self) -> torch.device:
        return self.base.device

    def build(self, part: Path, at: Runtime) -> None:
        base, training = self.base, self.base.recipe.training
        folder = state_at(base, self.window.start, at).folder
        model = base.model(base.checkpoints[-1])
        exact = replace(training, precision="32-true")  # noise is the same in any arithmetic
        window = TrainingWindow(model, self.window, base.corpus.rows, exact)
        state = load_state(folder, model, training)
        optimizer = adamw(model, training)
        checkpoint.load(folder, model, optimizer)
        window.load(perturbed(window, state, *self.noise).weights_P)
        checkpoint.save(part / "checkpoints", self.window.start, model, optimizer)

    def open(self, artifact: Artifact, at: Runtime) -> Start:
        return Start(artifact, self.window.start, perturbed=True)


def other_initialisation(config: Config, corpus: Corpus, seed: int) -> Config:
    """Returns the same settings with another seed's weights, on the order of `config`."""
    data = config.data
    if data.shuffle and data.order_seed is None:
        data = replace(data, order_seed=config.seed)
    other = replace(config, seed=seed, data=data)
    mine, its = (
        Order.of(corpus, one.data, one.training.batch_size, one.seed).samples
        for one in (config, other)
    )
    assert np.array_equal(mine, its)
    return other


def seconds(folder: Path) -> float | None:
    """Returns the build time of an artifact: CPU time on a CPU, else time; None if resumed.

    Other work on the machine also raises CPU time, through caches and memory, but less.
    """
    manifest = store.read_json(folder / "manifest.json")
    if manifest["resumed"]:
        return None
    on_cpu = manifest.get("computed", {}).get("device", "cpu") == "cpu"
    return manifest.get("cpu_s") if on_cpu else manifest["wall_s"]


def scoring_seconds(bench: Bench, traced: Traced) -> float | None:
    """Returns the time of scores, with that of a curvature that they found in the store.

    Returns None for scores that were made elsewhere: reading their file is no part of it.
    """
    if isinstance(traced.settings, FileConfig):
        return None
    own, scores = seconds(traced.folder), store.read_json(traced.folder / "manifest.json")
    folder = curvature_of(bench, scores["inputs"])
    if own is None or folder is None:
        return own
    if _time(store.read_json(folder / "manifest.json"), 0.5) > _time(scores, 1.0):
        return own  # fitted on the way
    fit = seconds(folder)
    return None if fit is None else own + fit


def curvature_of(bench: Bench, scores: Mapping[str, Any]) -> Path | None:
    """Returns the newest EK-FAC curvature behind scores with these inputs, or None."""
    estimator = scores["estimator"]
    if estimator["name"] != "ekfac":
        return None
    ids = ekfac.fit_subset(bench.stream.sample_ids, estimator["fit_sequences"], estimator["seed"])
    entering = {
        "base": scores["base"],
        "step": scores["steps"][0],
        "samples": store.hash_arrays(ids),
        "labels": {"kind": estimator["labels"], "seed": estimator["seed"]},
    }
    blocks = {part.partition("[")[0] for parts in scores["units"].values() for part in parts}
    candidates = [
        artifact
        for artifact in bench.at.store.artifacts("curvature")
        if set((inputs := artifact.manifest["inputs"])["blocks"]) == blocks
        and entering.items() <= inputs.items()
    ]
    return max(candidates, key=lambda one: one.manifest["created"]).path if candidates else None


def _time(manifest: Mapping[str, Any], before_end: float) -> datetime:
    """Returns when an artifact was finished, minus a share of its build time."""
    took = timedelta(seconds=before_end * manifest["wall_s"])
    return datetime.fromisoformat(manifest["created"]) - took


def causes(bench: Bench, unit: str, planted: Sequence[str]) -> np.ndarray:
    """Returns which samples of the window have a planted label, the unit's own if it has one."""
    label = getattr(bench.units[unit].unit, "label", None)
    labels = np.asarray(bench.corpus.labels_of(bench.stream.sample_ids))
    return np.isin(labels, [label] if label else list(planted))


def _unit(located: Located):
    return next(unit for unit in located.units if unit.name == located.name)


def _metric(metric: str, located: Located, run: Run) -> float:
    """Returns the mean over the unit's members: for heads from the arm's own curve."""
    names = [f"emergence/{metric}/{member}" for member in located.members]
    values = run.curve[-1]
    if names[0] not in values:
        values = located.follow(run.model(int(values["step"])))
    return float(np.mean([values[name] for name in names]))
