"""A stage: one statement of an artifact's inputs, its computation, and its cost.

A stage is a frozen dataclass. Its fields are the handles of the stages before it and the settings
that it reads, and nothing else enters it. `make` finds it in the store or builds it; a plan asks
the same stages for the same keys of a store that never builds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Generic, TypeVar, cast

import torch

from mda.cost.job import Cost, Job
from mda.stages.context import Runtime, build_together
from mda.stages.declared import Declared
from mda.stages.found import Foreseen, NotBuilt
from mda.store import Artifact, make_key

Handle = TypeVar("Handle")
HashFile = Callable[[Path], str]


@dataclass(frozen=True)
class Stage(Generic[Handle]):
    """An artifact to be made, of the kind that its class states."""

    declared: ClassVar[Declared]
    together: ClassVar[bool] = False  # whether the processes of torchrun share its work

    @staticmethod
    def costs(job: Job) -> list[Cost]:
        """Returns the costs of such artifacts in a job, in the order of the work."""
        raise NotImplementedError

    def inputs(self, hash_file: HashFile) -> Mapping[str, object]:
        """Returns its key's inputs beside code and device: settings, and keys of earlier stages."""
        raise NotImplementedError

    def code(self) -> tuple[str, ...]:
        """Returns the root modules that compute it; none where the inputs decide the content."""
        return ()

    def device(self) -> torch.device | str | None:
        """Returns the device it is computed on; None where that does not matter."""
        return None

    def build(self, part: Path, at: Runtime) -> None:
        """Writes its files into the folder."""
        raise NotImplementedError

    def open(self, artifact: Artifact, at: Runtime) -> Handle:
        """Returns the handle of the finished artifact."""
        raise NotImplementedError


def make(stage: Stage[Handle], at: Runtime) -> Handle:
    """Returns the stage's handle: built, or found in the store by its key.

    In a plan, a missing artifact is foreseen: its handle has what is known without it, and all else
    raises NotBuilt.
    """
    kind, inputs = stage.declared.kind, stage.inputs(at.store.hash_file)
    key, build = make_key(kind, inputs, stage.code(), stage.device()), partial(stage.build, at=at)
    if stage.together:
        artifact = build_together(at.store, key, build)
    else:
        artifact = at.store.get_or_build(key, build)
    try:
        return stage.open(artifact, at)
    except NotBuilt:
        return cast(Handle, Foreseen(kind, artifact.fingerprint))
