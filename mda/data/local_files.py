"""Local files of documents: which of them are read, and what is in them, as Arrow tables.

The files are read one after the other, a few records at a time. Nothing is cached, so their present
content is read.
"""

from __future__ import annotations

import io
import json
import lzma
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from glob import glob, has_magic
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mda.data.columns import column, names_in, refuse_missing, root, wanted
from mda.data.errors import DataError
from mda.schema import ConfigError, HfConfig

READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".txt": "text"}
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".xz": None}
SPLITS = {  # as the hub finds them in the names of files and folders
    "train": "train|training",
    "validation": "validation|valid|dev|val",
    "test": "test|testing|eval|evaluation",
}


def local_files(path: str, split: str) -> list[Path] | None:
    """Returns the files of a local data set, sorted; None for a name that can only be the hub's.

    A path that exists is taken literally; any other is a pattern. Of a folder, the files of a split
    are taken, and none whose name, or whose folder's, begins with a dot. Raises DataError for a
    path without files, for files of several kinds, and for one that is there twice.
    """
    location = Path(path)
    if location.is_dir():
        files = _of_split(location, split)
    elif location.is_file():
        files = [location]
    elif has_magic(path):
        files = [file for file in sorted(map(Path, glob(path, recursive=True))) if file.is_file()]
    elif suffix(location) in READERS or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        raise DataError(f"data.dataset={path}: no such file")
    else:
        return None
    if split != "train" and not location.is_dir():
        raise DataError(
            f"data.split={split}: data.dataset={path} names the files that are read; expected "
            "train, or a folder whose files name their split"
        )
    files = _once(path, files)
    kinds = sorted({READERS.get(suffix(file), file.suffix) for file in files})
    if len(kinds) != 1 or kinds[0] not in READERS.values():
        what = f"files of {', '.join(kinds)}" if kinds else "no files"
        raise DataError(
            f"data.dataset={path}: {what}; expected files of one kind, {', '.join(READERS)}"
        )
    return files


def suffix(path: Path) -> str:
    """Returns the suffix without that of a compression: `.jsonl` of x.jsonl.gz."""
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix


def _of_split(folder: Path, split: str) -> list[Path]:
    inside = [file.relative_to(folder) for file in sorted(folder.rglob("*"))]
    inside = [file for file in inside if suffix(file) in READERS and (folder / file).is_file()]
    inside = [file for file in inside if not any(part.startswith(".") for part in file.parts)]
    named = {file: _splits_in(file) for file in inside}
    if not any(named.values()):
        named = {file: ["train"] for file in inside}
    for file, splits in named.items():
        if len(splits) != 1:
            what = f"names the splits {' and '.join(splits)}" if splits else "names no split"
            raise DataError(
                f"data.dataset={folder}: {file} {what}, where other files name one; expected one "
                "split in the name of each file or of its folder, or a pattern, which takes all "
                "files that it matches"
            )
    splits_here = sorted({splits[0] for splits in named.values()})
    if splits_here and split not in splits_here:
        raise DataError(
            f"data.split={split}: data.dataset={folder} has no such files; expected "
            f"{', '.join(splits_here)}"
        )
    return [folder / file for file, splits in named.items() if splits == [split]]


def _splits_in(file: Path) -> list[str]:
    edge = r"[-._ 0-9/]"
    name = f"/{file.as_posix()}"
    return [split for split, words in SPLITS.items() if re.search(f"{edge}({words}){edge}", name)]


def _once(path: str, files: Sequence[Path]) -> list[Path]:
    """Returns the files, each real one once.

    Raises DataError for a file beside its compressed copy.
    """
    real = list({file.resolve(): file for file in reversed(files)}.values())[::-1]
    plain: dict[Path, Path] = {}
    for file in real:
        first = plain.setdefault(file.with_suffix("") if file.suffix in COMPRESSED else file, file)
        if first is not file:
            raise DataError(
                f"data.dataset={path}: {file} and {first} are one file, once compressed; expected "
                "one of the two"
            )
    return real


class LocalTables:
    """The documents of local files; `total` is their number where it is known before."""

    def __init__(self, config: HfConfig, files: Sequence[Path]) -> None:
        """Raises ConfigError for a column that none of the files has."""
        self.files, self.wanted = files, wanted(config)
        self.kind = READERS[suffix(files[0])]
        self.total: int | None = None
        self.features: Mapping[str, Any] = {}
        if self.kind == "parquet":
            self._look_at_parquet(config)
        else:
            refuse_missing(config, self._columns())

    def iter(self, batch_size: int) -> Iterator[pa.Table]:
        """Yields the tables of the wanted columns, null where a document has none.

        Raises ValueError, which names the file, for one that cannot be read.
        """
        if self.kind == "parquet":
            for path in self.files:
                with _named(path):
                    yield from self._parquet(path, batch_size)
        elif self.kind == "text":
            for batch in _batches(map(_document, self.files), batch_size):
                yield pa.table({"text": batch})
        else:
            for path in self.files:
                with _named(path):
                    for batch in _batches(_records(path), batch_size):
                        columns = ([_reach(one, name) for one in batch] for name in self.wanted)
                        yield pa.table(dict(zip(self.wanted, columns, strict=True)))

    def _look_at_parquet(self, config: HfConfig) -> None:
        names, self.total = dict[str, None](), 0
        for path in self.files:
            with _named(path), pq.ParquetFile(path) as file:
                names |= dict.fromkeys(names_in(file.schema_arrow))
                self.total += file.metadata.num_rows
                if not self.features and b"huggingface" in (file.schema_arrow.metadata or {}):
                    from datasets import Features

                    self.features = Features.from_arrow_schema(file.schema_arrow)
        refuse_missing(config, list(names))

    def _parquet(self, path: Path, batch_size: int) -> Iterator[pa.Table]:
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            roots = [name for name in there if name in {root(w, there) for w in self.wanted}]
            for batch in file.iter_batches(batch_size, columns=roots):
                table = pa.Table.from_batches([batch])
                yield pa.table({name: column(table, name) for name in self.wanted})

    def _columns(self) -> list[str]:
        """Returns the names of columns, up to the record where all wanted ones have been seen."""
        if self.kind == "text":
            return ["text"]
        names: dict[str, None] = {}
        for path in self.files:
            with _named(path):
                for record in _records(path):
                    names |= dict.fromkeys(_paths(record))
                    if names.keys() >= {*self.wanted}:
                        return list(names)
        return list(names)


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def _document(path: Path) -> str:
    with _named(path), _opened(path, "utf-8") as file:
        return file.read()


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a file of JSON lines, or of one list."""
    with _opened(path, "utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            listed = line.lstrip().startswith("[")
            try:
                content = json.loads(line + file.read() if listed else line)
            except ValueError as error:
                raise ValueError(f"line {number} is not JSON: {error}") from None
            for record in content if listed else [content]:
                if not isinstance(record, dict):
                    raise ValueError(f"line {number} has a record that is no JSON object")
                yield record


def _reach(record: Any, name: str) -> Any:
    """Returns a record's value by name, where dots lead into nested records; None if missing."""
    if not isinstance(record, dict):
        return None
    if name in record:
        return record[name]
    head, dot, rest = name.partition(".")
    return _reach(record.get(head), rest) if dot else None


def _paths(record: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for name, value in record.items():
        yield before + name
        if isinstance(value, dict):
            yield from _paths(value, f"{before}{name}.")


@contextmanager
def _opened(path: Path, encoding: str) -> Iterator[IO[str]]:
    unpacked = partial(pa.input_stream, compression=COMPRESSED.get(path.suffix))
    stream: Any = (lzma.LZMAFile if path.suffix == ".xz" else unpacked)(str(path))
    with io.TextIOWrapper(io.BufferedReader(stream), encoding=encoding) as file:
        yield file


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Reraises an error of any library as one that names the file, of the same kind."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ValueError(f"{path}: {error or type(error).__name__}") from None
