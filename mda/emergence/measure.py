"""One point of an emergence curve: every head's metrics, copying, in-context learning, losses.

Names, a public interface (`<head>` is L{layer}H{head}, `<label>` a class of the corpus):

    emergence/prefix_matching/<head>, emergence/previous_token/<head>      mean over sequences
    emergence/<metric>/strongest              largest over the heads
    emergence/<metric>_se/<head>              standard error of that mean over the sequences
    emergence/copy_gain      nats; mean log p of the second copy's tokens minus the first copy's
    emergence/icl_score      nats; loss at the late position minus mean loss of the early ones
    val/loss, val/loss/<label>                mean held-out token loss in nats
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from mda.data.stream import Corpus
from mda.model.build import eager_attention
from mda.schema import EmergenceConfig
from mda.types import HeadId
from mda.unit.metrics import HEAD_METRICS
from mda.unit.tokens import repeated_tokens, token_distribution

ICL_CONTEXT, ICL_LATE, ICL_EARLY = 2048, 500, 50  # Olsson et al. 2022, arXiv 2209.11895


@dataclass(frozen=True)
class Probes:
    """What every checkpoint of every arm is measured on."""

    repeated_MT: torch.Tensor  # int64, random tokens [M, 2 * length], the second copy = the first
    length: int
    held_out_MT1: torch.Tensor  # int64 [M, T + 1]
    held_out_labels: tuple[str, ...]  # one a held-out row
    icl_late: int
    icl_early: tuple[int, int]  # [start, end)


def make_probes(corpus: Corpus, settings: EmergenceConfig) -> Probes:
    """Draw the probes: seeded, without special ids, the same for every checkpoint and arm."""
    probabilities = token_distribution(corpus.counts, corpus.special_ids, settings.distribution)
    generator = torch.Generator().manual_seed(settings.seed)
    held_out = np.asarray(corpus.held_out)
    if len(held_out) > settings.held_out:
        rng = np.random.default_rng(settings.seed)
        held_out = np.sort(rng.choice(held_out, settings.held_out, replace=False))
    late, early = icl_positions(corpus.seq_len, settings.icl_late, settings.icl_early)
    return Probes(
        repeated_MT=repeated_tokens(
            probabilities, settings.n_sequences, settings.length, generator=generator
        ),
        length=settings.length,
        held_out_MT1=corpus.rows(held_out),
        held_out_labels=tuple(corpus.labels_of(held_out)),
        icl_late=late,
        icl_early=early,
    )


def icl_positions(
    seq_len: int, late: int | None, early: Sequence[int] | None
) -> tuple[int, tuple[int, int]]:
    """Positions of the ICL score; None scales 500 and [0, 50) from a context of 2,048."""
    scale = seq_len / ICL_CONTEXT
    start, end = early or (0, max(1, round(ICL_EARLY * scale)))
    return (round(ICL_LATE * scale) if late is None else late), (start, end)


@torch.no_grad()
def measure(model: PreTrainedModel, probes: Probes, batch: int = 64) -> dict[str, float]:
    """All metrics of one model, in evaluation mode; the model's mode is restored."""
    training = model.training
    model.eval()
    try:
        return {**_on_repeats(model, probes, batch), **_on_held_out(model, probes, batch)}
    finally:
        model.train(training)


def _on_repeats(model: PreTrainedModel, probes: Probes, batch: int) -> dict[str, float]:
    per_head: dict[str, list[torch.Tensor]] = {name: [] for name in HEAD_METRICS}
    gains = []
    with eager_attention(model):
        for tokens_MT in probes.repeated_MT.to(model.device).split(batch):
            out = model(input_ids=tokens_MT, output_attentions=True, use_cache=False)
            for name, metric in HEAD_METRICS.items():
                heads = [metric(a, probes.length) for a in out.attentions]
                per_head[name].append(torch.stack(heads, 1).double())  # [M, L, H]
            gains.append(copy_gain(out.logits, tokens_MT, probes.length).double())
    row: dict[str, float] = {}
    for name, parts in per_head.items():
        values_MLH = torch.cat(parts)
        mean_LH = values_MLH.mean(0)
        error_LH = values_MLH.std(0) / len(values_MLH) ** 0.5
        for layer, head in np.ndindex(*mean_LH.shape):
            unit = HeadId(layer, head)
            row[f"emergence/{name}/{unit}"] = mean_LH[layer, head].item()
            row[f"emergence/{name}_se/{unit}"] = error_LH[layer, head].item()
        row[f"emergence/{name}/strongest"] = mean_LH.max().item()
    row["emergence/copy_gain"] = torch.cat(gains).mean().item()
    return row


def copy_gain(logits_MTV: torch.Tensor, tokens_MT: torch.Tensor, length: int) -> torch.Tensor:
    """Per sequence, in nats: mean log p of second-copy tokens minus that of the same first ones.

    Tokens 1 .. length - 1 of each copy count: the first token of a copy has nothing to be
    copied from.
    """
    predicted_MTV = logits_MTV[:, :-1].float()
    logp_MT = -F.cross_entropy(
        predicted_MTV.flatten(0, 1), tokens_MT[:, 1:].flatten(), reduction="none"
    ).view(len(tokens_MT), -1)
    return logp_MT[:, length : 2 * length - 1].mean(1) - logp_MT[:, : length - 1].mean(1)


def _on_held_out(model: PreTrainedModel, probes: Probes, batch: int) -> dict[str, float]:
    parts = []
    for tokens_MT1 in probes.held_out_MT1.to(model.device).split(batch):
        logits_MTV = model(input_ids=tokens_MT1[:, :-1], use_cache=False).logits.float()
        loss = F.cross_entropy(
            logits_MTV.flatten(0, 1), tokens_MT1[:, 1:].flatten(), reduction="none"
        )
        parts.append(loss.view(len(tokens_MT1), -1).double())
    loss_MT = torch.cat(parts).cpu()
    row = {
        "emergence/icl_score": icl_score(loss_MT, probes.icl_late, probes.icl_early),
        "val/loss": loss_MT.mean().item(),
    }
    labels = np.array(probes.held_out_labels)
    for label in sorted(set(probes.held_out_labels)):
        row[f"val/loss/{label}"] = loss_MT[torch.from_numpy(labels == label)].mean().item()
    return row


def icl_score(loss_MT: torch.Tensor, late: int, early: tuple[int, int]) -> float:
    """Loss at position `late` minus mean loss over the positions [start, end) of `early`.

    Means over held-out sequences, in nats; lower means more learning in context.
    """
    return (loss_MT[:, late].mean() - loss_MT[:, slice(*early)].mean()).item()
