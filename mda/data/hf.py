"""`data=hf`: documents of the hub or of local files, as packed rows of tokens in an Arrow file.

The source is a data set of the hub, which the library `datasets` reads, or local parquet, JSON
lines or text files (a text file is one document). Documents come in the order of the files; they
are tokenized and packed as they come, so memory holds a few thousand rows at most, and the rows are
written to `tokens.arrow`, which is mapped when it is read. A document is followed by the
end-of-text id where there is one, but not where documents are rows already (`data.packing=rows`).
With `data.begin_of_text` every row begins with this id, and has a token less of the documents.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mda.data import packing
from mda.data.arrow import FILE, ArrowRows, ArrowWriter
from mda.data.columns import column, names_in, refuse_missing
from mda.data.corpus_folder import UNLABELLED, tokenizer_hash, write_corpus
from mda.data.errors import DataError
from mda.data.hf_source import Opened, commit, named, open_data, unreadable
from mda.data.local_files import local_files, suffix
from mda.data.packers import PACKERS, Document, Packed
from mda.data.tokenizer import read_tokenizer
from mda.schema import ConfigError, HfConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH = 256  # documents that are read at once
CHARACTERS = 4_000_000  # of the documents that are tokenized at once, where they are several
LONGEST = 64_000_000  # characters of a document; tokenizing takes some 150 bytes for each
FORMAT = 1


def inputs(config: HfConfig, hash_file: Callable[[Path], str]) -> Mapping[str, object]:
    """Returns what identifies the data and the tokenizer, in place of their names.

    Local files count by content and order, a data set of the hub by its commit. Raises DataError
    for data that do not exist. Shuffled data have other held-out rows.
    """
    files = local_files(config.dataset, config.split)
    if files is None:
        source: dict[str, object] = {"repo": config.dataset, "commit": commit(config)}
    else:
        source = {"files": [hash_file(path) for path in files], "suffix": suffix(files[0])}
    tokenizer = tokenizer_hash(config.tokenizer)
    end = {} if config.end_of_text is not None else {"end_of_text": _end_of_text(config)}
    held_out = "drawn" if config.shuffle else "last"
    return {"source": source, "tokenizer": tokenizer, "format": FORMAT, "held_out": held_out} | end


def _end_of_text(config: HfConfig) -> int | None:
    """Returns the id after each document: as given, else the tokenizer's own."""
    end = config.end_of_text
    if config.tokenizer is not None and end is None and config.packing != "rows":
        end = read_tokenizer(config.tokenizer).end_of_text
        if end is None and config.packing == "across":
            raise DataError(
                f"data.end_of_text is not given and data.tokenizer={config.tokenizer} names none; "
                "expected the id after each document"
            )
    return end


def build_from_config(out: Path, config: HfConfig, downloads: Path) -> None:
    """Reads, tokenize, pack and writes the corpus folder.

    Raises DataError for missing columns, ids beyond the vocabulary and too few sequences.
    """
    end = _end_of_text(config)
    if end is not None and end >= config.vocab_size:
        raise DataError(f"data.end_of_text={end}: expected below data.vocab_size="
                        f"{config.vocab_size}")  # fmt: skip
    width = config.seq_len + 1
    opened = open_data(config)
    writer = ArrowWriter(out / FILE, width, config.vocab_size)
    counts = np.zeros(config.vocab_size, dtype=np.int64)
    labels: list[np.ndarray] = []
    names: dict[str, int] = {}
    with writer, packing.progress() as bars, ExitStack() as reading:
        task = bars.add_task("reading and packing documents", total=opened.total)
        stream = documents(config, opened, names, partial(bars.advance, task))
        reading.callback(stop, stream)
        left = config.n_sequences
        begins = [] if config.begin_of_text is None else [config.begin_of_text]
        for packed in PACKERS[config.packing](stream, width - len(begins), end):
            rows = packed.rows[:left]
            if begins:
                rows = np.insert(rows, 0, begins[0], axis=1)
            packed = Packed(rows, packed.labels[:left])
            counts += np.bincount(packed.rows.ravel(), minlength=config.vocab_size)
            writer.write(packed.rows)
            labels.append(packed.labels)
            left = None if left is None else left - len(packed.rows)
            if left == 0:
                break
    n = writer.n_rows
    _refuse_few(config, n)
    order, values = _sorted_labels(names, labels)
    ends = {*begins, *([] if end is None else [end])}
    write_corpus(
        out,
        counts=counts,
        held_out=_held_out(config, n),
        labels=values if config.label is not None else None,
        label_names=order,
        special_ids=sorted({*config.special_ids, *ends}),
        tokenizer=config.tokenizer,
    )


def _held_out(config: HfConfig, n: int) -> np.ndarray:
    """Returns the held-out rows: drawn at random where the stream is shuffled, else the last ones.

    Files are often sorted, so that the last rows would not be representative. The draw is the same
    for all runs, whatever their seeds.
    """
    if not config.shuffle:
        return np.arange(n - config.held_out, n)
    return np.array(sorted(Random(0).sample(range(n), config.held_out)), dtype=np.int64)


def stop(documents: Generator[Document]) -> None:
    """Ends a stream before its end, with the threads that read ahead for it.

    Threads that are left running can keep the process from ending (apache/arrow, issue 45214).
    """
    documents.close()
    gc.collect()


def open_rows(folder: Path, config: HfConfig, downloads: Path) -> ArrowRows:
    """Returns the rows, mapped."""
    return ArrowRows(folder / FILE)


def documents(
    config: HfConfig,
    opened: Opened,
    names: dict[str, int],
    advance: Callable[[int], None] = lambda n: None,
) -> Generator[Document]:
    """Yields the documents' ids and labels; new labels are added to `names`.

    Raises DataError for a column that is missing, empty or not in order, and for ids beyond the
    vocabulary.
    """
    tokenizer = read_tokenizer(config.tokenizer).tokenizer if config.tokenizer else None
    name_of = getattr((opened.records.features or {}).get(config.label), "int2str", None)
    number, last = 0, None
    for table in _reading(config, opened.records.iter(BATCH)):
        refuse_missing(config, names_in(table.schema))
        name = config.tokens or config.text
        values = column(table, name)
        if values.null_count:
            missing = number + int(np.flatnonzero(values.is_null().to_numpy(False))[0])
            raise DataError(f"{named(config)}: document {missing:,} has no {name}")
        if config.ordered_by is not None:
            last = _in_order(config, column(table, config.ordered_by).to_pylist(), last, number)
        if config.tokens is not None:
            lists = _token_lists(config, values)
        else:
            assert tokenizer is not None
            lists = _tokenized(config, values, tokenizer, number)
        _refuse_ids(config, lists, number)
        labels = ["all"] * len(table)
        if config.label is not None:
            labels = _labels(config.label, column(table, config.label), name_of)
        for ids, label in zip(lists, labels, strict=True):
            yield Document(ids, names.setdefault(label, len(names)))
        number += len(table)
        advance(len(table))


def _token_lists(config: HfConfig, values: Any) -> list[np.ndarray]:
    kind = values.type
    if hasattr(kind, "value_type") and pa.types.is_null(kind.value_type):  # all of them are empty
        return [np.empty(0, dtype=np.int64)] * len(values)
    if not hasattr(kind, "value_type") or not pa.types.is_integer(kind.value_type):
        raise DataError(f"data.tokens={config.tokens}: a column of {kind}, no lists of integers")
    flat = values.flatten().to_numpy(zero_copy_only=False)
    lengths = pc.list_value_length(values)  # type: ignore[attr-defined]
    ends = np.cumsum(lengths.to_numpy(zero_copy_only=False))
    return np.split(flat, ends[:-1])


def _tokenized(
    config: HfConfig, values: Any, tokenizer: Tokenizer, number: int
) -> list[np.ndarray]:
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise DataError(f"data.text={config.text}: a column of {values.type}, no texts")
    found: list[np.ndarray] = []
    for texts in _together(config, values.to_pylist(), number):
        encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        found += [np.array(encoding.ids, dtype=np.int64) for encoding in encoded]
    return found


def _together(config: HfConfig, texts: Sequence[str], number: int) -> Iterator[list[str]]:
    """Yields texts in groups that fit into memory as tokens; a long one is alone."""
    group: list[str] = []
    held = 0
    for offset, text in enumerate(texts):
        if len(text) > LONGEST:
            raise DataError(
                f"{named(config)}: document {number + offset:,} has {len(text):,} characters and "
                f"is tokenized whole; expected at most {LONGEST:,} (a text file is one document, "
                "a line of a .jsonl is one too)"
            )
        if group and held + len(text) > CHARACTERS:
            yield group
            group, held = [], 0
        group.append(text)
        held += len(text)
    yield group


def _refuse_ids(config: HfConfig, lists: list[np.ndarray], number: int) -> None:
    for offset, ids in enumerate(lists):
        if ids.size and not (ids.min() >= 0 and ids.max() < config.vocab_size):
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise DataError(
                f"{named(config)}: token id {wrong} in document {number + offset:,}; expected 0 "
                f"to below data.vocab_size={config.vocab_size}"
            )


def _reading(config: HfConfig, records: Iterable[Any]) -> Iterator[Any]:
    try:
        yield from records
    except ConfigError:
        raise
    except Exception as error:
        raise unreadable(config, error) from error


def _in_order(config: HfConfig, values: list[Any], last: Any, number: int) -> Any:
    for offset, value in enumerate(values):
        if value is None:
            raise DataError(f"{named(config)}: document {number + offset:,} has no "
                            f"{config.ordered_by}")  # fmt: skip
        if last is not None and value < last:
            raise DataError(
                f"data.ordered_by={config.ordered_by}: {value} after {last}, at document "
                f"{number + offset:,}; expected files in the order in which they are to be "
                "trained on"
            )
        last = value
    return last


def _labels(name: str, values: pa.Array, name_of: Callable[[int], str] | None) -> Iterator[str]:
    """Returns the names of the documents' classes; `unlabelled` for null, NaN, and -1.

    The hub's class columns use -1 for a missing label.
    """
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string,
             pa.types.is_large_string, pa.types.is_null)  # fmt: skip
    if not any(fits(values.type) for fits in kinds):
        raise DataError(
            f"data.label={name}: a column of {values.type}; expected one of texts or numbers"
        )
    for value in values.to_pylist():
        if value is None or value != value or (name_of is not None and value == -1):
            yield UNLABELLED
            continue
        text = str(value) if name_of is None else name_of(value)
        if not text or not text.isprintable():
            raise DataError(f"data.label={name}: {text!r}; expected printable characters")
        yield text


def _refuse_few(config: HfConfig, n: int) -> None:
    if config.n_sequences is not None and n < config.n_sequences:
        raise DataError(
            f"data.n_sequences={config.n_sequences}: {config.dataset} gives only {n:,} sequences "
            f"of data.seq_len={config.seq_len}"
        )
    if n <= config.held_out:
        raise DataError(
            f"data.held_out={config.held_out}: {config.dataset} gives only {n:,} sequences of "
            f"data.seq_len={config.seq_len}"
        )


def _sorted_labels(
    names: Mapping[str, int], labels: Iterable[np.ndarray]
) -> tuple[list[str], np.ndarray]:
    order = sorted(names)
    places = np.empty(len(names), dtype=np.int32)
    for place, name in enumerate(order):
        places[names[name]] = place
    return order, places[np.concatenate([np.empty(0, np.int64), *labels]).astype(np.int64)]
