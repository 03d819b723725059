"""What would be refused after hours of work, looked at before any of it: weights and revisions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from mda.model.build import check_memory, check_weights
from mda.schema import CheckpointConfig, ConfigError, PublishedConfig, ScratchConfig, Unavailable
from mda.stages.context import Context, rank
from mda.stages.found import FindOnly
from mda.stages.hub import ask_for
from mda.stages.published import revision_source
from mda.store import say


def check_model(context: Context, groups: Sequence[str]) -> None:
    """Look at what the base run starts from, before a corpus is built for it.

    Raises ConfigError for weights that do not fit their config.json, for a model that does not fit
    into memory, and for a published revision that is not there. `groups` are those whose rules
    need the sizes of a published model.
    """
    model, base = context.config.model, context.config.base
    if isinstance(base, PublishedConfig):
        _check_revisions(context, base, groups)
    elif isinstance(model, CheckpointConfig):
        _check_once(Path(model.source), f"model.source={model.source}")
    elif isinstance(model, ScratchConfig) and not isinstance(context.store, FindOnly):
        check_memory(model)


def _check_revisions(context: Context, base: PublishedConfig, groups: Sequence[str]) -> None:
    """Ask for every revision that is not in the store; one process asks for all."""
    for step in base.steps:
        key, files, inputs = revision_source(context, base, step, groups)
        if rank() > 0 or context.store.find("weights", inputs) is not None:
            continue
        if base.repo is None:
            if all(path.suffix != ".bin" for path in files):
                _check_once(files[0].parent, key)
        elif error := _refusal(base.repo, base.revision_of(step)):
            if not (isinstance(error, Unavailable) and isinstance(context.store, FindOnly)):
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
