"""The group data: what the token stream is made from, one class for each kind of source."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar

from mda.schema.setting import ConfigError, Group, refuse, setting

RAW_TYPES = ("uint16", "uint32", "int32", "int64")
TOKENIZER = "tokenizer.json, folder or hub id: makes ids of texts, shows text in place of ids"
PACKINGS = ("across", "within", "rows")
BYTE_LEVEL = 256 + 2  # tokens of a byte-level tokenizer: the bytes and two special ones


@dataclass
class DataConfig(Group):
    """The ordered token stream; its class is chosen by `data=...`."""

    key: ClassVar[str] = "data"
    module: ClassVar[str] = ""
    """What builds and opens it, see mda/stages/corpus.py."""
    not_inputs: ClassVar[tuple[str, ...]] = ()
    """Settings that leave the rows as they are, or whose content counts in place of their value."""
    labelled_by: ClassVar[str | None] = None
    """The setting without which all samples have one label; None where they have several anyway."""
    name: str = setting("???", "kind of corpus, set by data=...")
    seq_len: int = setting(128, "T, predicted tokens in a sequence", low=8)
    vocab_size: int = setting(512, "tokens in the vocabulary", low=2, high=2**32)
    held_out: int = setting(512, "sequences kept out of the stream for evaluation", low=1)
    shuffle: bool = setting(True, "order the stream at random, else as it is stored")
    order_seed: int | None = setting(
        None, "seed of the stream's order, null: the run's seed", low=0, high=2**32 - 1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order_seed is not None and not self.shuffle:
            raise self._refuse("order_seed", "null with data.shuffle=false, which keeps the order")


@dataclass
class EmbeddedConfig(DataConfig):
    """Real text of installed packages, one class label for each sequence."""

    module: ClassVar[str] = "mda.data.embedded"
    name: str = setting("embedded", "kind of corpus", one_of=("embedded",))
    vocab_size: int = setting(512, "tokens in the vocabulary", low=BYTE_LEVEL, high=2**32)
    generated_share: float = setting(
        0.32, "share of the sequences that are generated documents", low=0, below=1
    )
    n_sequences: int = setting(64_000, "sequences in all, held-out ones included", low=16)
    seed: int = setting(0, "seed of generated documents and of their order", low=0, high=2**32 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_held_out(self)


@dataclass
class TemplateWeights(Group):
    """Shares of the generated document kinds, relative to each other."""

    key: ClassVar[str] = "data.templates"
    repeat: float = setting(1.0, "blocks of random fragments, repeated", low=0)
    xml: float = setting(1.0, "records under random tags", low=0)
    latex: float = setting(1.0, "tables", low=0)
    json: float = setting(1.0, "objects with shared keys", low=0)
    log: float = setting(1.0, "log lines", low=0)
    salad: float = setting(1.0, "independent words: nothing to copy", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any(getattr(self, item.name) for item in fields(self)):
            raise refuse(self.key, "all 0", "at least one weight above 0")


@dataclass
class SyntheticConfig(DataConfig):
    """Documents generated from seeded templates with planted, labelled repetition."""

    module: ClassVar[str] = "mda.data.synthetic"
    name: str = setting("synthetic", "kind of corpus", one_of=("synthetic",))
    vocab_size: int = setting(512, "tokens in the vocabulary", low=BYTE_LEVEL, high=2**32)
    n_sequences: int = setting(64_000, "sequences in all, held-out ones included", low=16)
    templates: TemplateWeights = field(default_factory=TemplateWeights)
    seed: int = setting(0, "seed of the documents", low=0, high=2**32 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_held_out(self)


@dataclass
class TokensConfig(DataConfig):
    """Token rows of your own: a 2-D .npy, or a raw file of rows of seq_len + 1 tokens."""

    module: ClassVar[str] = "mda.data.tokens"
    not_inputs: ClassVar[tuple[str, ...]] = ("path", "dtype", "labels", "tokenizer")
    labelled_by: ClassVar[str | None] = "labels"
    name: str = setting("tokens", "kind of corpus", one_of=("tokens",))
    path: str = setting(
        "???",
        "file of token rows, .npy or raw little-endian",
        accepts="the path of a 2-D .npy or of a raw file of token rows",
    )
    dtype: str | None = setting(
        None, "tokens of a raw file, null: as its .idx says, else uint16", one_of=RAW_TYPES
    )
    labels: str | None = setting(None, ".npy of one integer for each row, null for none")
    label_names: list[str] = setting([], "names of the labels, in their order")
    tokenizer: str | None = setting(None, TOKENIZER)
    special_ids: list[int] = setting([], "ids that no probe may draw: end of text, padding", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ids(self, self.special_ids)
        if self.dtype is None and self.vocab_size > 2**16 and untyped(self.path):
            limit = f"uint32, int32 or int64: uint16 cannot hold data.vocab_size={self.vocab_size}"
            raise self._refuse("dtype", limit)
        _check_label_names(self.label_names)


@dataclass
class HfConfig(DataConfig):
    """Texts or token lists that the library `datasets` reads: from the hub or from local files."""

    module: ClassVar[str] = "mda.data.hf"
    not_inputs: ClassVar[tuple[str, ...]] = ("dataset", "streaming", "revision", "tokenizer")
    labelled_by: ClassVar[str | None] = "label"
    name: str = setting("hf", "kind of corpus", one_of=("hf",))
    dataset: str = setting(
        "???",
        "hub id of a data set, or parquet, JSON lines or text files",
        accepts="a hub id, or a file, folder or pattern of .parquet, .jsonl or .txt files",
    )
    subset: str | None = setting(None, "configuration of a data set of the hub, null: its default")
    split: str = setting("train", "split of a data set of the hub, or of a folder by its names")
    revision: str | None = setting(None, "of a data set of the hub, null: the newest")
    streaming: bool = setting(False, "read the hub as a stream, else download the whole first")
    text: str = setting("text", "column of texts to be tokenized")
    tokens: str | None = setting(None, "column of token ids, in place of texts")
    tokenizer: str | None = setting(None, TOKENIZER)
    packing: str = setting(
        "across",
        "across: documents end to end; within: rows of one document; rows: each is a row already",
        one_of=PACKINGS,
    )
    end_of_text: int | None = setting(
        None, "id after each document, null: the tokenizer's own", low=0
    )
    begin_of_text: int | None = setting(
        None, "id that every row begins with, as the model was trained; null: none", low=0
    )
    label: str | None = setting(None, "column of class labels, null for none")
    ordered_by: str | None = setting(None, "column that must never decrease, null: not checked")
    n_sequences: int | None = setting(
        None, "first sequences that are kept, held-out ones included, null: all", low=16
    )
    special_ids: list[int] = setting([], "ids that no probe may draw besides end of text", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ids(self, self.special_ids)
        if self.tokens is None and self.tokenizer is None:
            raise self._refuse("tokenizer", "a tokenizer for the texts, or data.tokens=<column>")
        if self.tokens is None and self.packing == "rows":
            raise self._refuse("packing", "across or within, or data.tokens=<column of rows>")
        if self.begin_of_text is not None and self.packing == "rows":
            raise self._refuse("begin_of_text", "null with data.packing=rows, whose rows are given")
        if self.begin_of_text is not None and self.begin_of_text >= self.vocab_size:
            raise self._refuse("begin_of_text", f"below data.vocab_size={self.vocab_size}")
        ended = self.end_of_text is not None or self.tokenizer is not None
        if self.packing == "across" and not ended:
            raise self._refuse("end_of_text", "an id between documents of token ids")


STANDARD_PILE = "EleutherAI/pile-standard-pythia-preshuffled"


@dataclass
class PileConfig(DataConfig):
    """The rows of the Pile in the order of Pythia's training: raw shards, local or by range."""

    module: ClassVar[str] = "mda.data.pile"
    not_inputs: ClassVar[tuple[str, ...]] = ("source", "rows_per_request", "labels", "tokenizer")
    labelled_by: ClassVar[str | None] = "labels"
    name: str = setting("pile", "kind of corpus", one_of=("pile",))
    seq_len: int = setting(2048, "T, predicted tokens in a sequence", low=8)
    vocab_size: int = setting(50_304, "tokens in the vocabulary", low=2, high=2**16)
    shuffle: bool = setting(False, "order the stream at random, else as it is stored")
    repo: str = setting(STANDARD_PILE, "data set of the hub")
    revision: str = setting("main", "of the data set")
    source: str | None = setting(
        None, "folder or URL with the shards, null: the hub, at HF_ENDPOINT where that is set"
    )
    files: str = setting(
        "document-{shard:05d}-of-{last:05d}.bin", "names of the shards, counted from 0"
    )
    shard_bytes: int = setting(30_000_000_000, "size of every shard but the last", low=1)
    total_rows: int = setting(146_432_000, "rows in all shards together", low=1)
    rows_per_request: int = setting(1024, "rows fetched at once: those of one update", low=1)
    n_sequences: int = setting(
        2_048_512, "first rows that are used, held-out ones, which come last, included", low=16
    )
    labels: str | None = setting(
        None, ".npy of one integer for each row, or each held-out row; null for none"
    )
    label_names: list[str] = setting([], "names of the labels, in their order")
    tokenizer: str | None = setting(None, TOKENIZER)
    special_ids: list[int] = setting([0], "ids that no probe may draw", low=0)

    @property
    def is_standard(self) -> bool:
        """True if these are the rows of the hub's standard Pile."""
        return self.repo == STANDARD_PILE and self.source is None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ids(self, self.special_ids)
        _check_label_names(self.label_names)
        if self.n_sequences > self.total_rows:
            raise self._refuse("n_sequences", f"at most data.total_rows={self.total_rows}")
        _check_held_out(self)
        try:
            first, last = (self.files.format(shard=shard, last=1) for shard in (0, 1))
        except (KeyError, ValueError, IndexError):
            first = last = ""
        if first == last:
            raise self._refuse("files", "a name with {shard} and, where it is said, {last}")


def untyped(path: str) -> bool:
    """Returns whether a file of rows lacks the type of its ids, which a .npy or an .idx gives."""
    return Path(path).suffix != ".npy" and not Path(path).with_suffix(".idx").is_file()


def _check_held_out(config: EmbeddedConfig | SyntheticConfig | PileConfig) -> None:
    if config.held_out >= config.n_sequences:
        accepted = f"fewer than data.n_sequences={config.n_sequences}"
        raise refuse("data.held_out", config.held_out, accepted)


def _check_label_names(names: list[str]) -> None:
    for label in names:
        if not label or not label.isprintable():
            raise ConfigError(
                f"data.label_names has {label!r}; expected names of printable characters"
            )
        if names.count(label) > 1:
            raise ConfigError(f"data.label_names has {label!r} twice; expected each name once")


def _check_ids(config: HfConfig | PileConfig | TokensConfig, ids: list[int]) -> None:
    if any(token >= config.vocab_size for token in ids):
        raise refuse("data.special_ids", ids, f"below data.vocab_size={config.vocab_size}")
