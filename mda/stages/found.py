"""A store that is only looked into: for plans, reproductions and what is finished so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from mda.store import Artifact, Store, make_key


class NotBuilt(Exception):
    """A stage that is not in the store; nothing after it can be known."""

    def __init__(self, kind: str, fingerprint: str) -> None:
        super().__init__(f"{kind} {fingerprint} is not in the store")
        self.kind, self.fingerprint = kind, fingerprint


class FindOnly(Store):
    """A store that finds and never builds: a stage that is missing raises NotBuilt."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.found: dict[str, str] = {}  # kind -> fingerprint of what was asked for

    def get_or_build(
        self,
        kind: str,
        inputs: Mapping[str, object],
        build: Callable[[Path], None],
        code: Sequence[str] = (),
        device: torch.device | str | None = None,
    ) -> Artifact:
        """The artifact, where it is there; its fingerprint is noted either way."""
        self.found[kind] = make_key(kind, inputs, code, device).fingerprint
        if (artifact := self.find(kind, inputs, code, device)) is None:
            raise NotBuilt(kind, self.found[kind])
        return artifact
