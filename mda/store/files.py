"""Readers and writers: json, csv, npy and safetensors only, no pickle; hashes of files and arrays.

A writer replaces a file in one step, so that a reader sees the old content or the new one.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a temporary file beside `path` that takes its place when the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = "b" not in mode
    try:
        with open(
            temporary, mode, encoding="utf-8" if text else None, newline="" if text else None
        ) as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Writes indented UTF-8 JSON. Raises ValueError for NaN and infinities."""
    with replacing(path) as file:
        json.dump(content, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file.

    Raises ValueError for a file that is not JSON, or is nested too deep to be read, and for a pipe,
    which would be waited for without end.
    """
    if Path(path).is_fifo():
        raise ValueError(f"{Path(path).name} is a pipe, and no file")
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except RecursionError:
        raise ValueError(f"{Path(path).name} is nested too deep") from None


def read_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file. Raises ValueError for anything else."""
    if not isinstance(content := read_json(path), dict):
        raise ValueError(f"{Path(path).name} holds no object, but a {type(content).__name__}")
    return content


def write_csv(
    path: Path, rows: Iterable[Mapping[str, object]], columns: Sequence[str] | None = None
) -> None:
    """Writes a line per mapping; `columns` defaults to the first row's keys.

    None becomes an empty cell.

    Raises ValueError for a row with a key that is no column.
    """
    rows = list(rows)
    with replacing(path) as file:
        names = columns if columns is not None else list(rows[0]) if rows else []
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Returns rows as mappings of strings. Raises ValueError for a file that is not CSV."""
    with open(path, encoding="utf-8", newline="") as file:
        return csv_rows(file)


def csv_rows(lines: Iterable[str]) -> list[dict[str, str]]:
    """Returns the rows of an open CSV file, like `read_csv`."""
    try:
        return list(csv.DictReader(lines))
    except csv.Error as error:
        raise ValueError(f"a line is no CSV: {error}") from error


def write_npy(path: Path, array: np.ndarray) -> None:
    """Writes an array as .npy, without pickled objects."""
    with replacing(path, "wb") as file:
        np.save(file, array, allow_pickle=False)


def write_npy_parts(
    path: Path, parts: Iterable[np.ndarray], shape: tuple[int, ...], dtype: type
) -> None:
    """Writes an array from parts of consecutive rows, with one part in memory at a time.

    Raises ValueError where the parts are not as long as the array.
    """
    with replacing(path, "wb") as file:
        array = np.lib.format.open_memmap(file.name, "w+", np.dtype(dtype), shape)
        done = 0
        for part in parts:
            array[done : done + len(part)] = part
            done += len(part)
        if done != len(array):
            raise ValueError(f"{path.name}: {done} rows of {len(array)}")
        array.flush()


def read_npy(path: Path, mmap: bool = False) -> np.ndarray:
    """Returns the array, or with `mmap` a read-only view of the file that is read as it is used."""
    return np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes named tensors, made contiguous where needed; metadata are strings.

    The bytes go from each tensor to the file: `safetensors.torch.save` would hold them all twice
    more, which was the largest part of a fit's memory.
    """
    from safetensors.torch import save_file  # torch takes seconds, `mda store ls` needs none

    dense = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with replacing(path, "wb") as file:
        save_file(dense, file.name, dict(metadata) if metadata else None)
        # That puts a file in the place of ours which its owner alone may read.
        os.chmod(file.name, os.fstat(file.fileno()).st_mode & 0o777)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Returns named tensors, on the CPU."""
    from safetensors.torch import load_file

    return load_file(path)


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_arrays(*arrays: np.ndarray) -> str:
    """Returns the SHA-256 over dtype, shape and C-order bytes of each array, 64 hex digits."""
    digest = hashlib.sha256()
    for array in arrays:
        array = np.asarray(array)
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
