"""Documents generated from seeded templates, with planted and labelled repetition.

Every template plants a small cast of random strings and uses each of them several times, so a model
that copies from its own context predicts the document well and one that does not cannot. A planted
string is a run of unpredictable tokens without separators, so that the pattern "A B ... A -> B"
pays between neighbouring tokens; a separator would come between them and predict nothing. `repeat`
is repetition without any meaning. `salad` is the counterpart of all of them: words drawn
independently, nothing to copy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import NamedTuple

from mda.data import packing
from mda.data.errors import DataError
from mda.schema import SyntheticConfig
from mda.types import Document

PREFIX = "generated_"
FORMAT = 1  # goes up whenever a template's text changes, so that no store serves the old text
_WORDS = re.findall(
    r"\w+",
    """
    add address array block branch bridge buffer center check client column copy count cover
    create delete depth edge engine entry error event field filter find first garden graph
    green group head house index input item label last length letter level light line list load
    market matrix memory message metal method model name node north number object option order
    output paper path point port process query range rate read record red remove report request
    response result return river row scale search section self server shape sheet signal size
    source south state status step stone string system table target test text thread time title
    total type user value vector water weight white width window write
    """,
)
_ONSETS = [*"bcdfghjklmnpqrstvwxz", "br", "cl", "dr", "fl", "gr", "kr", "pl", "st", "tr", "zw"]
_VOWELS = [*"aeiou", "ae", "io", "ou", "ee", "y"]
_CODAS = ["", *"nrstxkm", "ld", "rn", "st", "ck"]
_LOWER = "abcdefghijklmnopqrstuvwxyz"
_DIGITS = "0123456789"
_ALPHABETS = (
    _DIGITS + "abcdef",
    _LOWER,
    _LOWER.upper(),
    _LOWER + _DIGITS,
    _LOWER + _LOWER.upper() + _DIGITS,
)
_SIGNS = "#$%&*+-/<=>@^~!?()[]{}:;_.,|"


class Planted(NamedTuple):
    """A generated text and the strings planted in it, each of which it holds at least twice."""

    text: str
    planted: tuple[str, ...]


def syllables(rng: Random, low: int, high: int) -> str:
    """Returns a random word of `low` to `high` syllables, with about 3,000 kinds of syllable."""
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        for _ in range(rng.randint(low, high))
    )


def fragment(rng: Random) -> str:
    """Returns a piece of a word, a syllable, or up to three random letters and digits."""
    kind = rng.randrange(5)
    if kind < 2:
        return rng.choice(_WORDS)[: rng.randint(2, 5)]
    if kind == 2:
        return syllables(rng, 1, 1)
    if kind == 3:
        return rng.choice(_WORDS)[:4].capitalize()
    return "".join(rng.choice(_ALPHABETS[-1]) for _ in range(rng.randint(1, 3)))


def code(rng: Random) -> str:
    """Returns six to fourteen characters of one alphabet: hex digits, letters, a mixture."""
    alphabet = rng.choice(_ALPHABETS)
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(6, 14)))


def name(rng: Random) -> str:
    """Returns a code or a few fragments in one word.

    It has letters and digits only, which no format escapes.
    """
    if rng.randrange(2):
        return code(rng)
    return "".join(fragment(rng) for _ in range(rng.randint(3, 6)))


def _cast(rng: Random, low: int, high: int) -> list[str]:
    """Returns `low` to `high` distinct random names, none of them part of another."""
    names: list[str] = []
    for _ in range(rng.randint(low, high)):
        new = name(rng)
        while any(new in old or old in new for old in names):
            new = name(rng)
        names.append(new)
    return names


def _uses(rng: Random, cast: list[str], n: int) -> list[str]:
    """Returns `n` draws from the cast in random order, each member at least twice.

    `n` is at least 2 * members.
    """
    draws = cast * 2 + [rng.choice(cast) for _ in range(n - 2 * len(cast))]
    rng.shuffle(draws)
    return draws


def xml(rng: Random) -> Planted:
    """Returns records under common tag names, attributes and contents drawn from the cast."""
    row, attribute = rng.sample(_WORDS, 2)
    cast = _cast(rng, 2, 4)
    uses = iter(_uses(rng, cast, 2 * rng.randint(6, 14)))
    lines = [f'  <{row} {attribute}="{use}">{next(uses)}</{row}>' for use in uses]
    return Planted("\n".join([f"<{row}s>", *lines, f"</{row}s>\n"]), tuple(cast))


def latex(rng: Random) -> Planted:
    """Returns a tabular whose cells are drawn from the cast."""
    columns = rng.randint(2, 4)
    cast = _cast(rng, 2, 4)
    uses = _uses(rng, cast, columns * rng.randint(5, 10))
    rows = [" & ".join(uses[i : i + columns]) + r" \\" for i in range(0, len(uses), columns)]
    begin = [r"\begin{tabular}{" + "l" * columns + "}", r"\hline"]
    return Planted("\n".join([*begin, *rows, "\\end{tabular}\n"]), tuple(cast))


def records(rng: Random) -> Planted:
    """Returns JSON objects with the same keys, their values drawn from the cast."""
    keys = rng.sample(_WORDS, 2)
    cast = _cast(rng, 2, 4)
    uses = _uses(rng, cast, 2 * rng.randint(6, 14))
    rows = [
        json.dumps(dict(zip(keys, uses[i : i + 2], strict=True))) for i in range(0, len(uses), 2)
    ]
    return Planted("[\n  " + ",\n  ".join(rows) + "\n]\n", tuple(cast))


def log(rng: Random) -> Planted:
    """Returns log lines: a level, a component and a request from the cast, one of two messages."""
    cast = _cast(rng, 2, 4)
    messages = [" ".join(rng.sample(_WORDS, 3)) for _ in range(2)]
    uses = iter(_uses(rng, cast, 2 * rng.randint(6, 12)))
    lines = [
        f"{rng.choice(('INFO', 'WARN'))} {use} {rng.choice(messages)} id={next(uses)}"
        for use in uses
    ]
    return Planted("\n".join([*lines, ""]), tuple(cast))


def repeat(rng: Random) -> Planted:
    """Returns a block of fragments and signs, repeated without meaning: "meaningless repeats"."""
    n = rng.randint(4, 24)
    pieces = [fragment(rng) for _ in range(n)]
    for i in rng.sample(range(n), n // 5):
        pieces[i] = rng.choice(_SIGNS)
    for i in rng.sample(range(n), n // 8):
        pieces[i] = " " + pieces[i]
    block = "".join(pieces) + rng.choice(("", "", " ", "\n"))
    return Planted(block * max(2, rng.randint(30, 90) // n) + "\n", (block,))


def salad(rng: Random) -> Planted:
    """Returns words drawn independently: nothing is planted, nothing to copy."""
    return Planted(" ".join(syllables(rng, 1, 3) for _ in range(rng.randint(60, 200))) + ".\n", ())


TEMPLATES: dict[str, Callable[[Random], Planted]] = {
    "xml": xml,
    "latex": latex,
    "json": records,
    "log": log,
    "repeat": repeat,
    "salad": salad,
}


def generate(template: str, seed: int) -> Iterator[Document]:
    """Yields an endless run of one template's documents, labelled `generated_<template>`.

    Every template has its own generator, so adding one leaves the others' documents as they
    were. Raises DataError on a template that does not exist.
    """
    if template not in TEMPLATES:
        raise DataError(f"no template {template!r}; there are {', '.join(TEMPLATES)}")
    rng = Random(f"{seed}:{template}")
    while True:
        yield Document(PREFIX + template, TEMPLATES[template](rng).text, f"template:{template}")


def texts(template: str, seed: int) -> Iterator[str]:
    """Yields the texts of `generate`."""
    return (document.text for document in generate(template, seed))


def inputs(config: SyntheticConfig, hash_file: Callable[[Path], str]) -> dict[str, object]:
    """Returns the inputs beside the settings: the versions of the tokenizer and the templates."""
    return {"versions": {"tokenizers": version("tokenizers")}, "format": FORMAT}


def build_from_config(out: Path, config: SyntheticConfig, downloads: Path) -> None:
    """Builds the corpus folder with the settings of `data=synthetic`."""
    build_synthetic(
        out,
        weights=asdict(config.templates),
        vocab_size=config.vocab_size,
        seq_len=config.seq_len,
        n_sequences=config.n_sequences,
        held_out=config.held_out,
        seed=config.seed,
    )


def build_synthetic(
    out: Path,
    *,
    weights: Mapping[str, float],
    vocab_size: int,
    seq_len: int,
    n_sequences: int,
    held_out: int,
    seed: int,
) -> None:
    """Builds a corpus folder of generated documents only, in seconds.

    `weights` gives the share of the sequences of each template, relative to the others; those of
    weight 0 are left out. `n_sequences` includes the held-out ones. Equal arguments give equal
    bytes.
    """
    for template in weights:
        next(generate(template, seed))
    shares = {PREFIX + name: weight for name, weight in weights.items() if weight != 0}
    sources = {label: partial(texts, label.removeprefix(PREFIX), seed) for label in shares}
    packing.build(
        out,
        sources,
        shares,
        vocab_size=vocab_size,
        seq_len=seq_len,
        n_sequences=n_sequences,
        held_out=held_out,
        seed=seed,
        about={},
    )
