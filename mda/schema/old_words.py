"""Reading edits and studies written before edits were data, and before runs kept their study.

Registered studies and kept tables use them and stay unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from decimal import Decimal
from typing import Any

from mda.schema.attribution import AugmentConfig, InterventionConfig, RemoveConfig
from mda.schema.edit import (
    RANDOM,
    Band,
    Bottom,
    Count,
    Edit,
    Match,
    Random,
    Rows,
    Scorer,
    Share,
    Top,
)

WORDS = (
    "intervention", "mode", "estimator", "select", "amount", "label", "match", "match_targeted",
)  # fmt: skip
"""What an arm of an old study was written in, each of them a text."""


METRICS = {
    "mechanism": "strongest",
    "mechanism_onset_step": "strongest_onset_step",
    "mechanism_onset_tokens": "strongest_onset_tokens",
}
"""What kept tables and studies call the largest value over all heads, and what it is called now."""

GROUPS = {"behaviour": "capabilities"}
"""Groups of settings, stages and metrics that had another name."""

FILES = {"plan.csv": "edit.csv"}
"""Files of a run that had another name."""

NO_SETTINGS = {"emergence": ("onset",)}
"""Group -> settings that saved runs have and that no longer exist: each metric has a threshold."""

DATED = frozenset(
    ("82022c20551b907e", "709341fbbed795d2", "9f6c9c8e1b67d864", "6e26457d0d68e327",
     "001ac43974ff0334", "3e8a9ee951033087")
)  # fmt: skip
"""Hashes of the studies whose runs kept no study: they are registered by the date of their file."""

LATER_METRICS = frozenset(
    ("unit/curve", "heads/log_ratio", "icl_score/curve", "icl_score/real", "icl_score/real/curve",
     "icl_score/generated", "icl_score/generated/curve")
)  # fmt: skip
"""Metrics that are younger than the studies of `DATED`, whose tables stay as they were."""


def verdict_now(kept: Mapping[str, str]) -> str:
    """Returns what the verdict in a line of a kept `verdicts.csv` is called now."""
    sized = float(kept["margin"] or 0) > 0 or float(kept["expected"] or 0) > 0
    refuted = "ruled out at this size" if kept["direction"] != "none" and sized else "refuted"
    words = {"replicated": "supported", "not replicated": refuted}
    return words.get(kept["verdict"], kept["verdict"])


def metric_now(name: str) -> str:
    """Returns what a metric, or a column of a curve, is called now."""
    group, slash, rest = METRICS.get(name, name).partition("/")
    return GROUPS.get(group, group) + slash + rest


def setting_now(key: str) -> str:
    """Returns what a setting, or an override `key=value`, is called now."""
    group, dot, rest = key.partition(".")
    return GROUPS.get(group, group) + dot + rest


def groups_now(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a mapping by group, such as a saved configuration, with the names of today."""
    return {GROUPS.get(group, group): value for group, value in content.items()}


def read_words(words: Mapping[str, str]) -> Edit:
    """Returns the edit of an old study's arm. Raises ValueError or KeyError for unknown words."""
    given = dict.fromkeys(WORDS, "") | dict(words)
    mode, _, spans = given["mode"].partition(" ")
    estimator, select = given["estimator"], given["select"]
    if bool(given["match"]) != bool(given["match_targeted"]):
        raise ValueError("match and match_targeted must be given together")
    match = Match(given["match"], given["match_targeted"] == "allow") if given["match"] else None
    by: Scorer | Rows | None = Scorer(estimator) if estimator not in ("", RANDOM) else None
    if mode == "insert":  # rows had the name of what they are in place of an estimator's
        by = Rows(estimator, stands_for=estimator)
    return Edit(
        given["intervention"],
        mode,
        spans,
        by,
        choose := _choice(select),
        None if isinstance(choose, Band) else _amount(given["amount"]),
        given["label"] or None,
        match,
    )


def read_summary(intervention: Mapping[str, Any], estimator: Mapping[str, Any]) -> Edit:
    """Returns the edit of a run whose summary has settings alone. Raises KeyError or ValueError."""
    kinds: dict[str, type[InterventionConfig]] = {"remove": RemoveConfig, "augment": AugmentConfig}
    if intervention["name"] == "control":
        return Edit("control")
    kind = kinds[intervention["name"]]
    names = {item.name for item in fields(kind)}
    settings = {key: value for key, value in intervention.items() if key in names}
    settings.setdefault("mode", intervention.get("action"))
    edit = kind(**settings).edit(str(estimator.get("name") or ""))
    if isinstance(edit.by, Rows):
        by, n = replace(edit.by, stands_for=edit.by.name), int(intervention["n"])
        return replace(edit, by=by, amount=Count(n, of="rows"))
    return edit


def _choice(select: str) -> Top | Bottom | Band | Random | None:
    if select.startswith("band "):
        low, high = select.removeprefix("band ").split("-")
        return Band(float(low), float(high))
    return {"": None, "top": Top(), "bottom": Bottom(), "random": Random()}[select]


def _amount(text: str) -> Share | Count | None:
    """Returns the amount of `10 %`, `500 samples`, `1 % of tokens within 10 % of samples`, ..."""
    if not text:
        return None
    what, _, inside = text.partition(" within ")
    within = _percent(inside) if inside else None
    number, unit, *of = what.split()
    if unit == "%":
        return Share(_percent(number), of[-1] if of else "samples", within)
    return Count(int(number), unit, within)


def _percent(text: str) -> float:
    return float(Decimal(text.split()[0]) / 100)
