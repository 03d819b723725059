"""`data=tokens`: token rows of the user's own, a 2-D .npy or a raw file of uint16 or uint32.

The file stays where it is and is mapped, never read whole into memory; the corpus folder holds
what is derived from it. Labels are a .npy of integers, one per row, or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mda import store
from mda.schema import ConfigError

CHUNK_ROWS = 65_536


class DataError(ConfigError):
    """A data file that cannot be used: says which, what it holds and what is accepted."""


def map_rows(path: Path, seq_len: int, dtype: str = "uint16") -> np.ndarray:
    """Map token rows [rows, seq_len + 1]. Raises DataError for a file of another form."""
    if not path.is_file():
        raise DataError(f"data.path={path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"data.path={path}: the file is empty")
    row = seq_len + 1
    if path.suffix == ".npy":
        rows = _map_npy(path)
        if rows.ndim != 2 or rows.shape[1] != row:
            raise DataError(
                f"data.path={path}: shape {list(rows.shape)}; accepted: [rows, {row}], "
                f"a row being data.seq_len={seq_len} tokens and the last target"
            )
    else:
        size, width = path.stat().st_size, np.dtype(dtype).itemsize
        if size % (row * width):
            raise DataError(
                f"data.path={path}: {size:,} bytes are not a whole number of rows of "
                f"{row} {dtype} ({row * width:,} bytes); truncated, or another data.seq_len?"
            )
        rows = np.memmap(path, dtype, mode="r").reshape(-1, row)
    if len(rows) == 0:
        raise DataError(f"data.path={path}: the file has no rows")
    return rows


def build_tokens(
    out: Path,
    *,
    path: Path,
    seq_len: int,
    dtype: str,
    vocab_size: int,
    special_ids: Sequence[int] = (),
    labels: Path | None = None,
    label_names: Sequence[str] = (),
    tokenizer: Path | None = None,
    held_out: int = 256,
) -> None:
    """Check the rows once and write the corpus folder: counts, labels, held-out rows.

    The last `held_out` rows are kept for evaluation. Raises DataError for ids beyond
    `vocab_size`, too few rows, or labels that do not fit.
    """
    rows = map_rows(path, seq_len, dtype)
    if held_out >= len(rows):
        raise DataError(f"data.held_out={held_out}: {path} has only {len(rows):,} rows")
    row_labels, names = _labels(labels, label_names, len(rows))
    counts = np.zeros(vocab_size, dtype=np.int64)
    for first in range(0, len(rows), CHUNK_ROWS):
        found = np.bincount(np.asarray(rows[first : first + CHUNK_ROWS]).ravel())
        if len(found) > vocab_size:
            raise DataError(
                f"data.path={path}: token id {len(found) - 1} in rows {first:,} to "
                f"{first + CHUNK_ROWS:,}; accepted: below data.vocab_size={vocab_size}"
            )
        counts[: len(found)] += found
    out.mkdir(parents=True, exist_ok=True)
    store.write_npy(out / "counts.npy", counts)
    store.write_npy(out / "labels.npy", row_labels)
    store.write_npy(out / "held_out.npy", np.arange(len(rows) - held_out, len(rows)))
    if tokenizer is not None:
        (out / "tokenizer.json").write_bytes(Path(tokenizer).read_bytes())
    about = {
        "label_names": list(names),
        "vocab_size": vocab_size,
        "special_ids": [int(token) for token in special_ids],
    }
    store.write_json(out / "corpus.json", about)


def _map_npy(path: Path) -> np.ndarray:
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"data.path={path}: not a readable .npy file ({error})") from error
    if rows.dtype not in (np.uint16, np.uint32, np.int32, np.int64):
        raise DataError(
            f"data.path={path}: dtype {rows.dtype}; accepted: uint16, uint32, int32, int64"
        )
    return rows


def _labels(
    path: Path | None, names: Sequence[str], rows: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    if path is None:
        return np.zeros(rows, dtype=np.int16), ("all",)
    if not Path(path).is_file():
        raise DataError(f"data.labels={path}: no such file")
    values = np.load(path, allow_pickle=False)
    if values.shape != (rows,) or not np.issubdtype(values.dtype, np.integer):
        raise DataError(
            f"data.labels={path}: {values.dtype} {list(values.shape)}; "
            f"accepted: one integer for each of the {rows:,} rows"
        )
    if values.min() < 0:
        raise DataError(f"data.labels={path}: label {values.min()}; accepted: 0 and above")
    found = tuple(names) or tuple(f"class_{i}" for i in range(int(values.max()) + 1))
    if values.max() >= len(found):
        raise DataError(
            f"data.labels={path}: label {values.max()}, but data.label_names has {len(found)}"
        )
    return values.astype(np.int16), found
