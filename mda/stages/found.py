"""Handles on artifacts that are not built, and stores that never build.

A key may depend on the content of an upstream artifact, such as the window of an automatic edit. It
is made from that content if the artifact exists, else from the settings that decide it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mda.store import Artifact, Key, Store


class NotBuilt(Exception):
    """Raised where the content of a stage is needed that is not in the store."""

    def __init__(self, kind: str, fingerprint: str) -> None:
        super().__init__(f"{kind} {fingerprint} is not in the store")
        self.kind, self.fingerprint = kind, fingerprint


class Foreseen:
    """A stand-in for a missing artifact: its kind and key; all else raises NotBuilt."""

    built, warning = False, ""

    def __init__(self, kind: str, fingerprint: str) -> None:
        self.kind, self.fingerprint = kind, fingerprint

    def __getattr__(self, name: str) -> Any:
        raise NotBuilt(self.kind, self.fingerprint)

    def __getitem__(self, name: object) -> Any:
        raise NotBuilt(self.kind, self.fingerprint)


def is_there(artifact: Artifact) -> bool:
    """Returns whether an artifact can be opened; False for one that is only foreseen."""
    return not isinstance(artifact, Foreseen)


def known(content: Callable[[], object], decided_by: Mapping[str, object]) -> object:
    """Returns the part of a key from an upstream artifact, or the settings that decide it.

    The settings are used if the artifact is not in the store yet.
    """
    try:
        return content()
    except NotBuilt:
        return {"decided by": dict(decided_by)}


@dataclass(frozen=True)
class Made:
    """A handle on an artifact of the store, opened when its content is used."""

    artifact: Artifact

    @property
    def fingerprint(self) -> str:
        """The key of the artifact."""
        return self.artifact.fingerprint

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return self.artifact.path

    @property
    def built(self) -> bool:
        """True if this process has just built it."""
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
        """The fingerprint of the artifact that was requested last, by kind."""
        return dict(self.asked.keys())  # pairs

    def get_or_build(self, key: Key, build: Callable[[Path], None]) -> Artifact:
        """Returns the artifact if it exists; its fingerprint is noted either way."""
        artifact = self.find(key)
        fingerprint = artifact.fingerprint if artifact else key.fingerprint
        self.asked[key.kind, fingerprint] = artifact is not None
        return artifact or self.missing(key.kind, fingerprint)

    def missing(self, kind: str, fingerprint: str) -> Artifact:
        """Returns the stand-in for a missing artifact: here it raises NotBuilt."""
        raise NotBuilt(kind, fingerprint)


class Forecast(FindOnly):
    """A store that finds, and foresees missing artifacts, so that later stages have keys too."""

    def missing(self, kind: str, fingerprint: str) -> Artifact:
        """Returns a handle that knows only its key."""
        return cast(Artifact, Foreseen(kind, fingerprint))
