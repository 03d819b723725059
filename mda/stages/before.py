"""Early checks of weights and revisions, which would otherwise fail after hours of work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from mda.data.stream import Corpus
from mda.model.build import check_memory, check_shapes, check_weights
from mda.schema import (
    BaseConfig,
    CheckpointConfig,
    Config,
    ConfigError,
    DirectionConfig,
    ModelConfig,
    PublishedConfig,
    ScratchConfig,
    Unavailable,
    UnitConfig,
)
from mda.stages.context import Runtime, rank
from mda.stages.found import FindOnly, NotBuilt
from mda.stages.hub import ask_for, ask_for_shapes
from mda.stages.published import Check, WeightsStage
from mda.store import make_key, say
from mda.unit.direction import read_directions
from mda.unit.prompts import prompt_objective


def check_model(model: ModelConfig, base: BaseConfig, check: Check, at: Runtime) -> None:
    """Checks the start of the base run before a corpus is built for it.

    Raises ConfigError for weights that do not fit their config.json, for a model that does not fit
    into memory, and for a published revision that does not exist. `check` sees the config.json of
    local revisions.
    """
    if isinstance(base, PublishedConfig):
        _check_revisions(base, check, at)
    elif isinstance(model, CheckpointConfig):
        _check_once(Path(model.source), f"model.source={model.source}")
    elif isinstance(model, ScratchConfig) and not isinstance(at.store, FindOnly):
        check_memory(model)


def check_directions(unit: UnitConfig, model: ModelConfig) -> None:
    """Raises ConfigError for a file of directions that does not fit the model."""
    if isinstance(unit, DirectionConfig):
        read_directions(unit, getattr(model, "d_model", None))


def check_prompts(config: Config, corpus: Corpus, groups: Sequence[str]) -> None:
    """Raises ConfigError, before any training, for prompts that the tokenizer makes too long."""
    probe = getattr(config.unit, "probe", None)
    files = {"emergence.prompts": config.emergence.prompts}
    if "unit" in groups and probe is not None:
        files["unit.probe.file"] = probe.file
    with suppress(NotBuilt):
        for key, file in files.items():
            if file is not None:
                prompt_objective(file, key, corpus, corpus.seq_len + 1)


def _check_revisions(base: PublishedConfig, check: Check, at: Runtime) -> None:
    """Checks every revision that is not in the store; one process asks for all.

    A local revision tells the shapes of its weights. Of a repository's revisions the first does,
    after every one has been asked for: the others are of the same model.
    """
    missing = []
    for step in base.steps:
        stage = WeightsStage(base, step, check)
        inputs = stage.inputs(at.store.hash_file)
        if rank() > 0 or at.store.find(make_key("weights", inputs)) is not None:
            continue
        if base.repo is not None:
            missing.append(stage.name)
        elif all(path.suffix != ".bin" for path in stage.files):
            _check_once(stage.files[0].parent, stage.key)
    if base.repo is None:
        return
    first = missing[:1] if len(missing) == len(base.steps) else []
    for ask, revisions in ((ask_for, missing), (_ask_for_shapes, first)):
        for revision in revisions:
            error = _refusal(ask, base.repo, revision)
            if isinstance(error, Unavailable) and isinstance(at.store, FindOnly):
                return say(str(error))  # a plan can be made without a network
            if error is not None:
                raise error


def _ask_for_shapes(repo: str, revision: str) -> None:
    """Raises ConfigError for a revision whose weights do not fit its config.json."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        if shapes := ask_for_shapes(repo, revision, folder):
            check_shapes(folder, shapes, f"base.repo={repo}, revision {revision}")


_check_once = cache(check_weights)  # by each process: a plan of many jobs has them in common


@cache
def _refusal(ask: Callable[[str, str], None], repo: str, revision: str) -> ConfigError | None:
    try:
        ask(repo, revision)
    except ConfigError as error:
        return error
    return None
