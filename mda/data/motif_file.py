"""Motif files: the common pattern of high-influence samples, as readable and editable JSON.

A motif is a record that samples repeat: a skeleton of fixed text with slots between. The file's
`skeleton` is a list of texts and slot numbers, so `["<", 0, ">", 1, "</", 2, ">"]` with slot 2 a
repeat of slot 0 is an element of XML.

    identifier  a name of the sample's own: written anew by joining parts of two in `values`
    number      the same of digits only
    span        the same of a whole block of tokens, where nothing but the block is repeated
    word        one of `values`, which several samples share
    repeat      what slot `repeat_of` of the same record holds
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mda import store
from mda.data.errors import DataError

FORMAT = 1
KINDS = ("identifier", "number", "span", "word", "repeat")
FRESH = ("identifier", "number", "span")
"""Kinds of slots whose values are written anew."""


@dataclass(frozen=True)
class Slot:
    """A place of the skeleton with a new value in each record."""

    kind: str
    repeat_of: int | None = None
    distinct: tuple[int, int] = (1, 1)  # different values in a sample, from - to
    values: Mapping[str, int] | None = None  # value -> records that have it, the frequent ones


@dataclass(frozen=True)
class Motif:
    """A record that samples repeat. Ranges hold the middle 80 % of the samples."""

    name: str  # motif_0, and the label of rows made from it
    title: str  # what it is called in words; empty until someone writes it
    skeleton: tuple[str | int, ...]
    slots: tuple[Slot, ...]
    example: str  # one record of a sample, verbatim
    cast: tuple[int, int]  # different identifiers and numbers in a sample, all slots together
    copies: tuple[int, int]  # records in a row of tokens
    samples: int  # of the chosen samples, how many have it
    share: float  # the same as a share
    share_window: float  # of the whole window's samples
    enrichment: float | None  # share / share_window; None where the window has none
    sample_ids: tuple[int, ...]


def write_motifs(path: Path, motifs: tuple[Motif, ...], about: Mapping[str, Any]) -> None:
    """Writes a motif file, a line for each slot and setting; equal motifs give equal bytes.

    `about` describes what it was made from.
    """
    content = {"format": FORMAT, **about, "motifs": [asdict(one) for one in motifs]}
    with store.replacing(path) as file:
        file.write(_readable(content) + "\n")


def read_motifs(path: Path) -> tuple[tuple[Motif, ...], Any]:
    """Returns the motifs of a file, and the file's whole content.

    Raises DataError for a file that is not a motif file.
    """
    try:
        content = store.read_json(path)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}; expected {FORMAT}")
        motifs = tuple(_motif(one) for one in content["motifs"])
        if not motifs:
            raise ValueError("it has no motifs")
        if len({one.name for one in motifs}) < len(motifs):
            raise ValueError("two motifs have the same name")
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"synthesis.motifs={path} is not a motif file: {reason}") from error
    return motifs, content


def _readable(content: Any, indent: str = "") -> str:
    """Returns JSON with a line for each motif, slot and list of values."""
    deeper = indent + "  "
    if isinstance(content, Mapping) and len(indent) < 8:
        lines = [f"{json.dumps(key)}: {_readable(value, deeper)}" for key, value in content.items()]
        return "{\n" + ",\n".join(deeper + line for line in lines) + f"\n{indent}}}"
    if isinstance(content, list | tuple) and content and isinstance(content[0], Mapping):
        return "[\n" + ",\n".join(deeper + _readable(x, deeper) for x in content) + f"\n{indent}]"
    return json.dumps(content, ensure_ascii=False, allow_nan=False)


def _motif(content: Mapping[str, Any]) -> Motif:
    name, content = content["name"], {"title": "", **content}
    if wrong := sorted({item.name for item in fields(Motif)} ^ set(content)):
        raise ValueError(f"{name}: missing or unknown: {', '.join(wrong)}")
    slots = tuple(Slot(**{**one, "distinct": _range(name, one)}) for one in content["slots"])
    skeleton = tuple(content["skeleton"])
    places = [part for part in skeleton if isinstance(part, int)]
    if sorted(places) != list(range(len(slots))) or not slots:
        raise ValueError(f"{name}: the skeleton must name each of its {len(slots)} slots once")
    origins = [number for number, slot in enumerate(slots) if slot.kind != "repeat"]
    for number, slot in enumerate(slots):
        if slot.kind not in KINDS:
            raise ValueError(f"{name}: kind {slot.kind!r}; expected {', '.join(KINDS)}")
        if (slot.kind == "repeat") != (slot.repeat_of in origins):
            raise ValueError(f"{name}: slot {number} must repeat one that is no repeat itself")
        if slot.kind != "repeat" and not all(slot.values or [""]):
            raise ValueError(f"{name}: slot {number} needs values that are not empty")
    ranges = {key: _range(name, content, key) for key in ("cast", "copies")}
    lists = {"skeleton": skeleton, "slots": slots, "sample_ids": tuple(content["sample_ids"])}
    return Motif(**{**content, **lists, **ranges})


def _range(name: str, content: Mapping[str, Any], key: str = "distinct") -> tuple[int, int]:
    low, high = content.get(key, (1, 1))
    if not 1 <= low <= high:
        raise ValueError(f"{name}: {key} is [{low}, {high}]; expected [low, high] from 1 on")
    return int(low), int(high)
