"""A setting: a dataclass field with its meaning and limits, checked when it is set."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, ClassVar


class ConfigError(ValueError):
    """An error that the user can fix: one sentence with key, value and what is accepted."""

    exit_code: ClassVar[int] = 2  # of a program that it ends

    def __str__(self) -> str:
        return printable(super().__str__())  # values and labels may be anybody's


class Unavailable(ConfigError):
    """A failure of a server that may pass: the same command may succeed later."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


def printable(text: str) -> str:
    """Returns a text without terminal control characters."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def refuse(key: str, value: object, accepted: str) -> ConfigError:
    """Returns the error for `key=value`, to be raised by the caller."""
    return ConfigError(f"{key}={show(value)} is invalid; expected {accepted}")


def show(value: object) -> str:
    """Returns a value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(show(item) for item in value)}]"
    return str(value)


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns ` (did you mean X?)` for the known word closest to `word`, or an empty text."""
    match = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {match[0]}?)" if match else ""


def setting(default: Any, meaning: str, **limits: Any) -> Any:
    """Returns a field of a group.

    `limits`: low, high (inclusive), above, below, one_of, accepts, enters.

    A list is copied for each object, and limits hold for its items. `accepts` states in words what
    type and limits cannot express. With `enters=False` the field is left out of `entering`.
    """
    metadata = {"meaning": meaning, **limits}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def entering(group: Group) -> dict[str, Any]:
    """Returns the settings of a group that its results, and so their key, depend on."""
    used = (item.name for item in fields(group) if item.metadata.get("enters", True))
    return {name: getattr(group, name) for name in used}


def default_of(item: Field[Any]) -> Any:
    """Returns a field's default value."""
    return item.default if item.default_factory is MISSING else item.default_factory()


def accepted(item: Field[Any]) -> str:
    """Returns what a field accepts, in words, from its type and limits."""
    if said := item.metadata.get("accepts"):
        return said
    kind = str(item.type)
    nullable = "None" in kind
    names = {"int": "an integer", "float": "a number", "bool": "true or false", "str": "a text"}
    base = kind.replace(" | None", "")
    words = names.get(base, base)
    if match := re.fullmatch(r"list\[(\w+)\]", base):
        words = f"a list of {names[match[1]].split()[-1]}s"
    limits = item.metadata
    if "one_of" in limits:
        choices = ", ".join(limits["one_of"])
        words = f"a list of {choices}" if base.startswith("list") else f"one of {choices}"
    if "low" in limits and "high" in limits:
        return f"{words} from {limits['low']} to {limits['high']}" + (", or null" * nullable)
    bounds = {"low": "at least", "above": "above", "high": "at most", "below": "below"}
    said = [f"{word} {limits[name]}" for name, word in bounds.items() if name in limits]
    return " ".join([words, " and ".join(said)]).strip() + ", or null" * nullable


@dataclass
class Group:
    """Base of all groups: checks every field against its limits."""

    key: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            for entry in value if isinstance(value, list) else [value]:
                if entry is not None and not _within(entry, item.metadata):
                    raise self._refuse(item.name, self._accepted(item, entry))

    def _accepted(self, item: Field[Any], value: object) -> str:
        return accepted(item) + nearest(str(value), item.metadata.get("one_of", ()))

    def _refuse(self, name: str, accepted: str) -> ConfigError:
        return refuse(f"{self.key}.{name}".lstrip("."), getattr(self, name), accepted)


def _within(value: Any, limits: Any) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return (
        ("one_of" not in limits or value in limits["one_of"])
        and ("low" not in limits or value >= limits["low"])
        and ("above" not in limits or value > limits["above"])
        and ("high" not in limits or value <= limits["high"])
        and ("below" not in limits or value < limits["below"])
    )


def is_range(value: object) -> bool:
    """Returns whether this is [start, end) with 0 <= start < end."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(type(item) is int for item in value)
        and 0 <= value[0] < value[1]
    )
