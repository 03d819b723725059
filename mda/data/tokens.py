"""`data=tokens`: token rows of the user's own, a 2-D .npy or a raw file.

The file stays where it is and is mapped, never read whole into memory; the corpus folder holds
what is derived from it. Labels are a .npy of integers, one per row, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mda import store
from mda.data.errors import DataError
from mda.data.token_files import count_ids, map_rows
from mda.data.tokenizer import FILE, read_tokenizer
from mda.schema import TokensConfig
from mda.schema.data import untyped

__all__ = ["DataError", "build_tokens", "map_rows"]


def inputs(config: TokensConfig, hash_file: Callable[[Path], str]) -> Mapping[str, object]:
    """What the files hold, in place of where they lie. Raises DataError for one that is missing."""
    files = {"path": Path(config.path)}
    if config.labels is not None:
        files["labels"] = Path(config.labels)
    for name, path in [*files.items()]:
        if not path.is_file():
            raise DataError(f"data.{name}={path}: no such file")
    index = files["path"].with_suffix(".idx")
    if index.is_file() and files["path"].suffix != ".npy":
        files["index"] = index
    return {
        "files": {name: hash_file(path) for name, path in files.items()},
        "tokenizer": tokenizer_hash(config.tokenizer),
        **({"dtype": config.dtype or "uint16"} if untyped(config.path) else {}),
    }


def tokenizer_hash(name: str | None) -> str | None:
    """Hash of what a tokenizer does. Raises DataError for one that cannot be read."""
    if name is None:
        return None
    return store.fingerprint("tokenizer", {"content": read_tokenizer(name).tokenizer.to_str()})


def build_from_config(out: Path, config: TokensConfig, downloads: Path) -> None:
    """`build_tokens` with the settings of `data=tokens`."""
    build_tokens(
        out,
        path=Path(config.path),
        seq_len=config.seq_len,
        dtype=config.dtype,
        vocab_size=config.vocab_size,
        special_ids=config.special_ids,
        labels=Path(config.labels) if config.labels else None,
        label_names=config.label_names,
        tokenizer=config.tokenizer,
        held_out=config.held_out,
    )


def open_rows(folder: Path, config: TokensConfig, downloads: Path) -> np.ndarray:
    """The rows of the file, mapped."""
    return map_rows(Path(config.path), config.seq_len, config.dtype)


def build_tokens(
    out: Path,
    *,
    path: Path,
    seq_len: int,
    dtype: str | None,
    vocab_size: int,
    special_ids: Sequence[int] = (),
    labels: Path | None = None,
    label_names: Sequence[str] = (),
    tokenizer: str | None = None,
    held_out: int = 256,
) -> None:
    """Check the rows once and write the corpus folder: counts, labels, held-out rows.

    The last `held_out` rows are kept for evaluation. Raises DataError for ids beyond
    `vocab_size`, too few rows, labels that do not fit, or a tokenizer that lacks ids of the file.
    """
    rows = map_rows(path, seq_len, dtype)
    if held_out >= len(rows):
        raise DataError(f"data.held_out={held_out}: {path} has only {len(rows):,} rows")
    row_labels, names = None, ("all",)
    if labels is not None:
        row_labels, names = read_labels(labels, label_names, {len(rows): "row"})
    counts = count_ids(rows, vocab_size, path)
    write_corpus(
        out,
        counts=counts,
        held_out=np.arange(len(rows) - held_out, len(rows)),
        labels=row_labels,
        label_names=names,
        special_ids=special_ids,
        tokenizer=tokenizer,
    )


def write_corpus(
    out: Path,
    *,
    counts: np.ndarray,
    held_out: np.ndarray,
    labels: np.ndarray | None,
    label_names: Sequence[str],
    special_ids: Sequence[int],
    tokenizer: str | None,
    about: Mapping[str, object] | None = None,
) -> None:
    """Write all that a corpus folder holds beside its rows; `labels=None`: all rows have the first.

    Raises DataError, before anything is written, for a tokenizer that lacks an id of the rows.
    """
    words = None
    if tokenizer is not None:
        words = read_tokenizer(tokenizer).tokenizer
        highest = int(np.flatnonzero(counts).max(initial=0))
        if highest >= (size := words.get_vocab_size()):
            raise DataError(
                f"data.tokenizer={tokenizer}: it has {size:,} tokens and the data has id "
                f"{highest}; accepted: the tokenizer that made the data"
            )
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


def read_labels(
    path: Path, names: Sequence[str], lengths: Mapping[int, str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels from 0 on, int32, and what they are called; `lengths` says how many, and of what.

    Raises DataError for a file that holds something else.
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
            f"accepted: one integer for {each}"
        )
    if values.min() < 0:
        raise DataError(f"data.labels={path}: label {values.min()}; accepted: 0 and above")
    if names:
        if values.max() >= len(names):
            raise DataError(
                f"data.labels={path}: label {values.max()}, but data.label_names has {len(names)}"
            )
        return values.astype(np.int32), tuple(names)
    found, index = np.unique(values, return_inverse=True)
    return index.astype(np.int32), tuple(f"class_{value}" for value in found.tolist())
