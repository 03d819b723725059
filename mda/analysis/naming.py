"""A language model gives motifs a title and more words for their slots. Nobody is asked by default.

It sees finished examples, then the motif's own record or a slot's words, and continues the text.
Decoding is greedy, so that one model on one machine always answers the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from mda.data.errors import DataError
from mda.data.motif_file import Motif, Slot

Ask = Callable[[str, int], str]
"""A text and a number of tokens -> how the model continues it."""

TITLE_TOKENS, LONGEST_TITLE, RECORD = 12, 60, 300  # tokens; letters of the title and of a record
WORDS_TOKENS, WORDS_SHOWN = 60, 10
TITLES = """\
Text: The cat sat. The dog ran. The bird flew. The fish swam.
Title: short English sentences

Text: 2021-03-04;17.5;ok 2021-03-05;18.1;ok 2021-03-06;16.9;bad
Title: rows of CSV

Text: def add(a, b): return a + b def sub(a, b): return a - b
Title: Python functions

Text: {record}
Title:"""
WORDS = """\
Words: red, green, blue, yellow, black, white, orange, purple
Words: Paris, London, Rome, Berlin, Madrid, Vienna, Lisbon, Prague
Words: {words},"""


def language_model(name: str, key: str = "motifs.namer") -> Ask:
    """Greedy continuations by a causal language model of transformers, a folder or of the hub.

    Raises DataError where there is none of that name.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model: Any = AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        accepted = "a folder or the id of a repository of the hub with a causal language model"
        raise DataError(f"{key}={name}: {reason}; accepted: {accepted}") from error
    model.eval()
    end = model.generation_config.eos_token_id

    def ask(text: str, n_tokens: int) -> str:
        given = tokenizer(text, return_tensors="pt")
        settings = GenerationConfig(
            max_new_tokens=n_tokens, do_sample=False, eos_token_id=end, pad_token_id=0
        )
        with torch.no_grad():
            answer = model.generate(**given, generation_config=settings)[0]
        new = answer[given["input_ids"].shape[1] :]
        return tokenizer.decode(new, skip_special_tokens=True)

    return ask


def named(motif: Motif, ask: Ask) -> Motif:
    """The motif with a title, and with more words in its slots."""
    record = " ".join((motif.example * motif.copies[0]).split())[:RECORD]
    answer = ask(TITLES.format(record=record), TITLE_TOKENS).strip()
    title = " ".join(answer.partition("\n")[0].split())[:LONGEST_TITLE]
    return replace(motif, title=title, slots=tuple(widened(slot, ask) for slot in motif.slots))


def widened(slot: Slot, ask: Ask) -> Slot:
    """The slot with words that the model adds to its own, each counted once.

    Slots of numbers, of blocks of tokens and of repeats stay as they are.
    """
    known = slot.values or {}
    if slot.kind not in ("word", "identifier") or not known:
        return slot
    shown = ", ".join(list(known)[:WORDS_SHOWN])
    line = ask(WORDS.format(words=shown), WORDS_TOKENS).partition("\n")[0]
    *whole, _ = line.split(",")  # the last may have been cut short
    words = dict.fromkeys(word.strip() for word in whole)
    new = [word for word in words if re.fullmatch(r"\w+", word) and word not in known]
    return replace(slot, values={**known, **dict.fromkeys(new, 1)})
