"""The corpus and the order in which a run sees it.

A source of data is a class of settings (mda/schema/data.py) whose `module` has three functions:
`inputs(config, hash_file)`, what enters the corpus besides its settings; `build_from_config(out,
config, downloads)`, which writes its folder; and, where the rows are not the folder's
`tokens.npy`, `open_rows(folder, config, downloads)`. In `downloads` lies what has been fetched.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import cast

import numpy as np

from mda.data.corpus_folder import UNLABELLED
from mda.data.shards import ShardRows
from mda.data.stream import Corpus, open_corpus, schedule, stream_order
from mda.schema import Config, PileConfig, PublishedConfig, refuse
from mda.stages.context import Context, barrier, rank, without, world
from mda.stages.found import is_there
from mda.types import Schedule

VERSION = 2
SHARE = 0.05  # of all rows, from which a class should have held-out ones


def corpus_of(context: Context) -> Corpus:
    """The token stream's rows: built, or found in the store, and opened.

    What the settings name is looked at in both cases: a missing file is a DataError.
    """
    data = context.config.data
    source = import_module(data.module)
    settings = without(asdict(data), "shuffle", "order_seed", *data.not_inputs)
    inputs = source.inputs(data, context.store.hash_file)
    entering = {"version": VERSION, "data": settings, **inputs}
    downloads = context.store.root / "downloads"
    build = partial(source.build_from_config, config=data, downloads=downloads)
    artifact = context.store.get_or_build("corpus", entering, build, (data.module,), "cpu")
    if rank() == 0 and (seen := _trained_on_held_out(context.config)):
        context.store.warn(artifact.fingerprint, seen)
    if not is_there(artifact):
        return cast(Corpus, artifact)
    rows = None
    if hasattr(source, "open_rows"):
        rows = source.open_rows(artifact.path, data, downloads)
    corpus = open_corpus(artifact.path, artifact.fingerprint, rows)
    if rank() == 0 and (missing := _not_held_out(corpus)):
        context.store.warn(artifact.fingerprint, missing)
    return corpus


def _not_held_out(corpus: Corpus) -> str | None:
    """The sentence where a class of a twentieth of the rows or more has no held-out one."""
    n, kinds = len(corpus.labels), len(corpus.label_names)
    rows = np.bincount(corpus.labels, minlength=kinds)
    held_out = np.bincount(corpus.labels[corpus.held_out], minlength=kinds)
    lacking = [name for name, all_of, held in zip(corpus.label_names, rows, held_out, strict=True)
               if name != UNLABELLED and all_of >= SHARE * n and not held]  # fmt: skip
    if not lacking or not len(corpus.held_out):
        return None
    return (
        f"no held-out row is of {', '.join(lacking)}, so that held-out loss, in-context learning "
        "and behaviour say nothing of it; hold out more rows, or rows of it: unless data=hf with "
        "data.shuffle=true draws them, they are the last ones"
    )


def _trained_on_held_out(config: Config) -> str | None:
    """The sentence where published checkpoints have seen the rows that are held out here."""
    base, data, batch_size = config.base, config.data, config.training.batch_size
    if not (isinstance(base, PublishedConfig) and isinstance(data, PileConfig)) or data.shuffle:
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
    """The corpus' tokenizer. Raises ConfigError where it has none, and so no text."""
    if corpus.tokenizer is None:
        raise refuse("data.tokenizer", None, "a tokenizer: motifs are found in text")
    return corpus.tokenizer


def stream(config: Config, corpus: Corpus) -> np.ndarray:
    """Position in the stream -> sample id: the one order of a run and of all its arms.

    Drawn from `data.order_seed`, else from the run's seed; with `data.shuffle=false` as stored.
    """
    return stream_order(corpus, order_seed(config))


def order_seed(config: Config) -> int | None:
    """What the order of the stream is drawn from; None for the corpus' own order."""
    seed = config.seed if config.data.order_seed is None else config.data.order_seed
    return seed if config.data.shuffle else None


def stream_inputs(config: Config) -> dict[str, object]:
    """What decides which samples a step of the unedited stream has, beside the corpus."""
    return {"order": order_seed(config), "batch_size": config.training.batch_size}


def base_schedule(
    config: Config, corpus: Corpus, start: int = 0, end: int | None = None
) -> Schedule:
    """The unedited stream of a run. Raises DataError where it is too short for the steps."""
    end = config.training.last_step if end is None else end
    return schedule(stream(config, corpus), config.training.batch_size, start, end)


def following(config: Config, corpus: Corpus, step: int) -> np.ndarray:
    """Samples that a run would see from a step on, to the end of the stream."""
    return stream(config, corpus)[step * config.training.batch_size :]


def fetch(context: Context, corpus: Corpus, sample_ids: np.ndarray, together: bool = False) -> None:
    """Bring samples that lie elsewhere to this machine, with progress; nothing for local ones.

    `together`: all processes call it, and each brings its share before any goes on.
    """
    if isinstance(corpus.tokens, ShardRows):
        ids = np.asarray(sample_ids)
        missing = corpus.tokens.missing(ids[ids < len(corpus.tokens)])
        if together:  # by their numbers: another process may have brought some of its own
            missing = [block for block in missing if block % world() == rank()]
        for block in context.bar(missing, "fetching rows", len(missing)):
            corpus.tokens.fetch(block)
        if together:
            barrier()
