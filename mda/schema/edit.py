"""The edit of a window's stream as a value: the same in settings, studies and summaries.

An `Edit` identifies an arm over all seeds. It is made from settings by `InterventionConfig.edit`,
goes into summary.json by `as_data`, and `edit_from` reads it back as an equal value. An arm's name
is never parsed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

RANDOM = "random"
"""The reference whose samples nobody has chosen."""


@dataclass(frozen=True)
class Scorer:
    """The samples are chosen by an estimator's scores."""

    estimator: str


@dataclass(frozen=True)
class Rows:
    """Rows of a file were inserted; `name` is the file's, without folder and ending.

    `stands_for` is the reference that such rows are in runs from before edits were data: there
    rows called `random` counted as a random edit. In any later run it is empty.
    """

    name: str
    stands_for: str = field(default="", compare=False)


@dataclass(frozen=True)
class Top:
    """The highest scores."""


@dataclass(frozen=True)
class Bottom:
    """The lowest scores."""


@dataclass(frozen=True)
class Band:
    """Scores between two quantiles: (0.9, 1) is the top decile."""

    low: float
    high: float


@dataclass(frozen=True)
class Random:
    """Drawn independently of any score."""


@dataclass(frozen=True)
class Ids:
    """The samples with these ids."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Share:
    """A share of the window's samples or tokens; `within`: of the tokens of a share of samples."""

    value: float
    of: str = "samples"
    within: float | None = None


@dataclass(frozen=True)
class Count:
    """A number of samples, tokens or inserted rows."""

    value: int
    of: str = "samples"
    within: float | None = None


@dataclass(frozen=True)
class Match:
    """A random set with the targeted set's distribution of labels, losses, repetition or samples.

    `of` names several that were matched jointly as label+repetition.

    With `targeted`, that set may contain targeted samples (or tokens).
    """

    of: str
    targeted: bool = False


@dataclass(frozen=True)
class Edit:
    """An edit, which identifies an arm over all seeds."""

    intervention: str  # remove, augment or control
    mode: str = ""  # mask, drop, replace, mask_tokens, spans, duplicate, upweight, insert
    spans: str = ""  # fresh or renamed, with mode=spans
    by: Scorer | Rows | None = None  # None: nobody, as of a random choice or of ids
    choose: Top | Bottom | Band | Random | Ids | None = None  # None: rows are inserted as they are
    amount: Share | Count | None = None  # None: a band and ids say it themselves
    label: str | None = None  # class that the choice is restricted to
    match: Match | None = None
    scope: str = ""  # parameters that it reaches: unit (its own), others, or all where empty

    @property
    def source(self) -> str:
        """The name of the edit as a reference of claims: an estimator, `random`, or empty."""
        if isinstance(self.by, Scorer):
            return self.by.estimator
        if isinstance(self.by, Rows):
            return self.by.stands_for
        return RANDOM if isinstance(self.choose, Random) else ""

    @property
    def is_control(self) -> bool:
        """True if it is the unedited stream."""
        return self.intervention == "control"

    @property
    def is_random(self) -> bool:
        """True if the samples are a random set, drawn freely or matched to a targeted one."""
        return self.source == RANDOM or self.match is not None

    @property
    def is_band(self) -> bool:
        """True if it edits a band of scores, one point of a dose-response."""
        return isinstance(self.choose, Band)

    @property
    def size(self) -> Share | Count | None:
        """The size of the edit: its amount, or what a band or ids imply."""
        if isinstance(self.choose, Band):
            return Share(round(self.choose.high - self.choose.low, 9))
        return Count(len(self.choose.ids)) if isinstance(self.choose, Ids) else self.amount


_PARTS: tuple[type[Any], ...] = (
    Scorer, Rows, Top, Bottom, Band, Random, Ids, Share, Count, Match,
)  # fmt: skip


def as_data(edit: Edit) -> dict[str, Any]:
    """Returns the edit as JSON-compatible data; a part is a mapping with its class under `is`.

    An edit that reaches all parameters says nothing of it, as when there was no other.
    """

    def data(part: Any) -> Any:
        return {"is": type(part).__name__, **asdict(part)} if isinstance(part, _PARTS) else part

    named = [item.name for item in fields(edit) if item.name != "scope" or edit.scope]
    return {name: data(getattr(edit, name)) for name in named}


def edit_from(data: Mapping[str, Any]) -> Edit:
    """Returns the edit that `as_data` wrote. Raises KeyError or TypeError for anything else."""
    kinds = {kind.__name__: kind for kind in _PARTS}

    def part(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        inner = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k != "is"}
        return kinds[value["is"]](**inner)

    return Edit(**{key: part(value) for key, value in data.items()})
