"""Where the documents of `data=hf` lie: local files, or a commit of a data set of the hub."""

from __future__ import annotations

import re
from functools import cache
from glob import glob, has_magic
from pathlib import Path
from typing import Any, NamedTuple

from mda.data.errors import DataError
from mda.schema import HfConfig

READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".txt": "text"}


class Opened(NamedTuple):
    """A data set that gives Arrow tables, and how many records it has where that is known."""

    records: Any
    total: int | None


def local_files(path: str) -> list[Path] | None:
    """Files of a local data set, sorted; None for a name that can only be the hub's.

    Raises DataError for a path that leads to no file, and for files of several kinds.
    """
    found = Path(path)
    if found.is_dir():
        files = [file for file in sorted(found.rglob("*")) if suffix(file) in READERS]
    elif has_magic(path):
        files = sorted(map(Path, glob(path, recursive=True)))
    elif found.is_file():
        files = [found]
    elif suffix(found) in READERS or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        raise DataError(f"data.dataset={path}: no such file")
    else:
        return None
    kinds = sorted({READERS.get(suffix(file), file.suffix) for file in files})
    if len(kinds) != 1 or kinds[0] not in READERS.values():
        what = f"files of {', '.join(kinds)}" if kinds else "no files"
        raise DataError(
            f"data.dataset={path}: {what}; accepted: files of one kind, {', '.join(READERS)}"
        )
    return files


def open_data(config: HfConfig) -> Opened:
    """The records of the data set. Raises DataError, one sentence, where it cannot be read."""
    from datasets import load_dataset

    load: Any = load_dataset  # its types differ with the value of streaming
    files, streaming = local_files(config.dataset), config.streaming
    try:
        if files is None:
            found = load(
                config.dataset,
                config.subset,
                split=config.split,
                revision=commit(config),
                streaming=streaming,
            )
        else:
            reader = READERS[suffix(files[0])]
            more = {"sample_by": "document"} if reader == "text" else {}
            names = [str(path) for path in files]
            found = load(reader, data_files=names, split="train", streaming=streaming, **more)
    except Exception as error:  # of the network, the hub, the files: each its own kind
        raise unreadable(config, error) from error
    total = None if streaming else len(found)
    wanted = [config.tokens or config.text, config.label, config.ordered_by]
    wanted = [column for column in wanted if column is not None]
    if found.column_names and set(wanted) <= set(found.column_names):
        found = found.select_columns(wanted)
    return Opened(found.with_format("arrow"), total)


def commit(config: HfConfig) -> str:
    """The commit that is read; asked for once, so that a branch that moves stays where it was."""
    if config.revision and re.fullmatch(r"[0-9a-f]{40}", config.revision):
        return config.revision
    try:
        return _newest(config.dataset, config.revision)
    except Exception as error:
        raise DataError(
            f"{named(config)}: no such file, and the hub knows no such data set or "
            f"cannot be reached ({' '.join(str(error).split())[:200]})"
        ) from error


@cache
def _newest(dataset: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(dataset, revision=revision).sha)


def unreadable(config: HfConfig, error: Exception) -> DataError:
    """What any library's error on the way becomes: one sentence with its first line."""
    lines = str(error.__cause__ or error).split("\n")
    why = " ".join(lines[0].split())[:300] or type(error).__name__
    return DataError(f"{named(config)}: it cannot be read ({why})")


def named(config: HfConfig) -> str:
    """The data set as errors name it."""
    return f"data.dataset={config.dataset}"


def suffix(path: Path) -> str:
    """The suffix without that of a compression: `.jsonl` of x.jsonl.gz."""
    return (path.with_suffix("") if path.suffix in (".gz", ".zst", ".xz") else path).suffix
