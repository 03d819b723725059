"""The way of the data: corpus -> base run -> unit -> scores -> plan -> retrained arm.

Each stage is found in the store by the hash of everything that enters it, or built once. A stage
sees the ones before it and plain configuration; nothing flows back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mda.data.stream import Corpus, open_corpus, schedule, schedule_hash, stream_order
from mda.data.tokens import build_tokens, map_rows
from mda.emergence.callback import EmergenceCurve, curve_steps
from mda.emergence.measure import make_probes
from mda.model.pythia import initial_model
from mda.schema import Config, EmbeddedConfig, SyntheticConfig, TokensConfig
from mda.store import Artifact, Store, hash_file
from mda.training import checkpoint
from mda.training.loop import train
from mda.training.table import RowLog, read_rows
from mda.types import Schedule

VERSIONS = {"corpus": 1, "base": 1}
"""Raised by hand when the code of a stage changes what it computes."""

NOT_INPUTS = ("devices", "accelerator")


@dataclass(frozen=True)
class Stages:
    """What every stage needs: the configuration, the store, and where rows and bars go."""

    config: Config
    store: Store
    log: RowLog = lambda row: None
    progress: bool = True


@dataclass(frozen=True)
class Run:
    """A finished training: a base run or an arm."""

    folder: Path
    fingerprint: str
    built: bool
    wall_s: float
    curve: list[dict[str, float]]

    @property
    def checkpoints(self) -> list[int]:
        """Steps whose checkpoint was kept."""
        return checkpoint.steps(self.folder / "checkpoints")

    def checkpoint(self, step: int) -> Path:
        """Folder of a kept checkpoint. Raises KeyError with the steps there are."""
        if step not in self.checkpoints:
            raise KeyError(f"no checkpoint at step {step}; there are {self.checkpoints}")
        return checkpoint.checkpoint_folder(self.folder / "checkpoints", step)


def corpus(stages: Stages) -> Corpus:
    """The token stream's rows, from installed packages, templates or a file."""
    data = stages.config.data
    if isinstance(data, TokensConfig):
        rows = map_rows(Path(data.path), data.seq_len, data.dtype)
        artifact = _file_corpus(stages, data)
        return open_corpus(artifact.path, artifact.fingerprint, rows)
    inputs = {"version": VERSIONS["corpus"], "data": _without(asdict(data), ("shuffle",))}
    if isinstance(data, EmbeddedConfig):
        from mda.data.embedded import build_from_config, package_versions

        inputs["packages"] = package_versions(data)
        build = build_from_config
    else:
        from mda.data.synthetic import build_from_config

        assert isinstance(data, SyntheticConfig)
        build = build_from_config
    artifact = stages.store.get_or_build("corpus", inputs, lambda part: build(part, data))
    return open_corpus(artifact.path, artifact.fingerprint)


def base_schedule(config: Config, rows: Corpus, start: int = 0, end: int | None = None) -> Schedule:
    """The unedited stream of a run: ordered by its seed, or as it is stored."""
    order = stream_order(rows, config.seed if config.data.shuffle else None)
    end = config.training.last_step if end is None else end
    return schedule(order, config.training.batch_size, start, end)


def base_run(stages: Stages, rows: Corpus) -> Run:
    """Train from the initial weights to the end, with the emergence curve and checkpoints."""
    config = stages.config
    settings = config.training
    plan = base_schedule(config, rows)
    inputs = {
        "version": VERSIONS["base"],
        "corpus": rows.fingerprint,
        "schedule": schedule_hash(plan),
        "model": _model_inputs(config),
        "training": _without(asdict(settings), NOT_INPUTS),
        "emergence": asdict(config.emergence),
        "seed": config.seed,
    }
    keep = checkpoint.declared_steps(
        0, plan.end, settings.checkpoint_every, settings.checkpoint_log_spaced
    )

    def build(part: Path) -> None:
        _set_threads(settings.threads)
        tokens_per_step = plan.batch_size * rows.seq_len
        train(
            part,
            initial_model(config.model, config.seed),
            rows,
            plan,
            settings,
            checkpoints=keep,
            curves=[
                EmergenceCurve(
                    part / "curve.csv",
                    make_probes(rows, config.emergence),
                    curve_steps(0, plan.end, config.emergence.every),
                    tokens_per_step,
                )
            ],
            log=stages.log,
            progress="base run" if stages.progress else None,
        )

    return _as_run(stages.store.get_or_build("base", inputs, build), stages.log)


def _as_run(artifact: Artifact, log: RowLog) -> Run:
    curve = read_rows(artifact.path / "curve.csv")
    if not artifact.built:  # a run that was found is logged as if it had just been trained
        for row in sorted(
            curve + read_rows(artifact.path / "train.csv")[19::20], key=lambda row: row["step"]
        ):
            log(row)
    return Run(
        artifact.path, artifact.fingerprint, artifact.built, artifact.manifest["wall_s"], curve
    )


def _file_corpus(stages: Stages, data: TokensConfig) -> Artifact:
    files = {
        name: hash_file(Path(path))
        for name in ("path", "labels", "tokenizer")
        if (path := getattr(data, name)) is not None
    }
    settings = _without(asdict(data), ("path", "labels", "tokenizer", "shuffle"))
    inputs = {"version": VERSIONS["corpus"], "data": settings, "files": files}

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

    return stages.store.get_or_build("corpus", inputs, build)


def _model_inputs(config: Config) -> dict[str, object]:
    inputs = _without(asdict(config.model), ("name", "peak_lr", "source"))
    source = config.model.source
    if source == "scratch":
        return inputs | {"source": source}
    files = sorted(Path(source).glob("*.safetensors"))
    return inputs | {"source": {path.name: hash_file(path) for path in files}}


def _without(values: Mapping[str, object], names: tuple[str, ...]) -> dict[str, object]:
    return {key: value for key, value in values.items() if key not in names}


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
