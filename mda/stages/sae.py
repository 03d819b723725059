"""The sparse autoencoder whose features are units: read from a folder, or trained on a base run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mda import store
from mda.cost import stages as cost
from mda.data.stream import Corpus, stream_order
from mda.model.architecture import Architecture
from mda.sae import sparsify
from mda.sae.autoencoder import Sae
from mda.sae.hooks import Hookpoint, activations
from mda.sae.load import load_sae
from mda.sae.quality import Quality, quality
from mda.sae.train import train_topk_sae
from mda.schema import ConfigError, SaeConfig, refuse
from mda.stages.context import Runtime, without
from mda.stages.corpus import fetch
from mda.stages.declared import SAE
from mda.stages.found import Made, NotBuilt, known
from mda.stages.runs import Run
from mda.stages.stage import HashFile, Stage
from mda.store import Artifact
from mda.training.table import read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOT_INPUTS = ("name", "layer", "checkpoint")  # the inputs say what they mean


@dataclass(frozen=True)
class TrainedSae(Made):
    """An SAE that was trained or found, in the layout of sparsify.

    Its folder also has `quality.json` and `history.csv`.
    """

    step: int  # of the base run

    @property
    def hook(self) -> Hookpoint:
        """The activation that it reads."""
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
        """The explained variance during training, see `mda.sae.train.Progress`."""
        return read_rows(self.folder / "history.csv")


def read_sae(source: str, base: Run) -> Sae:
    """Returns the SAE of a folder. Raises ConfigError for one that does not fit the model."""
    sae, sizes = load_sae(Path(source)), base.architecture
    if sae.d_in != sizes.d_model or sae.hook.layer >= sizes.n_layers:
        raise ConfigError(
            f"unit.source={source}: reads {sae.hook} of width {sae.d_in}; expected width "
            f"{sizes.d_model}, layers 0 to {sizes.n_layers - 1} of this model"
        )
    return sae


@dataclass(frozen=True)
class SaeStage(Stage[TrainedSae]):
    """A top-k SAE, trained on randomly drawn samples and measured on held-out ones.

    The SAE's seed draws the samples from the stream. The history is logged as
    `sae/explained_variance` and `sae/dead_share`, its `step` is the SAE's own.
    """

    declared = SAE
    costs = staticmethod(cost.sae)

    base: Run
    settings: SaeConfig

    @property
    def step(self) -> int:
        """The checkpoint whose activations it reads.

        Raises ConfigError for one beyond the end of a base run that ends with the window.
        """
        chosen, last = self.settings.checkpoint, self.base.checkpoints[-1]
        if chosen is not None and chosen > last:
            raise refuse(
                "sae.checkpoint", chosen, f"null, or a step up to the base run's end, {last}"
            )
        return last if chosen is None else chosen

    def inputs(self, hash_file: HashFile) -> Mapping[str, object]:
        layer = {"layer": self.settings.layer}
        return {
            "base": self.base.key_at(self.step),
            "step": self.step,
            "layer": known(lambda: layer_of(self.settings, self.base), layer),
            "settings": without(asdict(self.settings), *NOT_INPUTS),
        }

    def code(self) -> tuple[str, ...]:
        return ("mda.stages.sae", *self.base.code)

    def device(self) -> torch.device:
        return self.base.device

    def build(self, part: Path, at: Runtime) -> None:
        settings, base, corpus = self.settings, self.base, self.base.corpus
        hook = Hookpoint(settings.hook, layer_of(settings, base))
        ids = drawn(corpus, settings.steps * settings.batch_size, settings.seed)
        held_out = np.asarray(corpus.held_out)[: settings.held_out]
        fetch(at, corpus, np.concatenate([ids, held_out]))
        read = (base.model(self.step).eval(), base.architecture, corpus, hook, settings.batch_size)
        batches = at.bar(_batches(*read, ids), f"SAE at {hook}", settings.steps)
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

    def open(self, artifact: Artifact, at: Runtime) -> TrainedSae:
        trained = TrainedSae(artifact, self.step)
        with suppress(NotBuilt):
            for row in trained.history:
                at.log(_logged(row))
        return trained


def layer_of(settings: SaeConfig, base: Run) -> int:
    """Returns the layer whose output is read."""
    return settings.layer_of(base.architecture.n_layers)


def drawn(corpus: Corpus, n: int, seed: int) -> np.ndarray:
    """Returns `n` samples of the stream in a seeded order, each once before any repeats."""
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
    """Yields activations [B, T, D] of samples, `size` sequences at a time."""
    for first in range(0, len(ids), size):
        tokens_BT = corpus.rows(ids[first : first + size])[:, :-1].to(model.device)
        with torch.no_grad():
            x_BTD = activations(model, tokens_BT, hook, architecture)
        yield x_BTD


def _logged(row: Mapping[str, Any]) -> dict[str, float]:
    values = {f"sae/{name}": value for name, value in row.items() if name != "step"}
    return {"step": row["step"], **values}
