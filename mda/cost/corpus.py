"""The build time of a corpus, from a small part of it that is built and thrown away."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import islice

from mda.benchmark import RELIABLE, Clock, Load
from mda.data import embedded, synthetic
from mda.data.documents import documents_of, source_files
from mda.data.packing import CHARS_A_TOKEN, TRAINING_CHARS, pack, train_tokenizer
from mda.schema import DataConfig, EmbeddedConfig, SyntheticConfig

SHARE = 40  # one of so many source files is read
TEXTS = 200  # generated texts that are packed
TRAIN_SHARE = 10  # the tokenizer is trained on one character of so many
START_S = 3.0  # a worker imports what it needs


def corpus_seconds(config: DataConfig) -> float | None:
    """Returns seconds on this machine when idle; None for data from elsewhere."""
    seconds = SECONDS.get(config.name)
    return seconds(config) if seconds else None


def _embedded(config: EmbeddedConfig) -> float:
    files = [file for package in embedded.PACKAGES for file in source_files(package)]
    part = files[SHARE // 2 :: SHARE]
    documents_of(part[0])  # docutils loads its writers
    documents, seconds = _timed(lambda: [one for file in part for one in documents_of(file)])
    workers = min(os.cpu_count() or 1, 8)
    texts = [document.text for document in documents]
    texts += list(islice(synthetic.texts("repeat", 0), len(texts) // 2))
    reading = seconds * len(files) / len(part) / workers
    return START_S + reading + _packing(config, texts, config.n_sequences)


def _synthetic(config: SyntheticConfig) -> float:
    kinds = [name for name, weight in asdict(config.templates).items() if weight]
    made = [islice(synthetic.texts(kind, 0), TEXTS // len(kinds)) for kind in kinds]
    texts, seconds = _timed(lambda: [text for source in made for text in source])
    chars = config.n_sequences * config.seq_len * 2.5  # two passes; a token has 1 to 4 characters
    each = seconds / sum(map(len, texts))
    return 2 * chars * each + _packing(config, texts, config.n_sequences)


def _packing(config: DataConfig, texts: list[str], n_sequences: int) -> float:
    """Trains the tokenizer and packs, each on a little of the text."""
    chars = min(TRAINING_CHARS, n_sequences * (config.seq_len + 1) * CHARS_A_TOKEN)
    some, left = [], chars // TRAIN_SHARE
    for text in texts:
        some.append(text[:left])
        left -= len(some[-1])
    tokenizer, training = _timed(lambda: train_tokenizer(some, config.vocab_size))
    seconds = training * chars / sum(map(len, some))
    rows, packing = _timed(lambda: pack(texts, tokenizer, config.seq_len, n_sequences))
    return seconds + packing * n_sequences / max(1, len(rows))


def _timed(work: Callable) -> tuple:
    """Returns the result of some work, and its seconds: CPU time if others use the cores."""
    load = Load()
    with (clock := Clock()):
        found = work()
    return found, clock.cpu_s if (load.others() or 0.0) > RELIABLE else clock.wall_s


SECONDS: Mapping[str, Callable] = {"embedded": _embedded, "synthetic": _synthetic}
