"""`data=tokens`: the user's own token rows, a 2-D .npy or a raw file.

The file stays where it is and is mapped, never read whole into memory; the corpus folder holds what
is derived from it. Labels are a .npy of integers, one per row, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mda.data.corpus_folder import read_labels, tokenizer_hash, write_corpus
from mda.data.errors import DataError
from mda.data.token_files import count_ids, map_rows
from mda.schema import TokensConfig
from mda.schema.data import untyped


def inputs(config: TokensConfig, hash_file: Callable[[Path], str]) -> Mapping[str, object]:
    """Returns hashes of the files, in place of their paths. Raises DataError for a missing file."""
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


def build_from_config(out: Path, config: TokensConfig, downloads: Path) -> None:
    """Builds the corpus folder with the settings of `data=tokens`."""
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
    """Returns the rows of the file, memory-mapped."""
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
    """Checks the rows once and writes the corpus folder: counts, labels, held-out rows.

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
