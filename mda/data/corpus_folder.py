"""The files of a corpus folder beside its rows of tokens, whatever the source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mda import store
from mda.data.errors import DataError
from mda.data.tokenizer import FILE, read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNLABELLED = "unlabelled"  # the class of rows that nobody has labelled


def write_corpus(
    out: Path,
    *,
    counts: np.ndarray,
    held_out: np.ndarray,
    labels: np.ndarray | None,
    label_names: Sequence[str],
    special_ids: Sequence[int],
    tokenizer: Tokenizer | str | None,
    about: Mapping[str, object] | None = None,
) -> None:
    """Writes every file of a corpus folder but its rows.

    With `labels=None` all have the first label.

    `about` is added to corpus.json. Raises DataError, before anything is written, where the named
    tokenizer lacks an id of the rows.
    """
    words = _named(tokenizer, counts) if isinstance(tokenizer, str) else tokenizer
    out.mkdir(parents=True, exist_ok=True)
    store.write_npy(out / "counts.npy", counts)
    if labels is not None:
        store.write_npy(out / "labels.npy", labels)
    store.write_npy(out / "held_out.npy", held_out)
    if words is not None:
        words.save(str(out / FILE))
    content = {
        "label_names": list(label_names),
        "vocab_size": len(counts),
        "special_ids": [int(token) for token in special_ids],
        **(about or {}),
    }
    store.write_json(out / "corpus.json", content)


def _named(name: str, counts: np.ndarray) -> Tokenizer:
    words = read_tokenizer(name).tokenizer
    highest = int(np.flatnonzero(counts).max(initial=0))
    if highest >= (size := words.get_vocab_size()):
        raise DataError(
            f"data.tokenizer={name}: it has {size:,} tokens and the data has id {highest}; "
            "expected the tokenizer that made the data"
        )
    return words


def read_labels(
    path: Path, names: Sequence[str], lengths: Mapping[int, str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns labels from 0 on, int32, and their names.

    `lengths` gives the expected number, and of what. Raises DataError for a file that holds
    something else.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"data.labels={path}: not a readable .npy file ({error})") from error
    fits = values.ndim == 1 and len(values) in lengths
    if not fits or not np.issubdtype(values.dtype, np.integer):
        each = " or ".join(f"each of the {n:,} {what}s" for n, what in lengths.items())
        raise DataError(
            f"data.labels={path}: {values.dtype} {list(values.shape)}; "
            f"expected one integer for {each}"
        )
    if values.min() < 0:
        raise DataError(f"data.labels={path}: label {values.min()}; expected 0 and above")
    if names:
        if values.max() + 1 != len(names):
            raise DataError(
                f"data.labels={path}: label {values.max()} is the highest, but data.label_names "
                f"has {len(names)}; expected {values.max() + 1} names, for 0 to {values.max()}"
            )
        return values.astype(np.int32), tuple(names)
    found, index = np.unique(values, return_inverse=True)
    return index.astype(np.int32), tuple(f"class_{value}" for value in found.tolist())


def tokenizer_hash(name: str | None) -> str | None:
    """Returns the hash of what a tokenizer does. Raises DataError for one that cannot be read."""
    if name is None:
        return None
    return store.fingerprint("tokenizer", {"content": read_tokenizer(name).tokenizer.to_str()})
