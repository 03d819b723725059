"""Scores of the window's samples for a located unit."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from mda import store
from mda.cost import scoring
from mda.estimator import ekfac
from mda.estimator.estimator import Item, TokenEstimator, Work
from mda.estimator.replay import TrainingState, TrainingWindow, load_state
from mda.estimator.score import SampleScores
from mda.model.build import layout
from mda.schema import EstimatorConfig, TrainingConfig, refuse
from mda.stages.context import Runtime, barrier, mine, rank, without
from mda.stages.corpus import fetch
from mda.stages.curvature import CurvatureStage, sharded
from mda.stages.declared import SCORES
from mda.stages.found import Made, NotBuilt
from mda.stages.locating import Located, as_text
from mda.stages.plugin import estimator_of, module_of
from mda.stages.runs import Run, state_at
from mda.stages.stage import HashFile, Stage, make
from mda.store import Artifact
from mda.training import checkpoint
from mda.training.optimizer import learning_rate
from mda.types import Scores, Stream, Unit, Window
from mda.unit.scope import ALL, UNIT, left_out, scored

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCORE_SHARDS = (64, 1024)  # see `sharded`
NOT_SCORED = (
    "accelerator", "activation_checkpointing", "devices", "micro_batch_size", "precision",
    "threads",
)  # fmt: skip
"""Settings of the arms of a published run which no score of its samples depends on; the kind of
device and, on a CPU, the number of threads are in the key as they are."""


@dataclass(frozen=True)
class Traced(Made):
    """Scores of the window, with the handles that later stages need."""

    steps: tuple[int, ...]  # the checkpoints that were read
    located: Located
    settings: EstimatorConfig  # of what scored them

    @cached_property
    def scores(self) -> Scores:
        """The scores; values are read from the folder on use."""
        return load_scores(self.folder)


@dataclass(frozen=True)
class ScoringWork(Work):
    """What a stage lends to an estimator."""

    at: Runtime
    base: Run
    stream: Stream
    part: Path | None = None  # where shards lie; None where no pass over samples is meant

    @property
    def _training(self) -> TrainingConfig:
        return self.base.recipe.training

    def model(self, step: int) -> PreTrainedModel:
        return self.base.model(self._scored(step))

    def curvature(self, step: int, fit: ekfac.Fit) -> ekfac.Curvature:
        ids, step = fit.subset(self.sample_ids), self._scored(step)
        return make(CurvatureStage(self.base, ids, step, fit), self.at)

    def learning_rate(self, step: int) -> float:
        return learning_rate(step, self._training)

    def second_moments(self, step: int) -> dict[str, Tensor]:
        self.lend("Adam's moments", bool(self.settings.requires.moments))
        self._refuse_published()
        beta2 = self._training.beta2
        return checkpoint.second_moments(self.base.checkpoint(step), beta2)

    def training(self) -> tuple[TrainingWindow, dict[int, TrainingState]]:
        self.lend("the training", self.settings.requires.trajectory)
        self._refuse_published()
        settings, start = self._training, self.stream.start
        model = self.base.model(self.base.checkpoints[-1])
        folders = {step: self.base.checkpoint(step) for step in self.steps if step != start}
        folders[start] = state_at(self.base, start, self.at).folder
        states = {step: load_state(folder, model, settings) for step, folder in folders.items()}
        return TrainingWindow(model, self.stream, self.corpus.rows, settings), states

    def _scored(self, step: int) -> int:
        """Returns a step that is in the scores' key. Raises ValueError for another."""
        if step not in self.steps:
            there = ", ".join(map(str, self.steps)) or "none"
            raise ValueError(f"step {step} is read; expected the estimator's own steps, {there}")
        return step

    def _refuse_published(self) -> None:
        """Raises ConfigError for a published base run, which lacks the optimizer's state."""
        if self.base.published is not None:
            accepted = "what needs no optimizer state, which base=published lacks"
            raise refuse("estimator", self.settings.name, accepted)

    def keep(self, name: str, tensors: dict[str, Tensor]) -> None:
        assert self.part is not None
        store.write_safetensors(self.part / f"{name}_.safetensors", tensors)

    def kept(self, name: str) -> dict[str, Tensor] | None:
        assert self.part is not None
        path = self.part / f"{name}_.safetensors"
        return store.read_safetensors(path) if path.exists() else None

    def bar(self, items: Iterable[Item], name: str, total: int) -> Iterator[Item]:
        return self.at.bar(items, name, total)

    def over_samples(self, name: str, scores: Callable[[np.ndarray], SampleScores]) -> SampleScores:
        assert self.part is not None
        shards = list(enumerate(sharded(self.sample_ids, *SCORE_SHARDS)))
        files = [self.part / f"{name.replace(' ', '_')}_{i:05d}.safetensors" for i, _ in shards]
        todo = mine(shards)
        for i, shard in self.at.bar(todo, name, len(todo)):
            if not files[i].exists():
                part = scores(shard)
                parts = {"values": part.values_NU, "losses": part.losses_N}
                store.write_safetensors(files[i], parts)
        barrier()
        values = on_disk((len(self.sample_ids), len(self.units)), self.part)
        losses, first = [], 0
        for file in files:
            done = store.read_safetensors(file)
            values[first : first + len(done["values"])] = done["values"]
            losses.append(done["losses"])
            first += len(done["values"])
        barrier()  # every process has read the shards before the first one deletes them
        return SampleScores(values, torch.cat(losses))


def work_of(
    located: Located,
    settings: EstimatorConfig,
    steps: tuple[int, ...],
    at: Runtime,
    part: Path | None = None,
) -> ScoringWork:
    """Returns the work of scoring a unit's window."""
    base, window = located.base, located.window
    stream = base.order.stream(window.start, window.end)
    return ScoringWork(
        settings,
        base.corpus,
        stream.sample_ids,
        located.kind,
        units_of(located, settings),
        located.name,
        located.members,
        steps,
        base.order.seed,
        base.recipe.training.eps,
        at,
        base,
        stream,
        part,
    )


def units_of(located: Located, settings: EstimatorConfig) -> tuple[Unit, ...]:
    """Returns the units that an estimator scores, with the parameters of its scope."""
    if (scope := settings.requires.scope) == UNIT:
        return located.units
    return scored(located.units, located.name, scope, layout(located.base.config))


def on_disk(shape: tuple[int, ...], folder: Path) -> Tensor:
    """Returns zeros in float64 in an unnamed file, which is deleted with the tensor.

    A million samples of 144 heads are more than a gigabyte; here they are pages that the system can
    write out when it needs the memory.
    """
    if not np.prod(shape):
        return torch.zeros(shape, dtype=torch.float64)
    with tempfile.TemporaryFile(dir=folder) as file:  # the mapping outlives the closed file
        return torch.from_numpy(np.memmap(file, np.float64, "w+", shape=shape))


@dataclass(frozen=True)
class ScoresStage(Stage[Traced]):
    """The influence of every sample of the window on every unit of the kind."""

    declared = SCORES
    costs = staticmethod(scoring.scores)
    together = True

    located: Located
    settings: EstimatorConfig

    @cached_property
    def steps(self) -> tuple[int, ...] | None:
        """The checkpoints that are read; None where they depend on a run that is not built."""
        located, settings = self.located, self.settings
        kept, training = list(located.base.checkpoints), located.base.recipe.training
        if settings.requires.moving:
            kept = [step for step in kept if learning_rate(step, training) > 0]
        try:
            window = located.window
        except NotBuilt:
            if located.steps is None or getattr(settings, "checkpoint", None) == "onset":
                return None
            window = Window(*located.steps, None, "as given")  # whose onset is not asked for
        return estimator_of(settings).steps(kept, window)

    def inputs(self, hash_file: HashFile) -> Mapping[str, object]:
        located, settings, base = self.located, self.settings, self.located.base
        steps: object = self.steps
        if self.steps is None:
            told = asdict(settings)
            how = {name: told.get(name) for name in ("checkpoint", "checkpoints", "n_checkpoints")}
            steps = {"decided by": how | located.onset_key}
        inputs: dict[str, object] = {
            "base": base.key_at(*self.steps or ()),
            "window": located.window_key,
            "units": located.units_key,
            "estimator": settings.inputs,
            "steps": steps,
        }
        if files := settings.files():
            inputs["files"] = {path.name: hash_file(path) for path in files}
        required = settings.requires
        if required.target or required.query:
            inputs["unit"] = located.inputs
        if required.found:
            inputs["found"] = [located.members_key, located.together, located.settings.metric]
        if base.published is not None:  # what the key of a trained run has already
            training = without(asdict(base.recipe.training), *NOT_SCORED)
            own = {"stream": base.order.inputs, "seed": base.order.seed, "training": training}
            inputs |= own
        return inputs

    def code(self) -> tuple[str, ...]:
        reads = (*self.located.settings.modules, *self.located.base.code)
        own = ("mda.stages.attribution", module_of(self.settings.estimator))
        required = self.settings.requires
        reads_kind = self.steps != () or required.target or required.query
        return (*own, *reads) if reads_kind else own

    def device(self) -> torch.device:
        return self.located.base.device

    def build(self, part: Path, at: Runtime) -> None:
        assert self.steps is not None
        work = work_of(self.located, self.settings, self.steps, at, part)
        fetch(at, work.corpus, work.sample_ids, together=True)
        values = estimator_of(self.settings).score(work)
        if rank() == 0:
            _save(part, work.stream, work.units, values)
            for path in part.glob("*_*.safetensors"):
                path.unlink()

    def open(self, artifact: Artifact, at: Runtime) -> Traced:
        for said in (self._outside(), self._partial()) if rank() == 0 else ():
            if said:
                at.store.warn(artifact.fingerprint, said)
        return Traced(artifact, self.steps or (), self.located, self.settings)

    def _partial(self) -> str | None:
        """Returns the warning for parameters that `scope=all` leaves out, or None."""
        if self.settings.requires.scope != ALL:
            return None
        (unit,) = units_of(self.located, self.settings)
        missing, total = left_out(unit, layout(self.located.base.config))
        return (
            f"estimator.scope=all leaves out {missing:,} of the model's {total:,} parameters, "
            "which are norms or embeddings that are tied, scaled or of positions"
        )

    def _outside(self) -> str | None:
        """Returns the warning for a named checkpoint outside the window, or an empty text."""
        named = getattr(self.settings, "checkpoint", None)
        if not (isinstance(named, str) and self.steps and self.located.steps):
            return None
        (step, *_), (start, end) = self.steps, self.located.steps
        if start <= step <= end:
            return None
        return (
            f"estimator.checkpoint={named} is step {step}, the base run's nearest checkpoint, "
            f"which lies outside the window [{start},{end}]"
        )


def score(located: Located, settings: EstimatorConfig, at: Runtime) -> Traced:
    """Returns the scores of the window; builds first any state that the estimator trains from."""
    if settings.requires.trajectory and located.steps:
        state_at(located.base, located.steps[0], at)
    return make(ScoresStage(located, settings), at)


def token_influence(traced: Traced, at: Runtime, sample_ids: np.ndarray) -> np.ndarray:
    """Returns each token's influence on the unit for some samples, [n, T]; 0 if unknown.

    Position t is that of the input token at which the unit's parameters act; a row's sum is the
    sample's score.
    """
    work = work_of(traced.located, traced.settings, traced.steps, at)
    influence = estimator_of(traced.settings).token_influence(work, sample_ids)
    if influence is None:
        return np.zeros((len(sample_ids), work.corpus.seq_len))
    return influence.double().numpy()


def loss_influence(traced: Traced, at: Runtime, sample_ids: np.ndarray) -> np.ndarray | None:
    """Returns each loss's part of some samples' scores of the unit, [n, T].

    Position t is that of the loss, whose target is token t + 1. Returns None if the estimator does
    not score losses.
    """
    if "tokens" not in traced.settings.gives:
        return None
    estimator = cast(TokenEstimator, estimator_of(traced.settings))
    work = work_of(traced.located, traced.settings, traced.steps, at)
    return estimator.target_influence(work)(sample_ids).double().numpy()


def _save(part: Path, stream: Stream, units: Sequence[Unit], found: SampleScores) -> None:
    rows = np.diff(stream.offsets)
    store.write_npy(part / "sample_ids.npy", stream.sample_ids)
    store.write_npy(part / "steps.npy", np.repeat(np.arange(stream.start, stream.end), rows))
    values = (values_NU.float().numpy() for values_NU in found.values_NU.split(1024))
    shape = (len(found.values_NU), len(units))
    store.write_npy_parts(part / "values.npy", values, shape, np.float32)
    store.write_npy(part / "losses.npy", found.losses_N.float().numpy())
    store.write_json(part / "units.json", as_text(units))


def load_scores(folder: Path) -> Scores:
    """Returns the scores in an artifact's folder; values are read on use."""
    names = ("sample_ids", "steps", "values", "losses")
    arrays = {name: store.read_npy(folder / f"{name}.npy", name == "values") for name in names}
    return Scores(units=tuple(store.read_json(folder / "units.json")), **arrays)
