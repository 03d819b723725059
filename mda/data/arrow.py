"""Rows of tokens in an Arrow file, written a batch at a time and mapped when they are read.

The file is a stream of record batches with one column `tokens`, lists of T + 1 integers: what
`datasets.Dataset.from_file` opens too.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

FILE = "tokens.arrow"
COLUMN = "tokens"
BATCH_TOKENS = 2**22  # of a record batch; few batches to search, little to hold


class ArrowWriter:
    """Writes rows; `n_rows` counts them. The end of its `with` block closes it."""

    def __init__(self, path: Path, width: int, vocab_size: int) -> None:
        self.dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
        item = pa.from_numpy_dtype(self.dtype)
        self.schema = pa.schema([pa.field(COLUMN, pa.list_(item, width))])
        self.width, self.n_rows = width, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = pa.ipc.new_stream(str(path), self.schema)
        self._waiting: list[np.ndarray] = []
        self._held = 0

    def write(self, rows: np.ndarray) -> None:
        """Adds rows [n, width]."""
        self._waiting.append(rows.astype(self.dtype))
        self._held += rows.size
        self.n_rows += len(rows)
        if self._held >= BATCH_TOKENS:
            self._flush()

    def __enter__(self) -> ArrowWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        self._stream.close()

    def _flush(self) -> None:
        if self._held:
            flat = pa.array(np.concatenate(self._waiting).ravel())
            column = pa.FixedSizeListArray.from_arrays(flat, self.width)
            self._stream.write_batch(pa.record_batch([column], schema=self.schema))
        self._waiting, self._held = [], 0


class ArrowRows:
    """The rows of such a file, [rows, T + 1], as views of the mapped file."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        width = table.schema.field(COLUMN).type.list_size
        chunks = [chunk.flatten() for chunk in table[COLUMN].chunks]
        self._batches = [chunk.to_numpy(zero_copy_only=True).reshape(-1, width) for chunk in chunks]
        self._ends = np.cumsum([len(batch) for batch in self._batches], dtype=np.int64)
        self.shape = (int(self._ends[-1]), width)
        self.dtype = self._batches[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        """Returns rows by number, [n, T + 1]. Raises IndexError for one that does not exist."""
        ids = np.asarray(ids, dtype=np.int64)
        if ids.size and not (ids.min() >= 0 and ids.max() < len(self)):
            raise IndexError(f"rows {ids.min()} to {ids.max()} of {len(self)}")
        out = np.empty((len(ids), self.shape[1]), dtype=self.dtype)
        batches = np.searchsorted(self._ends, ids, side="right")
        for number in np.unique(batches):
            here, batch = batches == number, self._batches[number]
            out[here] = batch[ids[here] - (self._ends[number] - len(batch))]
        return out

    def __reduce__(self) -> tuple[type[ArrowRows], tuple[Path]]:
        return ArrowRows, (self.path,)  # a copy for another process maps the file again
