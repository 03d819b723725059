"""The group `base`: the base run is trained here, or was published by others."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mda.schema.setting import ConfigError, Group, setting

ISSUES = "github.com/EleutherAI/pythia/issues"
ALWAYS = range(10**9)  # every step of a repository
LATE_28B = (70, 80, 90, 100, 103, 110, 120, 130, 140)

KNOWN_BAD: tuple[tuple[str, Container[int], str, str], ...] = (
    (
        "EleutherAI/pythia-2.8b",
        {*range(65_001), *(1000 * step for step in LATE_28B)},
        "it holds weights of the end of training",
        f"{ISSUES}/205",
    ),
    (
        "EleutherAI/pythia-12b",
        {50_000, 58_000},
        "its first shard is that of the end of training",
        f"{ISSUES}/206",
    ),
    ("EleutherAI/pythia-410m-seed9", {40_000}, "its weights are missing", f"{ISSUES}/202"),
    ("EleutherAI/pythia-410m-seed6", {88_000}, "its weights are missing", f"{ISSUES}/202"),
    ("EleutherAI/pythia-410m-seed2", {111_000}, "its weights are missing", f"{ISSUES}/202"),
    *(
        (
            f"EleutherAI/pythia-160m-weight-seed{seed}",
            {0},
            "later steps do not descend from it",
            f"{ISSUES}/203",
        )
        for seed in (1, 2)
    ),
    *(
        (
            f"EleutherAI/pythia-{size}-v0",
            ALWAYS,
            "its steps were relabelled: step1000 is update 500",
            "github.com/EleutherAI/pythia, README, on versions",
        )
        for size in ("160m", "410m", "1.4b", "160m-deduped", "410m-deduped", "1.4b-deduped")
    ),
)
"""(repository, steps, what is wrong, where that was found): refused unless `base.allow_bad`."""


@dataclass
class BaseConfig(Group):
    """The source of the base run; its class is chosen by `base=...`."""

    key: ClassVar[str] = "base"
    published: ClassVar[bool] = False
    name: str = setting("train", "where the base run comes from", one_of=("train",))


@dataclass
class PublishedConfig(BaseConfig):
    """A published training: revisions of a repository on a hub, or folders of this machine."""

    published: ClassVar[bool] = True
    name: str = setting("published", "where the base run comes from", one_of=("published",))
    repo: str | None = setting(
        None, "repository on the hub, as EleutherAI/pythia-14m", accepts="owner/name, or null"
    )
    folder: str | None = setting(
        None, "instead: local folder of revision folders", accepts="a folder, or null"
    )
    steps: list[int] = setting("???", "checkpoints that are used, rising, two or more", low=0)
    revision: str = setting(
        "step*", "name of a step's revision; * is the step", accepts="a name with one *"
    )
    state: str | None = setting(
        None,
        "folder of step_<n>/optimizer.safetensors that arms start with, null: a fresh AdamW",
        accepts="a folder, or null",
    )
    allow_bad: bool = setting(False, "use revisions that are known to be mislabelled")
    other_training: bool = setting(
        False, "allow data, batch size or schedule that differ from the model's own training"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.repo is None) == (self.folder is None):
            raise self._refuse("repo", "a repository or base.folder, one of the two")
        if self.repo is not None and self.repo.count("/") != 1:
            raise self._refuse("repo", "owner/name")
        if self.revision.count("*") != 1:
            raise self._refuse("revision", "a name with one * in place of the step")
        if len(self.steps) < 2 or sorted(set(self.steps)) != self.steps:
            raise self._refuse("steps", "two or more rising steps, none of them twice")
        for name in ("folder", "state"):
            if (path := getattr(self, name)) is not None and not Path(path).is_dir():
                raise self._refuse(name, "a folder that exists, or null")
        self._refuse_bad()

    @property
    def source(self) -> str:
        """The setting that names the source, as on the command line."""
        return f"base.folder={self.folder}" if self.repo is None else f"base.repo={self.repo}"

    @property
    def is_pythia(self) -> bool:
        """True if the repository's name is that of a Pythia model."""
        return self.repo is not None and self.repo.rpartition("/")[2].startswith("pythia-")

    @property
    def other_order(self) -> bool:
        """True if the name is that of a Pythia model with other rows or another order of rows.

        These are the deduplicated models, and those of another seed of the data.
        """
        name = (self.repo or "").rpartition("/")[2]
        return bool(re.match(r"pythia-[\d.]+[mb](-v0)?-(deduped|seed\d|data-seed\d)", name))

    def revision_of(self, step: int) -> str:
        """Returns the name of a step's revision."""
        return self.revision.replace("*", str(step))

    def _refuse_bad(self) -> None:
        for repo, steps, problem, where in KNOWN_BAD:
            bad = [step for step in self.steps if step in steps] if repo == self.repo else []
            if bad and not self.allow_bad:
                raise ConfigError(
                    f"base.repo={repo}: revision {self.revision_of(bad[0])} is known to be bad: "
                    f"{problem} ({where}); expected other base.steps, or base.allow_bad=true"
                )
