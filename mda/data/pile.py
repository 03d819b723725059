"""`data=pile`: the Pile's rows in the order of Pythia's training.

Update k, counted from 1, trains on rows [1024 (k - 1), 1024 k); the checkpoint of step N has seen
the rows below 1024 N. A sample's id is its row. The corpus is the first `n_sequences` rows, the
last `held_out` of which no stream contains: rows that come after the window in training. Token
counts are those of the held-out rows, since counting all would fetch all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mda import store
from mda.data.corpus_folder import UNLABELLED, read_labels, tokenizer_hash, write_corpus
from mda.data.errors import DataError
from mda.data.shards import Layout, LocalFiles, Range, ShardRows
from mda.schema import PileConfig


def inputs(config: PileConfig, hash_file: Callable[[Path], str]) -> Mapping[str, object]:
    """Returns the inputs beside the settings. Raises DataError for a folder that does not exist."""
    if _is_local(config) and not Path(str(config.source)).is_dir():
        raise DataError(f"data.source={config.source}: no such folder")
    entering: dict[str, object] = {"tokenizer": tokenizer_hash(config.tokenizer)}
    if config.labels is not None:
        if not Path(config.labels).is_file():
            raise DataError(f"data.labels={config.labels}: no such file")
        entering["labels"] = hash_file(Path(config.labels))
    return entering


def build_from_config(out: Path, config: PileConfig, downloads: Path) -> None:
    """Fetches the held-out rows, and writes what describes the corpus."""
    labels, names = _labels(config)
    rows = shard_rows(config, downloads)
    held_out = np.arange(len(rows) - config.held_out, len(rows))
    tokens = rows[held_out]
    write_corpus(
        out,
        counts=np.bincount(tokens.ravel(), minlength=config.vocab_size).astype(np.int64),
        held_out=held_out,
        labels=labels,
        label_names=names,
        special_ids=config.special_ids,
        tokenizer=config.tokenizer,
        about={"held_out_sha256": store.hash_arrays(tokens)},
    )


def open_rows(folder: Path, config: PileConfig, downloads: Path) -> ShardRows:
    """Returns the rows, which are read on demand.

    Raises DataError where the held-out ones are not those that the corpus was built from.
    """
    rows = shard_rows(config, downloads)
    held_out = store.read_npy(folder / "held_out.npy")
    recorded = store.read_json(folder / "corpus.json")["held_out_sha256"]
    if store.hash_arrays(rows[held_out]) != recorded:
        raise DataError(
            f"data.source={config.source}: other rows than those that {config.repo} had when this "
            "corpus was built; give data.repo another name for other data"
        )
    return rows


def _labels(config: PileConfig) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Returns the labels of all rows; `unlabelled` for rows that have none."""
    if config.labels is None:
        return None, ("all",)
    n, held_out = config.n_sequences, config.held_out
    lengths = {n: "row", held_out: "held-out row"}
    labels, names = read_labels(Path(config.labels), config.label_names, lengths)
    if len(labels) == n:
        return labels, names
    names = names if UNLABELLED in names else (*names, UNLABELLED)
    of_all = np.full(n, names.index(UNLABELLED), np.int32)
    of_all[-held_out:] = labels
    return of_all, names


def shard_rows(config: PileConfig, downloads: Path) -> ShardRows:
    """Returns the first `n_sequences` rows of local shards, of a URL, or of the hub."""
    row_bytes = 2 * (config.seq_len + 1)
    n_shards = -(-config.total_rows * row_bytes // config.shard_bytes)
    names = [config.files.format(shard=i, last=n_shards - 1) for i in range(n_shards)]
    layout = Layout(tuple(names), config.shard_bytes, config.total_rows, config.seq_len + 1)
    if _is_local(config):
        reader = LocalFiles(Path(str(config.source)))
        return ShardRows(layout, reader, config.n_sequences, config.vocab_size)
    reader = Range(config.source) if config.source else _hub(config)
    parts = {"url": reader.url, "names": names, "bytes": config.shard_bytes, "row": row_bytes}
    parts |= {"block": config.rows_per_request}
    cache = downloads / f"{store.fingerprint('rows', parts)}.rows"
    return ShardRows(
        layout, reader, config.n_sequences, config.vocab_size, cache, config.rows_per_request
    )


def _is_local(config: PileConfig) -> bool:
    return config.source is not None and "://" not in config.source


def _hub(config: PileConfig) -> Range:
    from huggingface_hub import constants, get_token

    url = f"{constants.ENDPOINT}/datasets/{config.repo}/resolve/{config.revision}"
    token = get_token()
    return Range(url, {"Authorization": f"Bearer {token}"} if token else {})
