"""Every key of the configuration, and the error for an unknown key."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import Field, fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from mda.schema.old_words import setting_now
from mda.schema.root import OPTIONS, Config
from mda.schema.setting import accepted


@cache
def settings() -> dict[str, list[tuple[str, Field[Any]]]]:
    """Returns for each full key the fields that define it, by option ("" for all).

    `data.seq_len` is defined for each option of data, `data.path` for `data=tokens` alone. A name
    that the user gives is a star: `study.claims.*.margin`.
    """
    places: dict[str, list[tuple[str, Field[Any]]]] = {}

    def walk(cls: type, prefix: str, option: str) -> None:
        hints = get_type_hints(cls)
        for item in fields(cls):
            key = prefix + item.name
            places.setdefault(key, []).append((option, item))
            kind = hints[item.name]
            if get_origin(kind) is dict and is_dataclass(get_args(kind)[1]):
                walk(get_args(kind)[1], f"{key}.*.", option)
            if isinstance(kind, type) and is_dataclass(kind):
                for name, below in OPTIONS.get(key, {option: kind}).items():
                    walk(below, f"{key}.", name)

    walk(Config, "", "")
    return places


def accepted_at(key: str, missing: bool = False) -> str:
    """Returns what `key` accepts, in words; of the option to choose, where it is `missing`."""
    places = settings().get(_starred(key.partition("[")[0]), [])
    items = sorted((item for _, item in places), key=lambda item: missing and item.default != "???")
    return accepted(items[0]) if items else "another value"


def unknown_key(key: str, groups: Sequence[str], chosen: str | None = None) -> str:
    """Returns the error for a key that does not exist, at all or with the chosen option.

    `chosen` is the name of the class that lacks the key, if known.
    """
    if (now := setting_now(key)) != key:
        return f"{key} is called {now} now"
    known = settings()
    given, key = key, _starred(key)
    if key.partition(".")[0] == "hydra":
        return f"unknown setting of Hydra {key}; expected what --cfg hydra shows"
    parent, _, tail = key.rpartition(".")
    if key in known:
        group = key.partition(".")[0]
        owners = " or ".join(f"{group}={option}" for option, _ in known[key] if option)
        if not owners:
            return f"{key} holds no settings of its own; expected {accepted_at(key)}"
        return f"{key} is a setting of {owners}; choose that option or leave the key out"
    options = OPTIONS.get(parent, {})
    only = next((name for name, cls in options.items() if cls.__name__ == chosen), None)
    siblings = {
        name.rpartition(".")[2]: name
        for name, places in known.items()
        if name.rpartition(".")[0] == parent
        and (only is None or any(option == only for option, _ in places))
    }
    if not siblings:
        return unknown_key(parent, groups)
    if not parent:
        siblings |= {name: name for name in groups}
    close = _closest(tail, siblings, 0.6)
    if close is None:
        tails = {name.rpartition(".")[2]: name for name in reversed(known)}
        close = _closest(tail, tails, 0.75)
    meant = f" (did you mean {close}?)" if close else ""
    inside = f"in {parent}" if parent else "at the top"
    return f"unknown setting {given}{meant}; expected {inside}: {', '.join(sorted(siblings))}"


def _starred(key: str) -> str:
    """Returns `key` with the user's own names replaced by stars."""
    for name in settings():
        group, star, _ = name.partition(".*.")
        if star and key.startswith(f"{group}."):
            rest = key[len(group) + 1 :].partition(".")[2]
            return f"{group}.*.{rest}" if rest else group
    return key


def _closest(word: str, known: dict[str, str], cutoff: float) -> str | None:
    match = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return known[match[0]] if match else None
