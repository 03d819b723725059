"""The documents of `data=hf`: local files, or a commit of a data set of the hub."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, NamedTuple

from mda.data.columns import root, wanted
from mda.data.errors import DataError, temporary
from mda.data.local_files import LocalTables, local_files
from mda.schema import ConfigError, HfConfig, Unavailable


class Opened(NamedTuple):
    """A data set that gives Arrow tables, and how many records it has where that is known."""

    records: Any  # with `iter(batch size)`, and `features` by column
    total: int | None


def open_data(config: HfConfig) -> Opened:
    """Returns the records of the data set. Raises DataError where it cannot be read."""
    try:
        files = local_files(config.dataset, config.split)
        if files is not None:
            local = LocalTables(config, files)
            return Opened(local, local.total)
        return _of_hub(config)
    except ConfigError:
        raise
    except Exception as error:  # of the network, the hub, the files: each its own kind
        raise unreadable(config, error) from error


def _of_hub(config: HfConfig) -> Opened:
    from datasets import load_dataset

    load: Any = load_dataset  # its types differ with the value of streaming
    dataset = load(
        config.dataset,
        config.subset,
        split=config.split,
        revision=commit(config),
        streaming=config.streaming,
    )
    total = None if config.streaming else len(dataset)
    if dataset.column_names:
        roots = [root(name, dataset.column_names) for name in wanted(config)]
        if set(roots) <= set(dataset.column_names):
            dataset = dataset.select_columns(list(dict.fromkeys(roots)))
    return Opened(dataset.with_format("arrow"), total)


def commit(config: HfConfig) -> str:
    """Returns the commit that is read.

    It is resolved once, so a moving branch makes no difference.
    """
    if config.revision and re.fullmatch(r"[0-9a-f]{40}", config.revision):
        return config.revision
    try:
        return _newest(config.dataset, config.revision)
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        if temporary(error):
            said = f"the hub cannot be asked now ({why}); start again later"
            raise Unavailable(f"{named(config)}: {said}") from error
        raise DataError(
            f"{named(config)}: no such file, and the hub knows no such data set ({why})"
        ) from error


@cache
def _newest(dataset: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(dataset, revision=revision).sha)


def unreadable(config: HfConfig, error: Exception) -> ConfigError:
    """Returns the error of any library as one that names the data set, with its first line."""
    lines = str(error.__cause__ or error).split("\n")
    why = " ".join(lines[0].split())[:300] or type(error).__name__
    kind = Unavailable if temporary(error) else DataError
    return kind(f"{named(config)}: it cannot be read ({why})")


def named(config: HfConfig) -> str:
    """Returns the name of the data set for errors."""
    return f"data.dataset={config.dataset}"
