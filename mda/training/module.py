"""What is optimised: the weighted next-token loss of a schedule's samples."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from mda.schema import TrainingConfig
from mda.training.optimizer import adamw, learning_rate


def sample_losses(model: PreTrainedModel, tokens_BT1: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss of each sample in nats, [B]."""
    logits_BTV = model(input_ids=tokens_BT1[:, :-1], use_cache=False).logits
    loss_BT = F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), tokens_BT1[:, 1:].flatten(), reduction="none"
    )
    return loss_BT.view(len(tokens_BT1), -1).mean(1)


class LanguageModel(pl.LightningModule):
    """GPTNeoX under AdamW; `first_step` updates lie before this trainer's own step 0."""

    def __init__(self, model: PreTrainedModel, settings: TrainingConfig, first_step: int = 0):
        super().__init__()
        self.model = model
        self.settings = settings
        self.first_step = first_step

    @property
    def step(self) -> int:
        """Updates done since the run's very beginning."""
        return self.first_step + self.global_step

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        rate = learning_rate(self.step, self.settings)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        # Divided by the unedited batch size: editing one sample leaves the others' share as is.
        losses_B = sample_losses(self.model, batch["tokens"])
        return (batch["weights"] * losses_B).sum() / batch["batch_size"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adamw(self.model, self.settings)
