"""Early checks of weights and revisions, which would otherwise fail after hours of work."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from mda.model.build import check_memory, check_weights
from mda.schema import (
    BaseConfig,
    CheckpointConfig,
    ConfigError,
    ModelConfig,
    PublishedConfig,
    ScratchConfig,
    Unavailable,
)
from mda.stages.context import Runtime, rank
from mda.stages.found import FindOnly
from mda.stages.hub import ask_for
from mda.stages.published import Check, WeightsStage
from mda.store import say


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


def _check_revisions(base: PublishedConfig, check: Check, at: Runtime) -> None:
    """Checks every revision that is not in the store; one process asks for all."""
    for step in base.steps:
        stage = WeightsStage(base, step, check)
        inputs = stage.inputs(at.store.hash_file)
        if rank() > 0 or at.store.find("weights", inputs) is not None:
            continue
        if base.repo is None:
            if all(path.suffix != ".bin" for path in stage.files):
                _check_once(stage.files[0].parent, stage.key)
        elif error := _refusal(base.repo, stage.name):
            if not (isinstance(error, Unavailable) and isinstance(at.store, FindOnly)):
                raise error
            say(str(error))  # a plan can be made without a network
            return


_check_once = cache(check_weights)  # by each process: a plan of many jobs has them in common


@cache
def _refusal(repo: str, revision: str) -> ConfigError | None:
    try:
        ask_for(repo, revision)
    except ConfigError as error:
        return error
    return None
