"""A study: the arms, seeds and claims of a comparison, written down before the runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, time
from hashlib import sha256
from typing import Any, ClassVar

from mda.schema.arm import EXAMPLE, OLD_WORDS, StudyArm, read_arm
from mda.schema.edit import as_data
from mda.schema.old_words import WORDS
from mda.schema.setting import ConfigError, Group, nearest, refuse, setting, show

REFERENCES = {
    "control": "the same window of the unedited stream",
    "random": "edits of the same kind and size whose samples are drawn freely",
    "matched": (
        "random samples with the labels (or losses) of the targeted set, none of them targeted; "
        "where the targeted set is a large part of a label, these are the label's lower-scoring "
        "samples; of tokens, as many random ones of each sample"
    ),
    "matched_overlap": (
        "random samples with the labels (or losses) of the targeted set, targeted ones allowed: "
        "fair draws from each label, which share samples with the targeted set"
    ),
    "repetition": (
        "the trivial baseline: the samples that repeat themselves most, by a count that needs no "
        "model; what influence has to beat"
    ),
}
"""What an arm is compared with, in words. A claim may also name any other estimator."""


@dataclass
class ClaimConfig(Group):
    """A claim, judged by the rule of mda/analysis/claims.py."""

    key: ClassVar[str] = "study.claims.*"
    text: str = setting("???", "the claim in words")
    metric: str = setting(
        "unit/curve",
        "metric that is compared, see mda/analysis/metrics.py; the mean over the window and the "
        "onset (onset_step) are primary, the value at its end (unit) is secondary",
    )
    arm: str = setting("???", "name of an arm of the study")
    reference: str = setting(
        "random",
        f"what the arm is compared with: {', '.join(REFERENCES)}, an estimator's name, or an arm "
        "of the study",
    )
    direction: str = setting("???", "the claimed sign", one_of=("less", "greater", "none"))
    margin: float = setting(
        0.0, "less, greater: the effect must exceed it; none: must stay within it", low=0
    )
    expected: float = setting(
        0.0, "size of the claimed effect in units of the metric, 0: none is claimed", low=0
    )
    family: str = setting(
        "main", "claims that are corrected together; all of a study that name none"
    )
    min_seeds: int = setting(5, "with fewer pairs the claim is undecided", low=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.direction == "none" and self.margin == 0:
            raise self._refuse("margin", "above 0 with direction=none")
        if self.direction == "none" and self.expected:
            raise self._refuse("expected", "0 with direction=none")


@dataclass
class StudyConfig(Group):
    """Claims, seeds, arms, families and margins, registered with a date and a hash."""

    key: ClassVar[str] = "study"
    name: str = setting("none", "name of the study, that of its file")
    date: str = setting("", "when it was written down, UTC: 2026-11-25, or 2026-11-25T07:30")
    exploratory: bool = setting(False, "the claims were formed on runs of these seeds")
    alpha: float = setting(0.05, "family-wise level of the verdicts", above=0, below=1)
    seeds: list[int] = setting([], "runs of other seeds are not judged; []: all are", low=0)
    arms: dict[str, dict[str, Any]] = field(
        default_factory=dict, metadata={"accepts": f"arms by name, each as {EXAMPLE}"}
    )
    claims: dict[str, ClaimConfig] = field(
        default_factory=dict,
        metadata={"accepts": "claims by name, see conf/study/causal_grid.yaml"},
    )
    hash: str | None = setting(
        None, "hash of all of the above; a change without a new hash is invalid; null: no check"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.date:
            try:
                self.written()
            except ValueError:
                raise self._refuse(
                    "date", "a date such as 2026-11-25 or 2026-11-25T07:30"
                ) from None
        for name in self.arms:
            self.arm(name)
        for name, claim in self.claims.items():
            if claim.arm not in self.arms:
                known = (
                    f"an arm of the study: {', '.join(self.arms)}{nearest(claim.arm, self.arms)}"
                )
                raise self._refuse_claim(name, "arm", claim.arm, known)
            self._check_margin(name, claim)
        if self.hash is not None and self.hash != (now := self.content_hash()):
            raise self._refuse(
                "hash", f"{now}, which the study has now, or null for a study that is tried out"
            )

    def arm(self, name: str) -> StudyArm:
        """Returns an arm by its name. Raises ConfigError for settings that no run can have."""
        words = self.arms[name]
        try:
            return read_arm(words)
        except (KeyError, TypeError, ValueError) as error:
            said = error if isinstance(error, ConfigError) else f"{show(words)} means no edit"
            raise ConfigError(
                f"study.arms.{name}: {said}; an arm is written as {EXAMPLE}"
            ) from error

    def content_hash(self) -> str:
        """Returns the first 16 hex digits of the SHA-256 of all values but `hash`, as sorted JSON.

        An arm counts by its meaning, so a change of a default changes the hash.
        """
        content = {key: value for key, value in asdict(self).items() if key != "hash"}
        content["arms"] = {name: _hashed(self.arm(name), words)
                           for name, words in self.arms.items()}  # fmt: skip
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return sha256(text.encode()).hexdigest()[:16]

    @property
    def stamp(self) -> dict[str, str] | None:
        """The record that a run keeps of its study; None if the study registers nothing."""
        if self.exploratory or self.hash is None or not self.date:
            return None
        return {"name": self.name, "hash": self.hash}

    def written(self) -> datetime | None:
        """Returns the latest time of registration; a date alone means the end of that day."""
        if not self.date:
            return None
        when = datetime.fromisoformat(self.date)
        if len(self.date) == len("2026-11-25"):
            when = datetime.combine(when.date(), time.max)
        return when if when.tzinfo else when.replace(tzinfo=UTC)

    def _check_margin(self, name: str, claim: ClaimConfig) -> None:
        effects = [
            other.expected
            for other in self.claims.values()
            if other.metric == claim.metric and other.expected > 0
        ]
        # "Does nothing" has to mean much less than the effects that are claimed.
        if claim.direction == "none" and effects and claim.margin > min(effects) / 2.999:
            limit = min(effects) / 3
            said = f"at most {limit:.3g}, a third of the smallest effect that the study expects"
            raise self._refuse_claim(name, "margin", claim.margin, said)

    def _refuse_claim(self, name: str, item: str, value: Any, accepted: str) -> ConfigError:
        return refuse(f"study.claims.{name}.{item}", value, accepted)


def _hashed(arm: StudyArm, words: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the part of an arm that enters a study's hash: its own words where they are old."""
    if set(words) <= set(WORDS) and (arm.edit.is_control or set(words) & OLD_WORDS):
        return dict.fromkeys(WORDS, "") | dict(words)
    return {**as_data(arm.edit), **arm.settings}
