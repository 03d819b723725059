"""Files of token ids: mapped, never read whole, and checked before anything is made from them.

A file is a 2-D .npy or raw little-endian integers. A raw `x.bin` may be accompanied by gpt-neox's
`x.idx`, with the type of the ids and the lengths of the sequences: a magic of nine bytes, version
(u64), type (u8), number of sequences and of documents (u64 each), lengths (int32), byte offsets
(int64), and the documents' first sequences (int64).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mda import store
from mda.data.errors import DataError
from mda.schema.data import RAW_TYPES

CHUNK_TOKENS = 2**22
MAGIC = b"MMIDIDX\0\0"
HEADER = struct.Struct("<9sQBQQ")
TYPES = {4: "int32", 5: "int64", 8: "uint16"}  # those of token ids


class Index(NamedTuple):
    """The types and lengths that a gpt-neox .idx records of its .bin."""

    dtype: str
    lengths: np.ndarray  # int32 [sequences], tokens


def map_rows(
    path: Path, seq_len: int, dtype: str | None = None, key: str = "data.path"
) -> np.ndarray:
    """Maps token rows [rows, seq_len + 1]. Raises DataError for a file of another form.

    `dtype` is that of a raw file; None takes the one of its .idx, else uint16.
    """
    if not path.is_file():
        raise DataError(f"{key}={path}: no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{key}={path}: the file is empty")
    row = seq_len + 1
    if path.suffix == ".npy":
        rows = _map_npy(path, key)
        if rows.ndim != 2 or rows.shape[1] != row:
            raise DataError(
                f"{key}={path}: shape {list(rows.shape)}; expected [rows, {row}], "
                f"a row being data.seq_len={seq_len} tokens and the last target"
            )
    else:
        rows = _map_raw(path, row, dtype, key)
    if len(rows) == 0:
        raise DataError(f"{key}={path}: the file has no rows")
    return rows


def count_ids(rows: np.ndarray, vocab_size: int, path: Path, key: str = "data.path") -> np.ndarray:
    """Counts how often each id occurs, int64 [vocab_size].

    Raises DataError, before allocating memory by the size of an id, where an id is negative or
    beyond the vocabulary, and where every second id is 0: integers of another width. Warns where
    half of all ids are 0.
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    per_chunk = max(1, CHUNK_TOKENS // rows.shape[1])
    filled = np.zeros(2, dtype=np.int64)  # ids that are not 0, at even and at odd places
    for first in range(0, len(rows), per_chunk):
        chunk = np.asarray(rows[first : first + per_chunk])
        _refuse_ids(chunk, first, vocab_size, path, key)
        flat = chunk.ravel()
        counts += np.bincount(flat, minlength=vocab_size)
        even = (first * rows.shape[1]) % 2
        filled += np.count_nonzero(flat[even::2]), np.count_nonzero(flat[1 - even :: 2])
    if filled[1] == 0 and filled[0] > 0 and rows.shape[1] > 1:
        raise DataError(
            f"{key}={path}: every second id is 0, as where wider integers are read as "
            f"{rows.dtype}; expected the type in which the file was written, such as uint32"
        )
    if 2 * counts[0] >= counts.sum():
        store.say(
            f"warning: {key}={path}: {counts[0] / counts.sum():.0%} of all ids are 0; "
            f"padding, or another type than {rows.dtype}?"
        )
    return counts


def read_inserted(path: Path, seq_len: int, vocab_size: int) -> np.ndarray:
    """Returns the rows of `intervention.rows`, int64 [rows, seq_len + 1], checked like a corpus.

    Raises DataError for rows that cannot be trained on.
    """
    key = "intervention.rows"
    rows = map_rows(Path(path), seq_len, key=key)
    count_ids(rows, vocab_size, path, key)
    return np.asarray(rows).astype(np.int64)


def read_index(path: Path, key: str = "data.path") -> Index:
    """Returns a gpt-neox .idx. Raises DataError for one that is torn or of another form."""
    content = path.read_bytes()
    if len(content) < HEADER.size or not content.startswith(MAGIC):
        raise DataError(f"{key}: {path} does not begin as an index of gpt-neox; move it away")
    _, version, code, sequences, documents = HEADER.unpack_from(content)
    size = HEADER.size + 12 * sequences + 8 * documents
    if version != 1 or code not in TYPES or len(content) != size:
        raise DataError(
            f"{key}: {path} says version {version}, type {code}, {sequences:,} sequences and "
            f"{documents:,} documents in {len(content):,} bytes; expected version 1, types 4 "
            f"(int32), 5 (int64) and 8 (uint16), {size:,} bytes"
        )
    dtype = TYPES[code]
    lengths = np.frombuffer(content, "<i4", sequences, HEADER.size)
    offsets = np.frombuffer(content, "<i8", sequences, HEADER.size + 4 * sequences)
    ends = np.cumsum(lengths, dtype=np.int64) * np.dtype(dtype).itemsize
    if not np.array_equal(offsets, np.concatenate([[0], ends[:-1]])[:sequences]):
        raise DataError(f"{key}: {path} has sequences that do not follow each other in the file")
    return Index(dtype, lengths)


def _map_raw(path: Path, row: int, dtype: str | None, key: str) -> np.ndarray:
    size, beside = path.stat().st_size, path.with_suffix(".idx")
    index = read_index(beside, f"{key}={path}") if beside.is_file() else None
    if index is not None:
        _refuse_index(index, beside, path, row, dtype, key)
    kind = index.dtype if index is not None else dtype or "uint16"
    width = np.dtype(kind).itemsize
    whole = size // (row * width)
    if size % (row * width):
        if index is None:
            raise DataError(
                f"{key}={path}: {size:,} bytes are not a whole number of rows of "
                f"{row} {kind} ({row * width:,} bytes); truncated, or another data.seq_len?"
            )
        store.say(
            f"{key}={path}: {len(index.lengths):,} documents are laid end to end and cut into "
            f"{whole:,} rows; {size // width - whole * row:,} tokens are left over"
        )
    mapped = np.memmap(path, np.dtype(kind).newbyteorder("<"), mode="r")
    return mapped[: whole * row].reshape(-1, row)


def _refuse_index(
    index: Index, beside: Path, path: Path, row: int, dtype: str | None, key: str
) -> None:
    name, lengths = f"{key}={path}: {beside.name} beside it says", index.lengths
    if dtype not in (None, index.dtype):
        raise DataError(f"{name} {index.dtype}; data.dtype={dtype} contradicts it")
    told = int(lengths.sum(dtype=np.int64)) * np.dtype(index.dtype).itemsize
    if told != path.stat().st_size:
        raise DataError(
            f"{name} {told:,} bytes and the file has {path.stat().st_size:,}; truncated, or "
            "another file's index"
        )
    equal = len(lengths) > 1 and bool((lengths == lengths[0]).all())
    if equal and lengths[0] != row:
        raise DataError(
            f"{name} rows of {lengths[0]:,} tokens; data.seq_len={row - 1} contradicts it, "
            f"expected {lengths[0] - 1}"
        )


def _refuse_ids(chunk: np.ndarray, first: int, vocab_size: int, path: Path, key: str) -> None:
    low, high = int(chunk.min()), int(chunk.max())
    if low >= 0 and high < vocab_size:
        return
    wrong = low if low < 0 else high
    row = first + int(np.argwhere(chunk == wrong)[0][0])
    signed = wrong - 2 ** (8 * chunk.itemsize) if chunk.dtype.kind == "u" else wrong
    padding = -1000 <= signed < 0
    also = f" ({signed} as a signed number)" if padding and signed != wrong else ""
    hint = "; a row cannot hold padding" if padding else ""
    raise DataError(
        f"{key}={path}: token id {wrong}{also} in row {row:,}; expected 0 to below "
        f"data.vocab_size={vocab_size}{hint}"
    )


def _map_npy(path: Path, key: str) -> np.ndarray:
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{key}={path}: not a readable .npy file ({error})") from error
    if rows.dtype not in (np.uint16, np.uint32, np.int32, np.int64):
        raise DataError(f"{key}={path}: dtype {rows.dtype}; expected {', '.join(RAW_TYPES)}")
    return rows
