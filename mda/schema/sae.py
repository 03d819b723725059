"""The group `sae`: a sparse autoencoder trained on a base run's activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mda.schema.setting import Group, setting

HOOKS = ("resid_post", "attn_out", "mlp_out")


@dataclass
class SaeConfig(Group):
    """A top-k sparse autoencoder (arXiv 2406.04093): activation, size and training."""

    key: ClassVar[str] = "sae"
    name: str = setting("nano", "name of the preset, that of its file")
    hook: str = setting(
        "resid_post",
        "resid_post: the residual stream after the layer; or the output of its attention or MLP",
        one_of=HOOKS,
    )
    layer: int | None = setting(
        None, "layer whose activation it reads, from 0; null: three quarters up", low=0
    )
    checkpoint: int | None = setting(None, "step of the base run, null: its last", low=0)
    n_features: int = setting(512, "features", low=1)
    k: int = setting(8, "features that are active in a token", low=1)
    steps: int = setting(2400, "steps of its training", low=1)
    batch_size: int = setting(8, "sequences in a step", low=1)
    peak_lr: float = setting(5e-3, "learning rate between warm-up and decay", above=0)
    warmup_steps: int = setting(50, "steps of linear warm-up", low=0)
    dead_tokens: int = setting(
        100_000, "tokens without activity after which a feature is dead", low=1
    )
    aux_weight: float = setting(0.03125, "weight of the dead features' loss", low=0)
    held_out: int = setting(256, "held-out sequences it is measured on, at most all", low=1)
    seed: int = setting(0, "seed of its weights and of its samples", low=0, high=2**32 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k > self.n_features:
            raise self._refuse("k", f"at most sae.n_features={self.n_features}")

    def layer_of(self, n_layers: int) -> int:
        """Returns the layer that is read in a model of so many layers."""
        return max(0, 3 * n_layers // 4 - 1) if self.layer is None else self.layer
