"""An ordered token stream: which sample is trained on at which step is a pure function.

A corpus is a folder with `tokens.npy` [rows, T + 1] and what describes it. A run's stream is a
permutation of the rows that are not held out; batch `step` is the slice
[step * batch_size, (step + 1) * batch_size) of it, so resuming and replaying need no state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mda import store
from mda.types import Schedule


@dataclass(frozen=True)
class Corpus:
    """An opened corpus artifact; `tokens` stays on disk and is mapped into memory."""

    tokens: np.ndarray  # uint16 or uint32 [rows, T + 1]
    labels: np.ndarray  # int16 [rows], index into label_names
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
        """Tokens of samples, int64 [B, T + 1]."""
        ids = np.asarray(sample_ids)
        if self.extra is None:
            return torch.from_numpy(self.tokens[ids].astype(np.int64))
        own, n = ids < len(self.tokens), len(self.tokens)
        rows = np.empty((len(ids), self.tokens.shape[1]), dtype=np.int64)
        rows[own], rows[~own] = self.tokens[ids[own]], self.extra[ids[~own] - n]
        return torch.from_numpy(rows)

    def labels_of(self, sample_ids: np.ndarray) -> list[str]:
        """Class label of each sample."""
        return [self.label_names[i] for i in self.labels[np.asarray(sample_ids)]]

    def decode(self, token_ids: Sequence[int]) -> list[str]:
        """One string for each token, together the text; the ids where there is no tokenizer.

        A character that several byte-level tokens make stands at the last of them.
        """
        if self.tokenizer is None:
            return [f"{token} " for token in token_ids]
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.tokenizer))
        pieces, pending = [], []
        for token in token_ids:
            pending.append(int(token))
            text = tokenizer.decode(pending, skip_special_tokens=False)
            # A character has four bytes at most; what is still torn then was cut by the row.
            whole = not text.endswith("\N{REPLACEMENT CHARACTER}") or len(pending) == 4
            pieces.append(text if whole else "")
            pending = [] if whole else pending
        return pieces


def open_corpus(folder: Path, fingerprint: str, tokens: np.ndarray | None = None) -> Corpus:
    """Open a corpus folder written by one of the builders of this package.

    `tokens` are rows that lie outside the folder (`data=tokens`); else `tokens.npy` is mapped.
    """
    about = store.read_json(folder / "corpus.json")
    tokenizer = folder / "tokenizer.json"
    return Corpus(
        tokens=_map(folder / "tokens.npy") if tokens is None else tokens,
        labels=_map(folder / "labels.npy"),
        label_names=tuple(about["label_names"]),
        vocab_size=about["vocab_size"],
        special_ids=tuple(about["special_ids"]),
        counts=np.load(folder / "counts.npy", allow_pickle=False),
        tokenizer=tokenizer if tokenizer.exists() else None,
        held_out=np.load(folder / "held_out.npy", allow_pickle=False),
        fingerprint=fingerprint,
    )


def stream_order(corpus: Corpus, seed: int | None) -> np.ndarray:
    """Position in the stream -> sample id, int64; `seed=None` keeps the corpus' own order."""
    kept = np.ones(len(corpus.tokens), dtype=bool)
    kept[corpus.held_out] = False
    ids = np.flatnonzero(kept)
    return ids if seed is None else np.random.default_rng(seed).permutation(ids)


def schedule(order: np.ndarray, batch_size: int, start: int, end: int) -> Schedule:
    """The unedited schedule of steps [start, end): every sample once, with weight 1."""
    rows = order[start * batch_size : end * batch_size]
    if len(rows) < (end - start) * batch_size:
        raise ValueError(
            f"steps up to {end} need {end * batch_size:,} samples; the stream has {len(order):,}"
        )
    return Schedule(
        start=start,
        batch_size=batch_size,
        offsets=np.arange(0, len(rows) + 1, batch_size, dtype=np.int64),
        sample_ids=rows.astype(np.int64),
        weights=np.ones(len(rows), dtype=np.float32),
    )


def schedule_hash(plan: Schedule) -> str:
    """Hash of everything a schedule says; equal schedules train equal models."""
    head = np.array([plan.start, plan.batch_size], dtype=np.int64)
    return store.hash_arrays(head, plan.offsets, plan.sample_ids, plan.weights)


def _map(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)
