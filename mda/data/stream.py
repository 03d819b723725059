"""An ordered token stream: the samples of a step are a pure function of corpus and seed.

A corpus is rows of tokens, wherever they are stored, and a folder that describes them. A run's
stream is a permutation of the rows that are not held out; batch `step` is the slice [step *
batch_size, (step + 1) * batch_size) of it, so resuming and replaying need no state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mda import store
from mda.data.errors import DataError
from mda.data.tokenizer import FILE, decode, opened
from mda.types import Stream

if TYPE_CHECKING:
    import torch


class TokenRows(Protocol):
    """Rows of tokens: an array [rows, T + 1], or an object that is indexed like one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, ids: Any, /) -> np.ndarray:
        """Returns rows [n, T + 1] by an int64 array of n row numbers, in any order."""
        ...


@dataclass(frozen=True)
class Corpus:
    """An opened corpus artifact; `tokens` stay where they are stored."""

    tokens: TokenRows  # uint16 or uint32 [rows, T + 1]
    labels: np.ndarray  # integers [rows], index into label_names
    label_names: tuple[str, ...]
    vocab_size: int
    special_ids: tuple[int, ...]  # never drawn by a probe
    counts: np.ndarray  # int64 [V], how often each token occurs
    tokenizer: Path | None
    held_out: np.ndarray  # int64, sorted sample ids that no stream contains
    fingerprint: str
    extra: np.ndarray | None = None  # rows from outside the corpus; their ids follow its own

    @property
    def seq_len(self) -> int:
        """T: positions that are predicted in each row."""
        return self.tokens.shape[1] - 1

    def rows(self, sample_ids: np.ndarray) -> torch.Tensor:
        """Returns the tokens of samples, int64 [B, T + 1]."""
        import torch  # takes seconds, and comparisons read counts and labels alone

        ids = np.asarray(sample_ids)
        if self.extra is None:
            return torch.from_numpy(self.tokens[ids].astype(np.int64))
        own, n = ids < len(self.tokens), len(self.tokens)
        rows = np.empty((len(ids), self.tokens.shape[1]), dtype=np.int64)
        rows[own], rows[~own] = self.tokens[ids[own]], self.extra[ids[~own] - n]
        return torch.from_numpy(rows)

    def labels_of(self, sample_ids: np.ndarray) -> list[str]:
        """Returns the class label of each sample."""
        return [self.label_names[i] for i in self.labels[np.asarray(sample_ids)]]

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a text, as it is; raises ValueError without a tokenizer."""
        if self.tokenizer is None:
            raise ValueError("the corpus has no tokenizer; expected token ids")
        return opened(self.tokenizer).encode(text, add_special_tokens=False).ids

    def decode(self, token_ids: Sequence[int]) -> list[str]:
        """Returns one string for each token, which join to the text.

        Without a tokenizer, they are the ids.
        """
        if self.tokenizer is None:
            return [f"{token} " for token in token_ids]
        return decode(opened(self.tokenizer), token_ids)


def open_corpus(folder: Path, fingerprint: str, tokens: TokenRows | None = None) -> Corpus:
    """Opens a corpus folder written by one of the builders of this package.

    `tokens` are rows that are stored otherwise; else `tokens.npy` is mapped. Raises DataError for
    a tokenizer that cannot be read.
    """
    about = store.read_json(folder / "corpus.json")
    rows = store.read_npy(folder / "tokens.npy", mmap=True) if tokens is None else tokens
    labels, tokenizer = folder / "labels.npy", folder / FILE
    if tokenizer.exists():
        opened(tokenizer)
    return Corpus(
        tokens=rows,
        labels=store.read_npy(labels, mmap=True)
        if labels.exists()
        else np.broadcast_to(np.int32(0), len(rows)),  # one label, and no memory for it
        label_names=tuple(about["label_names"]),
        vocab_size=about["vocab_size"],
        special_ids=tuple(about["special_ids"]),
        counts=store.read_npy(folder / "counts.npy"),
        tokenizer=tokenizer if tokenizer.exists() else None,
        held_out=store.read_npy(folder / "held_out.npy"),
        fingerprint=fingerprint,
    )


def mixed_seed(*seeds: int) -> int:
    """Returns one 64-bit seed from several; different combinations give different seeds."""
    return int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0])


def stream_order(corpus: Corpus, seed: int | None) -> np.ndarray:
    """Returns the sample id at each position of the stream, int64.

    `seed=None` keeps the order of the corpus.
    """
    kept = np.ones(len(corpus.tokens), dtype=bool)
    kept[corpus.held_out] = False
    ids = np.flatnonzero(kept)
    return ids if seed is None else np.random.default_rng(seed).permutation(ids)


def unedited(order: np.ndarray, batch_size: int, start: int, end: int) -> Stream:
    """Returns the unedited stream of steps [start, end): every sample once, with weight 1.

    Raises DataError where the stream is shorter than that.
    """
    rows = order[start * batch_size : end * batch_size]
    if len(rows) < (end - start) * batch_size:
        raise DataError(
            f"training to step {end:,} needs {end * batch_size:,} sequences, training.batch_size="
            f"{batch_size} at a step; data has {len(order):,} that are not held out"
        )
    return Stream(
        start=start,
        batch_size=batch_size,
        offsets=np.arange(0, len(rows) + 1, batch_size, dtype=np.int64),
        sample_ids=rows.astype(np.int64),
        weights=np.ones(len(rows), dtype=np.float32),
    )


def followed_by(one: Stream, other: Stream) -> Stream:
    """Returns a stream and the one that begins where it ends, as one.

    Raises ValueError for another beginning.
    """
    if one.end != other.start:
        raise ValueError(f"a stream to step {one.end} is not followed by one from {other.start}")
    n = len(one.sample_ids)
    return Stream(
        start=one.start,
        batch_size=one.batch_size,
        offsets=np.concatenate([one.offsets, n + other.offsets[1:]]),
        sample_ids=np.concatenate([one.sample_ids, other.sample_ids]),
        weights=np.concatenate([one.weights, other.weights]),
        masked=np.concatenate([one.masked, np.add(other.masked, [n, 0])]),
    )


def stream_hash(one: Stream) -> str:
    """Returns the hash of a whole stream; equal streams train equal models."""
    head = np.array([one.start, one.batch_size], dtype=np.int64)
    masked = [one.masked] if len(one.masked) else []
    return store.hash_arrays(head, one.offsets, one.sample_ids, one.weights, *masked)
