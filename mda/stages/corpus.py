"""The corpus: rows of tokens, which are built or found, and fetched where they are remote.

A source of data is a class of settings (mda/schema/data.py) whose `module` has three functions:
`inputs(config, hash_file)`, what enters the corpus besides its settings; `build_from_config(out,
config, downloads)`, which writes its folder; and, where the rows are not the folder's `tokens.npy`,
`open_rows(folder, config, downloads)`. Fetched data are kept in `downloads`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from mda.cost import stages as cost
from mda.data.corpus_folder import UNLABELLED
from mda.data.shards import ShardRows
from mda.data.stream import Corpus, open_corpus
from mda.schema import DataConfig, PileConfig, PublishedConfig, refuse
from mda.stages.context import Runtime, barrier, rank, without, world
from mda.stages.declared import CORPUS
from mda.stages.stage import HashFile, Stage
from mda.store import Artifact

VERSION = 2  # raised when the same settings give other rows: keys of data hold no code
SHARE = 0.05  # of all rows, from which a class should have held-out ones


@dataclass(frozen=True)
class CorpusStage(Stage[Corpus]):
    """The token stream's rows.

    The sources are checked even where the corpus is in the store: a missing file is a DataError.
    """

    declared = CORPUS
    costs = staticmethod(cost.corpus)

    data: DataConfig

    @property
    def source(self) -> Any:
        """The module that builds it."""
        return import_module(self.data.module)

    def inputs(self, hash_file: HashFile) -> Mapping[str, object]:
        settings = without(asdict(self.data), "shuffle", "order_seed", *self.data.not_inputs)
        inputs = self.source.inputs(self.data, hash_file)
        return {"version": VERSION, "data": settings, **inputs}

    def code(self) -> tuple[str, ...]:
        return (self.data.module,)

    def device(self) -> str:
        return "cpu"

    def build(self, part: Path, at: Runtime) -> None:
        self.source.build_from_config(part, config=self.data, downloads=at.store.root / "downloads")

    def open(self, artifact: Artifact, at: Runtime) -> Corpus:
        rows, folder = None, artifact.path
        if hasattr(self.source, "open_rows"):
            rows = self.source.open_rows(folder, self.data, at.store.root / "downloads")
        corpus = open_corpus(folder, artifact.fingerprint, rows)
        if rank() == 0 and (missing := _not_held_out(corpus)):
            at.store.warn(artifact.fingerprint, missing)
        return corpus


def _not_held_out(corpus: Corpus) -> str | None:
    """Returns a warning for a class of 5 % or more of the rows without a held-out one."""
    n, kinds = len(corpus.labels), len(corpus.label_names)
    rows = np.bincount(corpus.labels, minlength=kinds)
    held_out = np.bincount(corpus.labels[corpus.held_out], minlength=kinds)
    lacking = [name for name, all_of, held in zip(corpus.label_names, rows, held_out, strict=True)
               if name != UNLABELLED and all_of >= SHARE * n and not held]  # fmt: skip
    if not lacking or not len(corpus.held_out):
        return None
    return (
        f"no held-out row is of {', '.join(lacking)}, so held-out loss, in-context learning and "
        "capabilities say nothing about it; hold out more rows, or rows of it (they are the last "
        "ones, unless data=hf with data.shuffle=true draws them)"
    )


def trained_on_held_out(base: PublishedConfig, data: DataConfig, batch_size: int) -> str | None:
    """Returns a warning where published checkpoints were trained on the held-out rows."""
    if not isinstance(data, PileConfig) or data.shuffle:
        return None
    first = data.n_sequences - data.held_out
    steps = [step for step in base.steps if step * batch_size > first]
    if not steps:
        return None
    enough = steps[-1] * batch_size + data.held_out
    advice = f"; data.n_sequences={enough} holds out later ones" * (enough <= data.total_rows)
    return (
        f"checkpoints from step {steps[0]} on were trained on rows that data.n_sequences="
        f"{data.n_sequences} holds out: their held-out loss is that of training text{advice}"
    )


def tokenizer_of(corpus: Corpus) -> Path:
    """Returns the corpus' tokenizer. Raises ConfigError where it has none, and so no text."""
    if corpus.tokenizer is None:
        raise refuse("data.tokenizer", None, "a tokenizer: motifs are found in text")
    return corpus.tokenizer


def fetch(at: Runtime, corpus: Corpus, sample_ids: np.ndarray, together: bool = False) -> None:
    """Brings remote samples to this machine, with progress; does nothing for local ones.

    With `together`, all processes call it, and each brings its share before any continues.
    """
    if isinstance(corpus.tokens, ShardRows):
        ids = np.asarray(sample_ids)
        missing = corpus.tokens.missing(ids[ids < len(corpus.tokens)])
        if together:  # by their numbers: another process may have brought some of its own
            missing = [block for block in missing if block % world() == rank()]
        for block in at.bar(missing, "fetching rows", len(missing)):
            corpus.tokens.fetch(block)
        if together:
            barrier()
