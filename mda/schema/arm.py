"""An arm of a study, written in the settings that its runs are started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mda.schema.attribution import IN_EDIT, INTERVENTIONS
from mda.schema.edit import Edit, Scorer
from mda.schema.estimator import ESTIMATORS
from mda.schema.old_words import WORDS, read_words
from mda.schema.setting import Group, nearest, refuse

EXAMPLE = "{intervention: remove, intervention.fraction: 0.1, estimator: ekfac}"
OPTIONS: dict[str, dict[str, type[Group]]] = {
    "intervention": INTERVENTIONS, "estimator": ESTIMATORS,
}  # fmt: skip
OLD_WORDS = set(WORDS) - set(OPTIONS)
REPLICATES = {"seed", "batch_size", "window", "before_onset", "after_onset"}
"""Settings that differ between the runs of one arm."""


@dataclass(frozen=True)
class StudyArm:
    """An arm of a study: its edit, and the settings that the study fixes beside the edit."""

    edit: Edit
    settings: Mapping[str, Any]  # by their keys, as estimator.damping; others may be anything


def read_arm(words: Mapping[str, Any]) -> StudyArm:
    """Returns an arm from settings by their keys, or from the words of old studies.

    Raises ConfigError for settings that no run of the arm can have; ValueError, KeyError or
    TypeError for a value of another type, or for old words without a meaning.
    """
    if OLD_WORDS & set(words):
        return StudyArm(read_words(words), {})
    given: dict[str, dict[str, Any]] = {"intervention": {}, "estimator": {}}
    for key, value in words.items():
        group, _, name = key.partition(".")
        if group not in OPTIONS or name in REPLICATES:
            raise refuse(key, value, "other settings of intervention and estimator")
        if name:
            given[group][name] = value
    intervention = _made("intervention", words.get("intervention"), given["intervention"])
    scored = "estimator" in words or given["estimator"]
    if scored:
        _made("estimator", words.get("estimator"), given["estimator"])
    edit = intervention.edit(str(words.get("estimator", "")))
    if isinstance(edit.by, Scorer) and not scored:
        raise refuse("estimator", None, f"one of {', '.join(ESTIMATORS)}")
    other = {f"intervention.{name}": value for name, value in given["intervention"].items()
             if name not in IN_EDIT}  # fmt: skip
    return StudyArm(edit, other | {f"estimator.{k}": v for k, v in given["estimator"].items()})


def _made(group: str, name: Any, settings: Mapping[str, Any]) -> Any:
    """Returns the settings of an option of a group, checked.

    Raises ConfigError.
    """
    options = OPTIONS[group]
    if name not in options:
        raise refuse(group, name, f"one of {', '.join(options)}{nearest(str(name), options)}")
    names = {item.name for item in fields(options[name])} - {"name"} - REPLICATES
    for key, value in settings.items():
        if key not in names:
            accepted = ", ".join(f"{group}.{name_of}" for name_of in sorted(names))
            raise refuse(f"{group}.{key}", value, f"{accepted}{nearest(key, names)}")
    return options[name](**settings)
