"""The corpus and the order in which a run sees it."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

from mda.data import embedded, synthetic
from mda.data.stream import Corpus, open_corpus, schedule, stream_order
from mda.data.tokens import build_tokens, map_rows
from mda.schema import Config, EmbeddedConfig, SyntheticConfig, TokensConfig
from mda.stages.context import Context, without
from mda.store import Artifact, hash_file
from mda.types import Schedule

VERSION = 1


def corpus(context: Context) -> Corpus:
    """The token stream's rows, from installed packages, templates or a file."""
    data = context.config.data
    if isinstance(data, TokensConfig):
        rows = map_rows(Path(data.path), data.seq_len, data.dtype)
        artifact = _from_file(context, data)
        return open_corpus(artifact.path, artifact.fingerprint, rows)
    if isinstance(data, EmbeddedConfig):
        inputs, build = embedded.inputs(data), partial(embedded.build_from_config, config=data)
    elif isinstance(data, SyntheticConfig):
        inputs, build = synthetic.inputs(data), partial(synthetic.build_from_config, config=data)
    else:
        raise TypeError(f"no builder for data={data.name}")
    entering = {"version": VERSION, "data": without(asdict(data), "shuffle"), **inputs}
    artifact = context.store.get_or_build("corpus", entering, build)
    return open_corpus(artifact.path, artifact.fingerprint)


def base_schedule(config: Config, rows: Corpus, start: int = 0, end: int | None = None) -> Schedule:
    """The unedited stream of a run: ordered by its seed, or as it is stored."""
    order = stream_order(rows, config.seed if config.data.shuffle else None)
    end = config.training.last_step if end is None else end
    return schedule(order, config.training.batch_size, start, end)


def _from_file(context: Context, data: TokensConfig) -> Artifact:
    files = {
        name: hash_file(Path(path))
        for name in ("path", "labels", "tokenizer")
        if (path := getattr(data, name)) is not None and Path(path).is_file()
    }
    settings = without(asdict(data), "path", "labels", "tokenizer", "shuffle")
    inputs = {"version": VERSION, "data": settings, "files": files}

    def build(part: Path) -> None:
        build_tokens(
            part,
            path=Path(data.path),
            seq_len=data.seq_len,
            dtype=data.dtype,
            vocab_size=data.vocab_size,
            special_ids=data.special_ids,
            labels=Path(data.labels) if data.labels else None,
            label_names=data.label_names,
            tokenizer=Path(data.tokenizer) if data.tokenizer else None,
            held_out=data.held_out,
        )

    return context.store.get_or_build("corpus", inputs, build)
