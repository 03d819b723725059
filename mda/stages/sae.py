"""The sparse autoencoder whose features are units: read from a folder, or trained on a base run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from mda import store
from mda.data.stream import Corpus, stream_order
from mda.model.architecture import Architecture
from mda.sae import sparsify
from mda.sae.autoencoder import Sae
from mda.sae.hooks import Hookpoint, activations
from mda.sae.load import load_sae
from mda.sae.quality import Quality, quality
from mda.sae.train import train_topk_sae
from mda.schema import ConfigError, SaeConfig
from mda.stages.context import Context, without
from mda.stages.corpus import fetch
from mda.stages.found import Made, NotBuilt, known
from mda.stages.runs import Run
from mda.training.table import read_rows

NOT_INPUTS = ("name", "layer", "checkpoint")  # the inputs say what they mean


@dataclass(frozen=True)
class TrainedSae(Made):
    """An SAE that was trained, or found: its folder holds it in the layout of sparsify, with
    `quality.json` and `history.csv` beside it."""

    step: int  # of the base run

    @property
    def hook(self) -> Hookpoint:
        """What it reads."""
        return self.sae.hook

    @cached_property
    def sae(self) -> Sae:
        """The SAE, in float32 on the CPU."""
        files = store.read_json(self.folder / "manifest.json")["files"]
        (settings,) = (name for name in files if name.endswith("/cfg.json"))
        return load_sae((self.folder / settings).parent, "sparsify")

    @cached_property
    def quality(self) -> Quality:
        """Explained variance, active features and dead share on held-out sequences."""
        return Quality(**store.read_json(self.folder / "quality.json"))

    @cached_property
    def history(self) -> list[dict[str, float]]:
        """What it explained in the course of its training, see `mda.sae.train.Progress`."""
        return read_rows(self.folder / "history.csv")


def sae_of(context: Context, corpus: Corpus, base: Run) -> Sae | None:
    """The SAE that the unit asks for: its `source`, or one that is trained; None for other units.

    Raises ConfigError for one that does not fit the model.
    """
    unit = context.config.unit
    if not unit.reads_sae:
        return None
    if (source := getattr(unit, "source", None)) is None:
        return trained_sae(context, context.config.sae, corpus, base).sae
    sae, sizes = load_sae(Path(source)), base.architecture
    if sae.d_in != sizes.d_model or sae.hook.layer >= sizes.n_layers:
        raise ConfigError(
            f"unit.source={source}: reads {sae.hook} of width {sae.d_in}; accepted: width "
            f"{sizes.d_model}, layers 0 to {sizes.n_layers - 1} of this model"
        )
    return sae


def sae_key(context: Context, corpus: Corpus, base: Run) -> str:
    """The hash of the SAE that the unit asks for, or the key under which it will be trained."""
    if (source := getattr(context.config.unit, "source", None)) is not None:
        return load_sae(Path(source)).fingerprint()
    return trained_sae(context, context.config.sae, corpus, base).fingerprint


def trained_sae(context: Context, settings: SaeConfig, corpus: Corpus, base: Run) -> TrainedSae:
    """Train a top-k SAE on samples of the stream, drawn by its seed; measure it on held-out ones.

    The history is logged as `sae/explained_variance` and `sae/dead_share`, its `step` is the
    SAE's own.
    """
    step = base.checkpoints[-1] if settings.checkpoint is None else settings.checkpoint
    inputs = {
        "base": known(lambda: base.read_at(step), {"run": base.fingerprint}),
        "step": step,
        "layer": known(lambda: layer_of(settings, base), {"layer": settings.layer}),
        "settings": without(asdict(settings), *NOT_INPUTS),
    }

    def build(part: Path) -> None:
        hook = Hookpoint(settings.hook, layer_of(settings, base))
        ids = drawn(corpus, settings.steps * settings.batch_size, settings.seed)
        held_out = np.asarray(corpus.held_out)[: settings.held_out]
        fetch(context, corpus, np.concatenate([ids, held_out]))
        model = base.model(step).eval()
        read = (model, base.architecture, corpus, hook, settings.batch_size)
        batches = context.bar(_batches(*read, ids), f"SAE at {hook}", settings.steps)
        sae, history = train_topk_sae(
            batches,
            hook=hook,
            n_features=settings.n_features,
            k=settings.k,
            steps=settings.steps,
            seed=settings.seed,
            lr=settings.peak_lr,
            warmup=settings.warmup_steps,
            dead_tokens=settings.dead_tokens,
            aux_weight=settings.aux_weight,
        )
        reached = quality(sae, _batches(*read, held_out))
        sparsify.save(sae.to("cpu"), part, base.architecture)
        store.write_csv(part / "history.csv", [asdict(point) for point in history])
        store.write_json(part / "quality.json", asdict(reached))

    code = ("mda.stages.sae", *base.code)
    artifact = context.store.get_or_build("sae", inputs, build, code, base.device)
    found = TrainedSae(artifact, step)
    with suppress(NotBuilt):
        for row in found.history:
            context.log(_logged(row))
    return found


def layer_of(settings: SaeConfig, base: Run) -> int:
    """The layer whose output is read."""
    return settings.layer_of(base.architecture.n_layers)


def drawn(corpus: Corpus, n: int, seed: int) -> np.ndarray:
    """`n` samples that are not held out, in a seeded order; each once before any comes again."""
    rounds = -(-n // (len(corpus.tokens) - len(corpus.held_out)))
    return np.concatenate([stream_order(corpus, seed + i) for i in range(rounds)])[:n]


def _batches(
    model: PreTrainedModel,
    architecture: Architecture,
    corpus: Corpus,
    hook: Hookpoint,
    size: int,
    ids: np.ndarray,
) -> Iterator[torch.Tensor]:
    """Activations [B, T, D] of samples, `size` sequences at a time."""
    for first in range(0, len(ids), size):
        tokens_BT = corpus.rows(ids[first : first + size])[:, :-1].to(model.device)
        with torch.no_grad():
            x_BTD = activations(model, tokens_BT, hook, architecture)
        yield x_BTD


def _logged(row: Mapping[str, Any]) -> dict[str, float]:
    values = {f"sae/{name}": value for name, value in row.items() if name != "step"}
    return {"step": row["step"], **values}
