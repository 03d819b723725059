"""Rows of tokens laid end to end in large files, which are local or fetched by range.

A row may straddle two files. Of remote files only the requested blocks of rows are fetched. Each is
written atomically as one .npy with its hash beside it, so that a restart resumes. A block that does
not match its hash is fetched again.
"""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from mda import store
from mda.data.errors import DataError
from mda.schema import Unavailable

TRIES = 3
LONGEST_WAIT_S = 60
TIMEOUT_S = 60
KEPT = "what has been fetched is kept, and a second start goes on"


class Piece(NamedTuple):
    """Bytes [start, stop) of a shard."""

    shard: int
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """Rows of `row_len` uint16 tokens, end to end over shards of equal size but for the last."""

    names: tuple[str, ...]
    shard_bytes: int
    n_rows: int
    row_len: int

    @property
    def row_bytes(self) -> int:
        return 2 * self.row_len

    def size(self, shard: int) -> int:
        """Returns the bytes of a shard."""
        whole = self.n_rows * self.row_bytes
        return min(self.shard_bytes, whole - shard * self.shard_bytes)

    def pieces(self, first: int, end: int) -> Iterator[Piece]:
        """Returns the pieces that hold rows [first, end), one for each shard that they touch."""
        at, stop = first * self.row_bytes, end * self.row_bytes
        while at < stop:
            shard, start = divmod(at, self.shard_bytes)
            length = min(stop - at, self.shard_bytes - start)
            yield Piece(shard, start, start + length)
            at += length


class Reader(Protocol):
    """Reads bytes of shards. Raises ConfigError where they cannot be read."""

    def read(self, layout: Layout, piece: Piece) -> bytes: ...


@dataclass(frozen=True)
class LocalFiles:
    """Shards in a folder."""

    folder: Path

    def read(self, layout: Layout, piece: Piece) -> bytes:
        path = self.folder / layout.names[piece.shard]
        if not path.is_file():
            raise DataError(f"data.source={self.folder}: there is no {path.name} in it")
        if (size := path.stat().st_size) != (expected := layout.size(piece.shard)):
            raise DataError(f"data.source: {path} has {size:,} bytes; expected {expected:,}")
        with path.open("rb") as file:
            file.seek(piece.start)
            return file.read(piece.stop - piece.start)


@dataclass
class Range:
    """Shards behind a URL, read by HTTP range; `fetched` counts the bytes that have come."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # never shown: tokens
    fetched: int = 0

    def read(self, layout: Layout, piece: Piece) -> bytes:
        url = f"{self.url.rstrip('/')}/{layout.names[piece.shard]}"
        for left in reversed(range(TRIES)):
            try:
                content = self._get(url, piece, layout.size(piece.shard))
                self.fetched += len(content)
                return content
            except urllib.error.HTTPError as error:
                wait = _seconds(error.headers.get("Retry-After"))
                if error.code != 429 and error.code < 500:
                    raise DataError(_refused(url, error.code)) from None
                reason = f"the server answers {error.code}"
                if error.code == 429:
                    reason += f", too many requests, and asks for {wait} s of patience"
            except (OSError, http.client.HTTPException) as error:
                reason, wait = f"the connection failed ({_words(error)})", 1
            if not left or wait > LONGEST_WAIT_S:
                raise Unavailable(f"{url}: {reason}; {KEPT}")
            store.say(f"{url}: {reason}; trying again in {wait} s")
            time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _get(self, url: str, piece: Piece, size: int) -> bytes:
        request = urllib.request.Request(url)
        request.add_header("Range", f"bytes={piece.start}-{piece.stop - 1}")
        for name, value in self.headers.items():
            request.add_unredirected_header(name, value)  # the hub redirects to other hosts
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            if answer.status != 206:
                raise DataError(f"{url}: the server does not answer by range; expected one that "
                                "does, or a folder with the files")  # fmt: skip
            said = answer.headers.get("Content-Range", "")
            match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", said)
            if match is None or int(match[3]) != size:
                actual = f"{int(match[3]):,} bytes" if match else f"Content-Range {said!r}"
                raise DataError(f"{url}: the file has {actual}; expected {size:,} bytes")
            content = answer.read()
        if (int(match[1]), int(match[2]) + 1) != piece[1:] or len(content) != piece.stop - piece[1]:
            raise http.client.IncompleteRead(content, piece.stop - piece.start - len(content))
        return content


class ShardRows:
    """The first `n_rows` rows of a layout, uint16 [n_rows, row_len], read on demand.

    Rows from a `Range` are fetched in blocks of `per_block` rows and kept in the folder `cache`.
    Raises ConfigError where they cannot be read, or where an id is not below `vocab_size`.
    """

    def __init__(
        self,
        layout: Layout,
        reader: Reader,
        n_rows: int,
        vocab_size: int,
        cache: Path | None = None,
        per_block: int = 1024,
    ) -> None:
        self.layout, self.reader, self.cache = layout, reader, cache
        self.vocab_size, self.per_block = vocab_size, per_block
        self.shape = (n_rows, layout.row_len)
        self.dtype = np.dtype(np.uint16)
        self._verified: set[int] = set()  # blocks whose hash this process has seen to be right

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        """Returns rows by number, uint16 [n, row_len].

        Raises IndexError for one that does not exist.
        """
        ids = np.asarray(ids, dtype=np.int64)
        if ids.size and not (ids.min() >= 0 and ids.max() < len(self)):
            raise IndexError(f"rows {ids.min()} to {ids.max()} of {len(self)}")
        out = np.empty((len(ids), self.shape[1]), dtype=self.dtype)
        if self.cache is not None:
            blocks = ids // self.per_block
            for block in np.unique(blocks):
                here = blocks == block
                out[here] = self.fetch(int(block))[ids[here] - block * self.per_block]
            return out
        order = np.argsort(ids, kind="stable")
        for run in np.split(order, np.flatnonzero(np.diff(ids[order]) > 1) + 1):
            if run.size:
                first, last = ids[run[0]], ids[run[-1]]
                out[run] = self._read(int(first), int(last) + 1)[ids[run] - first]
        return out

    def missing(self, ids: np.ndarray) -> list[int]:
        """Returns the blocks that must still be fetched for some rows; none for local files."""
        if self.cache is None:
            return []
        blocks = np.unique(np.asarray(ids) // self.per_block).tolist()
        return [block for block in blocks if not self._hash_file(block).exists()]

    def fetch(self, block: int) -> np.ndarray:
        """Returns a block's rows from the cache, or fetches them.

        A damaged block is fetched again.
        """
        first = block * self.per_block
        end = min(first + self.per_block, self.layout.n_rows)  # whole, however many rows are used
        path = self._file(block)
        try:
            rows = store.read_npy(path, mmap=True)
            if len(rows) < end - first:
                raise EOFError  # by a version that kept no more than the rows in use
            if block in self._verified:
                return rows
            if store.hash_arrays(rows) == store.read_json(self._hash_file(block)):
                self._verified.add(block)
                return rows
            store.say(f"{path} is damaged; it is fetched again")
        except (OSError, ValueError, EOFError):  # not there, or torn
            pass
        rows = self._read(first, end)
        store.write_npy(path, rows)
        store.write_json(self._hash_file(block), store.hash_arrays(rows))  # last: now it is whole
        self._verified.add(block)
        return rows

    def _file(self, block: int) -> Path:
        assert self.cache is not None
        return self.cache / f"rows-{block * self.per_block:09d}.npy"

    def _hash_file(self, block: int) -> Path:
        return self._file(block).with_suffix(".json")

    def _read(self, first: int, end: int) -> np.ndarray:
        pieces = self.layout.pieces(first, end)
        content = b"".join(self.reader.read(self.layout, piece) for piece in pieces)
        rows = np.frombuffer(content, "<u2").reshape(end - first, self.layout.row_len)
        if rows.max(initial=0) >= self.vocab_size:
            row = first + int(np.argwhere(rows >= self.vocab_size)[0][0])
            raise DataError(
                f"row {row:,} of the shards has token id {rows.max()}; expected below "
                f"data.vocab_size={self.vocab_size}; are these files of token rows?"
            )
        return rows.astype(self.dtype)


def _refused(url: str, code: int) -> str:
    if code in (401, 403):
        return (
            f"{url}: the server refuses ({code}); set HF_TOKEN to a token that may read it, and "
            "accept the data set's terms on its page"
        )
    if code == 404:
        accepted = "data.repo, data.revision and data.files of shards that exist"
        return f"{url}: no such file (404); expected {accepted}"
    return f"{url}: the server answers {code}"


def _seconds(retry_after: str | None) -> int:
    return int(retry_after) if retry_after and retry_after.strip().isdigit() else 1


def _words(error: Exception) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return f"cut after {len(error.partial):,} bytes"
    reason = getattr(error, "reason", error)
    return " ".join(str(reason).split()) or type(error).__name__
