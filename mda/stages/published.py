"""A base run that was published: its revisions as checkpoints, its curve measured here.

Later stages treat it like a trained run. Three stages: `weights`, one for each revision, in float32
and by our names; `curve`, measured at every revision; and `base`, which holds both in the layout of
a trained run. A checkpoint has no optimizer state, so an arm and its control start with a fresh
AdamW at that step's learning rate, unless `base.state` gives one.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from safetensors import SafetensorError

from mda import store
from mda.cost import stages as cost
from mda.emergence.measure import make_probes, measure
from mda.model.build import CONFIG_FILE, NOT_THE_FUNCTION, from_folder, read_model, saved_config
from mda.schema import ConfigError, PublishedConfig, metrics
from mda.schema.model import supported_config
from mda.schema.setting import show
from mda.stages.context import Runtime, without
from mda.stages.declared import BASE, CURVE, WEIGHTS
from mda.stages.found import Made, NotBuilt, is_there, known
from mda.stages.hub import fetch_revision, weight_files
from mda.stages.order import Order
from mda.stages.recipe import Recipe
from mda.stages.runs import Published, Run, adapter_of
from mda.stages.stage import HashFile, Stage, make
from mda.store import Artifact
from mda.training.checkpoint import check_moments, checkpoint_folder
from mda.training.table import CsvTable

Check = Callable[[Mapping[str, Any], str], None]
VERSION = 1  # raised when the same revision is read differently: keys of data hold no code
WEIGHTS_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
TWINS = {(0, 1)}  # Pythia's first update has learning rate 0 (EleutherAI/pythia, issue 83)
LOSS_COLUMNS = ("step", "tokens", "train/loss", "train/lr")


@dataclass(frozen=True)
class Revision(Made):
    """One published checkpoint, in the store."""

    step: int

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS_FILE

    def hashed(self, hash_of: Callable[[Path], str]) -> str:
        """Returns the hash of the weights, or the artifact's key before they are fetched."""
        return hash_of(self.weights) if is_there(self.artifact) else self.artifact.fingerprint

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration that the model is built from."""
        return store.read_json(self.folder / CONFIG_FILE)

    @property
    def content(self) -> Mapping[str, Any]:
        """The config; raises NotBuilt when it is read before the revision is fetched."""
        return self.config if is_there(self.artifact) else cast(Mapping[str, Any], self.artifact)

    @cached_property
    def source(self) -> dict[str, Any]:
        """The commit and the files it was made from, with their hashes."""
        return store.read_json(self.folder / "source.json")


def published_run(
    settings: PublishedConfig, order: Order, recipe: Recipe, check: Check, at: Runtime
) -> Run:
    """Returns the published checkpoints as a run.

    Raises ConfigError for faults of a revision, and for revisions that cannot be one training.

    `check` sees the config.json of every revision, with the setting that names it.
    """
    revisions = [make(WeightsStage(settings, step, check), at) for step in settings.steps]
    hashes = {one.step: one.hashed(at.store.hash_file) for one in revisions}
    with suppress(NotBuilt):
        _refuse_different(settings, revisions)
        _refuse_same(settings, hashes)
    shared = {"corpus": order.corpus.fingerprint, "config": _function(revisions[0])}
    curve = make(CurveStage(revisions, hashes, order, recipe), at)
    published = Published(hashes, curve.fingerprint, shared | recipe.threads)
    return make(PublishedStage(settings, revisions, published, curve, order, recipe), at)


@dataclass(frozen=True)
class WeightsStage(Stage[Revision]):
    """A revision's weights, found in the store or fetched into it."""

    declared = WEIGHTS
    costs = staticmethod(cost.weights)

    base: PublishedConfig
    step: int
    check: Check

    @property
    def name(self) -> str:
        """The revision's name."""
        return self.base.revision_of(self.step)

    @property
    def key(self) -> str:
        """The revision's name in messages."""
        return f"{self.base.source}, revision {self.name}"

    def inputs(self, hash_file: HashFile) -> Mapping[str, object]:
        if self.base.repo is not None:
            return {"version": VERSION, "repo": self.base.repo, "revision": self.name}
        self._check(self.files[0])
        return {"version": VERSION, "files": {path.name: hash_file(path) for path in self.files}}

    def build(self, part: Path, at: Runtime) -> None:
        if self.base.repo is not None:
            folder = part / "download"
            commit, files = fetch_revision(self.base.repo, self.name, folder, self._check)
        else:
            commit, files = None, self.files
        _convert(files, part, self.key)
        hashes = {path.name: store.hash_file(path) for path in files}
        store.write_json(part / "source.json", {"commit": commit, "files": hashes})
        for name in ("download", "converted"):
            shutil.rmtree(part / name, ignore_errors=True)

    def open(self, artifact: Artifact, at: Runtime) -> Revision:
        revision = Revision(artifact, self.step)
        with suppress(NotBuilt):
            self.check(revision.config, self.key)
        return revision

    @property
    def files(self) -> list[Path]:
        """The files of a local revision. Raises ConfigError where there are none."""
        return _local_files(Path(str(self.base.folder)) / self.name, self.key)

    def _check(self, path: Path) -> None:
        self.check(supported_config(path, self.key), self.key)


@dataclass(frozen=True)
class CurveStage(Stage[Made]):
    """The emergence curve over the revisions, resumable, with a trained run's columns."""

    declared = CURVE
    costs = staticmethod(cost.curve)

    revisions: Sequence[Revision]
    hashes: Mapping[int, str]
    order: Order
    recipe: Recipe

    def inputs(self, hash_file: HashFile) -> Mapping[str, object]:
        return {
            "corpus": self.order.corpus.fingerprint,
            "weights": {str(step): digest for step, digest in self.hashes.items()},
            "config": _function(self.revisions[0]),
            "emergence": without(self.recipe.curve_inputs(hash_file), "every"),
            "metrics": metrics.functions(),
            "batch_size": self.order.batch_size,
            **self.recipe.threads,
        }

    def code(self) -> tuple[str, ...]:
        return ("mda.emergence.measure", *metrics.modules(), *adapter_of(self.revisions[0].content))

    def device(self) -> torch.device:
        return self.recipe.device

    def build(self, part: Path, at: Runtime) -> None:
        corpus, revisions = self.order.corpus, self.revisions
        probes = make_probes(corpus, self.recipe.emergence)
        table = CsvTable(part / "curve.csv")
        done = {row["step"] for row in table.keep_until(revisions[-1].step)}
        for one in at.bar(revisions, "emergence", len(revisions)):
            if one.step in done:
                continue
            model = read_model(one.folder / CONFIG_FILE, one.weights).to(self.device())  # type: ignore[arg-type]
            tokens = one.step * self.order.batch_size * corpus.seq_len
            table.append({"step": one.step, "tokens": tokens, **measure(model, probes)})

    def open(self, artifact: Artifact, at: Runtime) -> Made:
        return Made(artifact)


@dataclass(frozen=True)
class PublishedStage(Stage[Run]):
    """The revisions as the checkpoints of a run, with their curve, in a trained run's layout."""

    declared = BASE
    costs = staticmethod(cost.base)

    base: PublishedConfig
    revisions: Sequence[Revision]
    published: Published
    curve: Made
    order: Order
    recipe: Recipe

    def inputs(self, hash_file: HashFile) -> Mapping[str, object]:
        weights, states = self.published.weights, _states(self.base)
        return {
            "version": VERSION,
            "weights": {str(step): digest for step, digest in weights.items()},
            "states": {str(step): hash_file(path) for step, path in states.items()},
            "curve": self.curve.fingerprint,
            "training": self.recipe.inputs,  # of arms
            "seed": self.order.seed,
        }

    def build(self, part: Path, at: Runtime) -> None:
        states = _states(self.base)
        for one in self.revisions:
            folder = checkpoint_folder(part / "checkpoints", one.step)
            folder.mkdir(parents=True, exist_ok=True)
            _link(one.weights, folder / WEIGHTS_FILE)
            if one.step in states:
                _check_state(states[one.step], one)
                shutil.copyfile(states[one.step], folder / OPTIMIZER_FILE)
            else:
                store.write_safetensors(folder / OPTIMIZER_FILE, {})
            store.write_json(folder / "state.json", {"step": one.step})
        store.write_json(part / CONFIG_FILE, self.revisions[0].config)
        manifest = _manifest(self.base, self.revisions, self.published.weights)
        store.write_csv(part / "revisions.csv", manifest)
        store.write_csv(part / "train.csv", [], LOSS_COLUMNS)  # no update was made here
        shutil.copyfile(self.curve.folder / "curve.csv", part / "curve.csv")

    def open(self, artifact: Artifact, at: Runtime) -> Run:
        steps, content = tuple(self.base.steps), self.revisions[0].content
        of = (artifact, self.recipe.device, steps, content, self.order, self.recipe)
        run = Run(*of, self.published)
        with suppress(NotBuilt):
            for row in run.curve:
                at.log(row)
        return run


def _function(revision: Revision) -> object:
    """Returns the part of its config.json that decides the model's function."""
    unknown = {"weights": revision.fingerprint}
    return known(lambda: without(revision.config, *NOT_THE_FUNCTION), unknown)


def _local_files(folder: Path, key: str) -> list[Path]:
    """Returns config.json and the weights of a local revision."""
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{key}: {folder} is no folder with config.json")

    def get(name: str) -> Path | None:
        path = folder / name
        return path if path.is_file() else None

    return [folder / "config.json", *weight_files(key, get)]


def _convert(files: Sequence[Path], part: Path, key: str) -> None:
    """Writes a revision's weights in float32 under our names, and the model's configuration."""
    folder = files[0].parent
    if pickles := [path for path in files if path.suffix == ".bin"]:
        folder = part / "converted"
        weights: dict[str, torch.Tensor] = {}
        for path in pickles:
            weights |= _unpickled(path, key)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copyfile(files[0], folder / "config.json")
        store.write_safetensors(folder / WEIGHTS_FILE, weights, {"format": "pt"})
    model = from_folder(folder, key)
    store.write_json(part / CONFIG_FILE, saved_config(model))
    store.write_safetensors(part / WEIGHTS_FILE, dict(model.named_parameters()))


def _unpickled(path: Path, key: str) -> dict[str, torch.Tensor]:
    """Returns the tensors of a pickle without executing anything in it; tied ones become copies."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ConfigError(f"{key}: {path.name} holds more than tensors, or is damaged") from error
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise ConfigError(f"{key}: {path.name} is invalid; expected tensors by their names")
    return {name: tensor.clone() for name, tensor in content.items()}


def _refuse_different(settings: PublishedConfig, revisions: Sequence[Revision]) -> None:
    first = without(revisions[0].config, *NOT_THE_FUNCTION)
    for one in revisions[1:]:
        other = without(one.config, *NOT_THE_FUNCTION)
        if changed := [k for k in {*first, *other} if first.get(k) != other.get(k)]:
            here, there = (settings.revision_of(r.step) for r in (one, revisions[0]))
            raise ConfigError(
                f"{settings.source}, revision {here}: {min(changed)} of its config.json is not "
                f"that of {there}; expected revisions of one model"
            )


def _refuse_same(settings: PublishedConfig, hashes: Mapping[int, str]) -> None:
    """Raises ConfigError for two steps with the same weights, except the known pair."""
    first: dict[str, int] = {}
    for step, digest in hashes.items():
        twin = first.setdefault(digest, step)
        if twin == step:
            continue
        names = f"{settings.revision_of(twin)} and {settings.revision_of(step)}"
        said = f"{settings.source}: revisions {names} have the same weights"
        if (twin, step) not in TWINS:
            raise ConfigError(f"{said}; expected steps with weights of their own")
        print(f"{said}: the first update had learning rate 0", file=sys.stderr)


def _states(settings: PublishedConfig) -> dict[int, Path]:
    """Returns the optimizer state that the user gives for each step."""
    if settings.state is None:
        return {}
    root = Path(settings.state)
    states = {step: checkpoint_folder(root, step) / OPTIMIZER_FILE for step in settings.steps}
    states = {step: path for step, path in states.items() if path.is_file()}
    if not states:
        raise ConfigError(
            f"base.state={settings.state} is invalid; expected a folder with "
            f"step_<n>/{OPTIMIZER_FILE}, n one of base.steps={show(settings.steps)}"
        )
    return states


def _check_state(path: Path, revision: Revision) -> None:
    """Raises ConfigError for a state that an arm cannot start with at this revision."""
    try:
        moments = store.read_safetensors(path)
    except SafetensorError as error:
        raise ConfigError(f"{path}: not readable as safetensors ({error})") from error
    if moments:
        check_moments(path, moments, store.read_safetensors(revision.weights), revision.step)


def _manifest(
    settings: PublishedConfig, revisions: Sequence[Revision], hashes: Mapping[int, str]
) -> list[dict[str, object]]:
    """Returns a row for each file that was read, which a reproduction compares."""
    return [
        {
            "step": one.step,
            "revision": settings.revision_of(one.step),
            "commit": one.source["commit"] or "",
            "file": name,
            "sha256": digest,
            "weights": hashes[one.step],
        }
        for one in revisions
        for name, digest in one.source["files"].items()
    ]


def _link(source: Path, target: Path) -> None:
    """Makes a hard link to a file, or a copy where the file system has no links."""
    target.unlink(missing_ok=True)
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)
