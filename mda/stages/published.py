"""A base run that was published: its revisions as checkpoints, its curve measured here.

What follows can't tell it from a trained one. Three stages: `weights`, one for each revision, in
float32 and by our names; `curve`, measured at every revision; and `base`, which holds both in the
layout of a trained run. A checkpoint has no optimizer state, so that an arm starts with a fresh
AdamW at that step's learning rate, and so does its control; unless `base.state` gives one.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from safetensors import SafetensorError

from mda import store
from mda.data.stream import Corpus
from mda.emergence.measure import make_probes, measure
from mda.model.build import CONFIG_FILE, NOT_THE_FUNCTION, from_folder, read_model, saved_config
from mda.schema import ConfigError, PublishedConfig, validate_sizes
from mda.schema.model import supported_config
from mda.schema.setting import show
from mda.stages.context import Context, without
from mda.stages.found import NotBuilt, is_there, known
from mda.stages.hub import fetch_revision, weight_files
from mda.stages.runs import (
    Published,
    Run,
    adapter_of,
    base_run,
    device_of,
    threads_in,
    training_inputs,
)
from mda.store import Artifact
from mda.training.checkpoint import check_moments, checkpoint_folder
from mda.training.table import CsvTable

VERSION = 1
WEIGHTS_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
TWINS = {(0, 1)}  # Pythia's first update has learning rate 0 (EleutherAI/pythia, issue 83)
LOSS_COLUMNS = ("step", "tokens", "train/loss", "train/lr")


@dataclass(frozen=True)
class Revision:
    """One published checkpoint, in the store."""

    step: int
    artifact: Artifact

    @property
    def weights(self) -> Path:
        return self.artifact.path / WEIGHTS_FILE

    def hashed(self, hash_of: Callable[[Path], str]) -> str:
        """Hash of the weights; the key of the artifact where they have yet to be fetched."""
        return hash_of(self.weights) if is_there(self.artifact) else self.artifact.fingerprint

    @cached_property
    def config(self) -> dict[str, Any]:
        """What the model is built from."""
        return store.read_json(self.artifact.path / CONFIG_FILE)

    @cached_property
    def source(self) -> dict[str, Any]:
        """The commit and the files it was made from, with their hashes."""
        return store.read_json(self.artifact.path / "source.json")


def base_of(context: Context, corpus: Corpus, groups: Iterable[str]) -> Run:
    """The base run: trained, or published, as `base` says.

    `groups` are those whose rules are checked once a published model's sizes are known.
    """
    if context.config.base.published:
        return published_run(context, corpus, groups)
    return base_run(context, corpus)


def published_run(context: Context, corpus: Corpus, groups: Iterable[str]) -> Run:
    """The published checkpoints as a run. Raises ConfigError, one sentence, for what is wrong
    with a revision, and for revisions that cannot be one training."""
    config, settings = context.config, context.config.base
    assert isinstance(settings, PublishedConfig)
    groups = tuple(groups)
    revisions = [_revision(context, settings, step, groups) for step in settings.steps]
    hashes = {one.step: one.hashed(context.store.hash_file) for one in revisions}
    with suppress(NotBuilt):
        _refuse_different(settings, revisions)
        _refuse_same(settings, hashes)
    device = device_of(config)
    threads = threads_in(config, device)
    curve = _curve(context, corpus, revisions, hashes)
    states = _states(settings)
    inputs = {
        "version": VERSION,
        "weights": {str(step): digest for step, digest in hashes.items()},
        "states": {str(step): context.store.hash_file(path) for step, path in states.items()},
        "curve": curve.fingerprint,
        "training": training_inputs(config, device),  # of arms
        "seed": config.seed,
    }

    def build(part: Path) -> None:
        for one in revisions:
            folder = checkpoint_folder(part / "checkpoints", one.step)
            folder.mkdir(parents=True, exist_ok=True)
            _link(one.weights, folder / WEIGHTS_FILE)
            if one.step in states:
                _check_state(states[one.step], one)
                shutil.copyfile(states[one.step], folder / OPTIMIZER_FILE)
            else:
                store.write_safetensors(folder / OPTIMIZER_FILE, {})
            store.write_json(folder / "state.json", {"step": one.step})
        store.write_json(part / CONFIG_FILE, revisions[0].config)
        store.write_csv(part / "revisions.csv", _manifest(settings, revisions, hashes))
        store.write_csv(part / "train.csv", [], LOSS_COLUMNS)  # no update was made here
        shutil.copyfile(curve.path / "curve.csv", part / "curve.csv")

    artifact = context.store.get_or_build("base", inputs, build)
    function = _function(revisions[0])
    shared = {"corpus": corpus.fingerprint, "config": function, **threads}
    published = Published(hashes, curve.fingerprint, shared)
    content = cast(Mapping[str, Any], revisions[0].artifact)  # which says that it is not there
    with suppress(NotBuilt):
        content = revisions[0].config
    run = Run(artifact, device, tuple(settings.steps), content, published)
    with suppress(NotBuilt):
        for row in run.curve:
            context.log(row)
    return run


def revision_source(
    context: Context, settings: PublishedConfig, step: int, groups: Sequence[str]
) -> tuple[str, list[Path], dict[str, object]]:
    """What errors call a revision, its local files, and what its weights are found by.

    Raises ConfigError for a local revision that is not there or has other sizes.
    """
    name = settings.revision_of(step)
    key = f"{settings.source}, revision {name}"
    if settings.repo is not None:
        return key, [], {"version": VERSION, "repo": settings.repo, "revision": name}
    local = _local_files(Path(str(settings.folder)) / name, key)
    validate_sizes(context.config, supported_config(local[0], key), groups, key)
    hashes = {path.name: context.store.hash_file(path) for path in local}
    return key, local, {"version": VERSION, "files": hashes}


def _revision(
    context: Context, settings: PublishedConfig, step: int, groups: Sequence[str]
) -> Revision:
    """A revision's weights, found in the store or brought into it."""
    name = settings.revision_of(step)
    key, local, inputs = revision_source(context, settings, step, groups)

    def check(path: Path) -> None:
        validate_sizes(context.config, supported_config(path, key), groups, key)

    def build(part: Path) -> None:
        if settings.repo is not None:
            commit, files = fetch_revision(settings.repo, name, part / "download", check)
        else:
            commit, files = None, local
        _convert(files, part, key)
        found = {path.name: store.hash_file(path) for path in files}
        store.write_json(part / "source.json", {"commit": commit, "files": found})
        for folder in ("download", "converted"):
            shutil.rmtree(part / folder, ignore_errors=True)

    artifact = context.store.get_or_build("weights", inputs, build)
    revision = Revision(step, artifact)
    with suppress(NotBuilt):
        validate_sizes(context.config, revision.config, groups, key)
    return revision


def _function(revision: Revision) -> object:
    """All of its config.json that decides what the model computes."""
    unknown = {"weights": revision.artifact.fingerprint}
    return known(lambda: without(revision.config, *NOT_THE_FUNCTION), unknown)


def _local_files(folder: Path, key: str) -> list[Path]:
    """config.json and the weights of a local revision."""
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{key}: {folder} is no folder with config.json")

    def get(name: str) -> Path | None:
        path = folder / name
        return path if path.is_file() else None

    return [folder / "config.json", *weight_files(key, get)]


def _convert(files: Sequence[Path], part: Path, key: str) -> None:
    """Write a revision's weights in float32 and by our names, and what its model is built from."""
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
    """The tensors of a pickle; nothing in it is executed. Tied ones become copies."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ConfigError(f"{key}: {path.name} holds more than tensors, or is damaged") from error
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()
    ):
        raise ConfigError(f"{key}: {path.name} is refused; accepted: tensors by their names")
    return {name: tensor.clone() for name, tensor in content.items()}


def _refuse_different(settings: PublishedConfig, revisions: Sequence[Revision]) -> None:
    first = without(revisions[0].config, *NOT_THE_FUNCTION)
    for one in revisions[1:]:
        other = without(one.config, *NOT_THE_FUNCTION)
        if changed := [k for k in {*first, *other} if first.get(k) != other.get(k)]:
            here, there = (settings.revision_of(r.step) for r in (one, revisions[0]))
            raise ConfigError(
                f"{settings.source}, revision {here}: {min(changed)} of its config.json is not "
                f"that of {there}; accepted: revisions of one model"
            )


def _refuse_same(settings: PublishedConfig, hashes: Mapping[int, str]) -> None:
    """Refuse two steps with the same weights, but for the pair that is known to have them."""
    first: dict[str, int] = {}
    for step, digest in hashes.items():
        twin = first.setdefault(digest, step)
        if twin == step:
            continue
        names = f"{settings.revision_of(twin)} and {settings.revision_of(step)}"
        said = f"{settings.source}: revisions {names} have the same weights"
        if (twin, step) not in TWINS:
            raise ConfigError(f"{said}; accepted: steps with weights of their own")
        print(f"{said}: the first update had learning rate 0", file=sys.stderr)


def _curve(
    context: Context, corpus: Corpus, revisions: Sequence[Revision], hashes: Mapping[int, str]
) -> Artifact:
    """The emergence curve over the revisions, resumable; its columns are a trained run's."""
    config, device = context.config, device_of(context.config)
    inputs = {
        "corpus": corpus.fingerprint,
        "weights": {str(step): digest for step, digest in hashes.items()},
        "config": _function(revisions[0]),
        "emergence": without(asdict(config.emergence), "onset", "every"),
        "batch_size": config.training.batch_size,
        **threads_in(config, device),
    }

    def build(part: Path) -> None:
        probes = make_probes(corpus, config.emergence)
        table = CsvTable(part / "curve.csv")
        done = {row["step"] for row in table.keep_until(revisions[-1].step)}
        for one in context.bar(revisions, "emergence", len(revisions)):
            if one.step in done:
                continue
            model = read_model(one.artifact.path / CONFIG_FILE, one.weights).to(device)  # type: ignore[arg-type]
            tokens = one.step * config.training.batch_size * corpus.seq_len
            table.append({"step": one.step, "tokens": tokens, **measure(model, probes)})

    code: tuple[str, ...] = ("mda.emergence.measure",)
    with suppress(NotBuilt):
        code += adapter_of(revisions[0].config)
    return context.store.get_or_build("curve", inputs, build, code, device)


def _states(settings: PublishedConfig) -> dict[int, Path]:
    """Step -> the optimizer's state that the user gives for it."""
    if settings.state is None:
        return {}
    root = Path(settings.state)
    found = {step: checkpoint_folder(root, step) / OPTIMIZER_FILE for step in settings.steps}
    found = {step: path for step, path in found.items() if path.is_file()}
    if not found:
        raise ConfigError(
            f"base.state={settings.state} is refused; accepted: a folder with "
            f"step_<n>/{OPTIMIZER_FILE}, n one of base.steps={show(settings.steps)}"
        )
    return found


def _check_state(path: Path, revision: Revision) -> None:
    """Raise ConfigError for a state that an arm could not start with at this revision."""
    try:
        moments = store.read_safetensors(path)
    except SafetensorError as error:
        raise ConfigError(f"{path}: not readable as safetensors ({error})") from error
    if moments:
        check_moments(path, moments, store.read_safetensors(revision.weights), revision.step)


def _manifest(
    settings: PublishedConfig, revisions: Sequence[Revision], hashes: Mapping[int, str]
) -> list[dict[str, object]]:
    """What was read, a row for each file, that a reproduction compares."""
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
    """The same file in two places, a copy where the file system can't."""
    target.unlink(missing_ok=True)
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)
