"""Documents of token ids into rows of equal length, in the order in which they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from mda.data.errors import DataError

CHUNK_TOKENS = 2**20  # held before rows are handed on: memory stays small, arrays large


class Document(NamedTuple):
    """A document's ids and the number of its label."""

    ids: np.ndarray  # integers
    label: int


class Packed(NamedTuple):
    """Rows [n, T + 1] and the label of each, that of most of its tokens."""

    rows: np.ndarray
    labels: np.ndarray


def across(documents: Iterable[Document], width: int, end: int | None) -> Iterator[Packed]:
    """Yields rows cut from documents laid end to end, with `end` after each document.

    The last row is dropped if it is shorter.
    """
    assert end is not None
    ids: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    held = 0
    for document in documents:
        if not len(document.ids):
            continue
        ids += [document.ids, np.array([end])]
        labels.append(np.full(len(document.ids) + 1, document.label))
        held += len(document.ids) + 1
        if held >= max(CHUNK_TOKENS, width):
            flat, of = np.concatenate(ids), np.concatenate(labels)
            whole = len(flat) // width * width
            yield _cut(flat[:whole], of[:whole], width)
            ids, labels, held = [flat[whole:]], [of[whole:]], len(flat) - whole
    if held >= width:
        whole = held // width * width
        yield _cut(np.concatenate(ids)[:whole], np.concatenate(labels)[:whole], width)


def within(documents: Iterable[Document], width: int, end: int | None) -> Iterator[Packed]:
    """Yields rows that lie within one document each. A shorter remainder at its end is dropped."""

    def rows() -> Iterator[Packed]:
        for document in documents:
            ids = document.ids if end is None else np.append(document.ids, end)
            if n := len(document.ids) and len(ids) // width:
                yield Packed(ids[: n * width].reshape(n, width), np.full(n, document.label))

    return _in_chunks(rows(), width)


def as_they_are(documents: Iterable[Document], width: int, end: int | None) -> Iterator[Packed]:
    """Yields the documents that are rows already. Raises DataError for one of another length."""

    def rows() -> Iterator[Packed]:
        for number, document in enumerate(documents):
            if len(document.ids) != width:
                raise DataError(
                    f"data.packing=rows: document {number:,} has {len(document.ids):,} tokens; "
                    f"expected data.seq_len + 1 = {width}"
                )
            yield Packed(document.ids[None], np.array([document.label]))

    return _in_chunks(rows(), width)


PACKERS: dict[str, Callable[[Iterable[Document], int, int | None], Iterator[Packed]]] = {
    "across": across,
    "within": within,
    "rows": as_they_are,
}


def _in_chunks(rows: Iterable[Packed], width: int) -> Iterator[Packed]:
    waiting: list[Packed] = []
    held = 0
    for packed in rows:
        waiting.append(packed)
        held += len(packed.rows)
        if held * width >= CHUNK_TOKENS:
            yield Packed(*map(np.concatenate, zip(*waiting, strict=True)))
            waiting, held = [], 0
    if waiting:
        yield Packed(*map(np.concatenate, zip(*waiting, strict=True)))


def _cut(ids: np.ndarray, labels: np.ndarray, width: int) -> Packed:
    of_rows = [np.bincount(row).argmax() for row in labels.reshape(-1, width)]
    return Packed(ids.reshape(-1, width), np.array(of_rows, dtype=np.int64))
