"""The groups motifs and synthesis: patterns that samples share, and rows made from them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from mda.schema.setting import Group, setting


@dataclass
class MotifsConfig(Group):
    """The patterns that the samples of highest influence share."""

    key: ClassVar[str] = "motifs"
    samples: int = setting(2000, "samples of the window that motifs are taken from", low=1)
    select: str = setting(
        "top",
        "which: the highest scores, the lowest, or a random set as a control",
        one_of=("top", "bottom", "random"),
    )
    least: float = setting(0.01, "share of these samples that must have a motif", above=0, high=1)
    seed: int = setting(0, "seed of select=random", low=0, high=2**32 - 1)


@dataclass
class SynthesisConfig(Group):
    """Token rows made from motifs, and the rows for comparison."""

    key: ClassVar[str] = "synthesis"
    kind: str = setting(
        "motif",
        "motif: records of motifs; shuffled: their tokens without repetition; random: rows of the "
        "corpus; repetition: repeated blocks of random tokens",
        one_of=("motif", "shuffled", "random", "repetition"),
    )
    motifs: str | None = setting(None, "motif file of `mda motifs`, for motif and shuffled")
    rows: int = setting(800, "rows of data.seq_len + 1 tokens", low=1)
    seed: int = setting(0, "seed of the rows", low=0, high=2**32 - 1)
    arm: str | None = setting(
        None, "name of the file and so of the arm, null: the kind, random_motif for random samples'"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.arm is not None and not re.fullmatch(r"\w[\w-]*", self.arm):
            raise self._refuse("arm", "letters, digits, _ and -, or null")

    @property
    def from_motifs(self) -> bool:
        """True if the kind needs a motif file."""
        return self.kind in ("motif", "shuffled")
