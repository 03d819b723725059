"""Packs labelled documents into token rows: byte-level BPE, packing by class, the folder.

Everything here is a pure function of its arguments: it does not depend on worker counts, hash seeds
or the platform, so equal documents give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mda import store
from mda.data.corpus_folder import write_corpus
from mda.data.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL_TOKENS = ("<|endoftext|>", "<|padding|>")  # ids 0 and 1
TRAINING_CHARS = 6_000_000  # of text for the tokenizer, all classes together
CHARS_A_TOKEN = 4  # no tokenizer of this size gets more; small corpora train on less text
_CHUNK = 64


def apportion(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Splits `total` by shares, which need not sum to 1; sorted by label.

    Each label gets its whole part; the rest goes to the largest remainders, ties to the label that
    sorts first. Raises DataError where a share is negative or none is positive.
    """
    if not shares or min(shares.values()) < 0 or sum(shares.values()) <= 0:
        raise DataError(f"shares {dict(shares)}: accepted are shares >= 0 with a positive sum")
    whole = sum(shares.values())
    exact = {label: total * shares[label] / whole for label in sorted(shares)}
    parts = {label: int(value) for label, value in exact.items()}
    by_remainder = sorted(exact, key=lambda label: (parts[label] - exact[label], label))
    for label in by_remainder[: total - sum(parts.values())]:
        parts[label] += 1
    return parts


def refuse(
    shares: Mapping[str, float], *, vocab_size: int, n_sequences: int, held_out: int
) -> None:
    """Raises DataError, before any work, for settings that no text can meet."""
    apportion(n_sequences, shares)
    if not 0 <= held_out < n_sequences:
        raise DataError(f"held_out {held_out}: expected 0 to below n_sequences={n_sequences}")
    low = 256 + len(SPECIAL_TOKENS)
    if vocab_size < low:
        raise DataError(f"vocab_size {vocab_size}: a byte-level tokenizer needs {low} or more")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Returns a byte-level BPE of exactly `vocab_size` tokens, the two special ones first.

    Raises DataError where the text has too few distinct pairs for that many tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (size := tokenizer.get_vocab_size()) != vocab_size:
        raise DataError(f"vocab_size {vocab_size}: the text only has pairs for {size} tokens")
    return tokenizer


def excerpt(texts: Iterable[str], chars: int) -> Iterator[str]:
    """Yields the first `chars` characters of a run of texts."""
    for text in texts:
        if chars <= 0:
            return
        yield text[:chars]
        chars -= len(text)


def pack(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    seq_len: int,
    n_rows: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> np.ndarray:
    """Returns the first rows of the texts laid end to end, [<= n_rows, seq_len + 1].

    Ids are uint16 or uint32. An end-of-text token precedes each text; only what follows the last
    full row is lost. Reads no more texts than needed. `advance` is called with the number of new
    rows.
    """
    width = seq_len + 1
    tokens: list[int] = []
    told = 0
    source = iter(texts)
    while len(tokens) < n_rows * width and (chunk := list(islice(source, _CHUNK))):
        for encoding in tokenizer.encode_batch(chunk, add_special_tokens=False):
            tokens.append(0)
            tokens += encoding.ids
        rows = min(len(tokens) // width, n_rows)
        advance(rows - told)
        told = rows
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32
    return np.array(tokens[: told * width], dtype=dtype).reshape(told, width)


def assemble(
    texts: Mapping[str, Callable[[], Iterable[str]]],
    shares: Mapping[str, float],
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    n_sequences: int,
    held_out: int,
    seed: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns rows of all classes in seeded random order: tokens, labels and held-out row ids.

    Each class is packed by itself, so a row has one label (an index into the sorted classes), and
    its last rows are held out, in proportion to its share. Raises DataError for a class whose
    text runs out.
    """
    wanted, kept_out = apportion(n_sequences, shares), apportion(held_out, shares)
    rows, labels, out = [], [], []
    for index, (label, n) in enumerate(wanted.items()):
        packed = pack(texts[label](), tokenizer, seq_len, n, advance)
        if len(packed) < n:
            raise DataError(
                f"class {label!r}: there is text for {len(packed):,} sequences of {seq_len} tokens "
                f"and its share asks for {n:,}; lower n_sequences or the share, or add packages"
            )
        rows.append(packed)
        labels.append(np.full(n, index, dtype=np.int16))
        out.append(np.arange(n) >= n - kept_out[label])
    order = list(range(n_sequences))
    Random(seed).shuffle(order)  # Python's, because NumPy's streams may change between versions
    held = np.flatnonzero(np.concatenate(out)[order])
    return np.concatenate(rows)[order], np.concatenate(labels)[order], held.astype(np.int64)


def content_sha256(tokens: np.ndarray, labels: np.ndarray, tokenizer: Tokenizer) -> str:
    """Returns the SHA-256 of tokens, labels and tokenizer merges, whatever the byte order."""
    model = json.loads(tokenizer.to_str())["model"]
    digest = sha256(json.dumps([model["vocab"], model["merges"]], sort_keys=True).encode())
    digest.update(tokens.astype("<u4").tobytes())
    digest.update(labels.astype("<i2").tobytes())
    return digest.hexdigest()


def progress() -> Progress:
    """Returns progress bars with elapsed and remaining time, shown only on a terminal."""
    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())


def build(
    out: Path,
    texts: Mapping[str, Callable[[], Iterable[str]]],
    shares: Mapping[str, float],
    *,
    vocab_size: int,
    seq_len: int,
    n_sequences: int,
    held_out: int,
    seed: int,
    about: Mapping[str, object],
    verify: Callable[[str], None] = lambda found: None,
) -> None:
    """Trains the tokenizer, pack every class, writes the corpus folder.

    `texts` gives for each class of `shares` a function that starts its run of texts. `about` is
    added to corpus.json. `verify` is given the content hash before anything is written. Raises
    DataError for settings that the text cannot meet.
    """
    refuse(shares, vocab_size=vocab_size, n_sequences=n_sequences, held_out=held_out)
    with progress() as bars:
        task = bars.add_task("training the tokenizer", total=None)
        length = min(TRAINING_CHARS, n_sequences * (seq_len + 1) * CHARS_A_TOKEN)
        sample = (
            text
            for label, chars in apportion(length, shares).items()
            for text in excerpt(texts[label](), chars)
        )
        tokenizer = train_tokenizer(sample, vocab_size)
        bars.update(task, total=1, completed=1)
        task = bars.add_task("packing sequences", total=n_sequences)
        tokens, labels, kept_out = assemble(
            texts,
            shares,
            tokenizer,
            seq_len=seq_len,
            n_sequences=n_sequences,
            held_out=held_out,
            seed=seed,
            advance=partial(bars.advance, task),
        )
    sha256 = content_sha256(tokens, labels, tokenizer)
    verify(sha256)
    store.write_npy(out / "tokens.npy", tokens)
    write_corpus(
        out,
        counts=np.bincount(tokens.ravel(), minlength=vocab_size).astype(np.int64),
        held_out=kept_out,
        labels=labels,
        label_names=sorted(shares),
        special_ids=range(len(SPECIAL_TOKENS)),
        tokenizer=tokenizer,
        about={"sha256": sha256, **about},
    )
