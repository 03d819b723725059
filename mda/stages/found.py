"""What is not in the store: handles that know their key alone, and stores that never build.

A key that holds what only an upstream artifact can tell, such as the window of an automatic edit,
is made from that content where the artifact is there, else from the settings that decide it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from mda.store import Artifact, Store, make_key


class NotBuilt(Exception):
    """A stage whose content was asked for is not in the store."""

    def __init__(self, kind: str, fingerprint: str) -> None:
        super().__init__(f"{kind} {fingerprint} is not in the store")
        self.kind, self.fingerprint = kind, fingerprint


class Foreseen:
    """In place of what is not in the store: its kind and key; all else raises NotBuilt."""

    built, warning = False, ""

    def __init__(self, kind: str, fingerprint: str) -> None:
        self.kind, self.fingerprint = kind, fingerprint

    def __getattr__(self, name: str) -> Any:
        raise NotBuilt(self.kind, self.fingerprint)

    def __getitem__(self, name: object) -> Any:
        raise NotBuilt(self.kind, self.fingerprint)


def is_there(artifact: Artifact) -> bool:
    """Whether an artifact can be opened; False for one that is only foreseen."""
    return not isinstance(artifact, Foreseen)


def known(content: Callable[[], object], decided_by: Mapping[str, object]) -> object:
    """What enters a key: content of an upstream artifact, or the settings that decide it.

    The settings stand in where the artifact is not in the store yet.
    """
    try:
        return content()
    except NotBuilt:
        return {"decided by": dict(decided_by)}


@dataclass(frozen=True)
class Made:
    """A handle on an artifact of the store, opened as its content is used."""

    artifact: Artifact

    @property
    def fingerprint(self) -> str:
        """The key of the artifact."""
        return self.artifact.fingerprint

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self.artifact.path

    @property
    def built(self) -> bool:
        """Whether this process has just built it."""
        return self.artifact.built

    @property
    def wall_s(self) -> float:
        """Seconds that it took to build."""
        return self.artifact.manifest["wall_s"]


class FindOnly(Store):
    """A store that finds and never builds: a stage that is missing raises NotBuilt."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: dict[tuple[str, str], bool] = {}  # (kind, fingerprint) -> whether it is there

    @property
    def found(self) -> dict[str, str]:
        """kind -> fingerprint of what was asked for last."""
        return dict(self.asked.keys())  # pairs

    def get_or_build(
        self,
        kind: str,
        inputs: Mapping[str, object],
        build: Callable[[Path], None],
        code: Sequence[str] = (),
        device: torch.device | str | None = None,
    ) -> Artifact:
        """The artifact, where it is there; its fingerprint is noted either way."""
        artifact = self.find(kind, inputs, code, device)
        key = artifact.fingerprint if artifact else make_key(kind, inputs, code, device).fingerprint
        self.asked[kind, key] = artifact is not None
        return artifact or self.missing(kind, key)

    def missing(self, kind: str, fingerprint: str) -> Artifact:
        """What stands in for an artifact that is not there: here an error."""
        raise NotBuilt(kind, fingerprint)


class Forecast(FindOnly):
    """A store that finds, and foresees what is missing: the stages after it have keys, too."""

    def missing(self, kind: str, fingerprint: str) -> Artifact:
        """A handle that knows its key alone."""
        return cast(Artifact, Foreseen(kind, fingerprint))
