"""One update of the optimization: the weighted next-token loss under AdamW."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist

from mda.schema import TrainingConfig
from mda.training import checkpoint
from mda.training.loss import accumulate_gradients
from mda.training.optimizer import adamw, learning_rate
from mda.training.scoped import Reach

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LanguageModel(pl.LightningModule):
    """A causal language model under AdamW; `first_step` updates precede this trainer's step 0.

    Starts from the checkpoint folder `resume` where there is one. One batch is one update,
    however many micro-batches it is cut into and processes share it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        settings: TrainingConfig,
        first_step: int = 0,
        resume: Path | None = None,
        reach: Reach | None = None,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.settings = settings
        self.first_step = first_step
        self.resume = resume
        self.reach = reach

    @property
    def step(self) -> int:
        """Updates done since step 0 of the run."""
        return self.first_step + self.global_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = adamw(self.model, self.settings)
        if self.resume is not None:
            checkpoint.load(self.resume, self.model, optimizer)
            if scale := checkpoint.loss_scale(self.resume):
                self.trainer.precision_plugin.load_state_dict(scale)
        refuse_non_finite(self.model)
        return optimizer

    def on_train_start(self) -> None:
        if self.settings.threads is not None:  # Lightning's start of several processes sets its own
            torch.set_num_threads(self.settings.threads)

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        rate = learning_rate(self.step, self.settings)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        optimizer: Any = self.optimizers()
        loss = self._gradient(optimizer, batch)
        if "unedited" in batch:
            assert self.reach is not None
            edited = {name: p.grad for name, p in self.model.named_parameters()}
            self._gradient(optimizer, batch["unedited"])
            self.reach.keep(self.model, edited)
        optimizer.step()
        if self.trainer.world_size > 1:
            dist.all_reduce(loss)
        return loss

    def _gradient(self, optimizer: Any, batch: dict[str, Any]) -> torch.Tensor:
        """Sets the parameters' gradients to a batch's, clipped, and returns its loss."""
        optimizer.zero_grad()
        tokens, weights = self._share(batch["tokens"], batch["weights"])
        loss = accumulate_gradients(
            self.model,
            tokens,
            weights,
            batch["batch_size"],
            self.settings.micro_batch_size,
            self._backward,
        )
        self._clip(optimizer.optimizer)
        return loss

    def _share(
        self, tokens: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns this process's rows of a batch, every world-th.

        The first process reads them all.
        """
        rank, world = self.trainer.global_rank, self.trainer.world_size
        if world > 1:
            tokens = tokens.contiguous()  # broadcast writes into this memory
            dist.broadcast(tokens, 0)
        return tokens[rank::world], weights[rank::world]

    def _backward(self, loss: torch.Tensor, last: bool) -> None:
        world, precision = self.trainer.world_size, self.trainer.precision_plugin
        if world == 1 and getattr(precision, "scaler", None) is None:
            loss.backward()  # what Lightning would do, without its hooks for every micro-batch
            return
        # Gradients are exchanged once an update. They come back as the mean over the processes,
        # where the stream wants the sum.
        strategy: Any = self.trainer.strategy
        with nullcontext() if last or world == 1 else strategy.block_backward_sync():
            self.manual_backward(loss * world if world > 1 else loss)

    def _clip(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips the norm of the whole update's gradient."""
        if not self.settings.grad_clip:
            return
        # The fused optimiser takes the loss scale of fp16 out by itself, but after the clipping.
        if scaler := getattr(self.trainer.precision_plugin, "scaler", None):
            scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.settings.grad_clip)


def refuse_non_finite(model: torch.nn.Module) -> None:
    """Raises FloatingPointError, naming a tensor, where weights are NaN or infinite."""
    bad = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
    if bad:
        raise FloatingPointError(
            f"before any update, {len(bad)} of the model's tensors hold values that are not "
            f"finite, the first is {bad[0]}: the weights came in bad"
        )
