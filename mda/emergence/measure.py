"""One point of an emergence curve: every head's metrics, copying, in-context learning, losses.

Names, a public interface (`<head>` is L{layer}H{head}, `<label>` a class of the corpus):

    emergence/<metric>/<head>   mean over sequences; the metrics are mda/schema/metrics.py's
    emergence/<metric>/strongest              largest over the heads
    emergence/<metric>_se/<head>              standard error of that mean over the sequences
    emergence/copy_gain      nats; mean log p of the second copy's tokens minus the first copy's
    emergence/prompts        nats; the measurement of `mda.unit.prompts`, of a file that is given
    emergence/prompts_se     its standard error over the prompts
    emergence/icl_score      nats; mean loss of a band of late positions minus that of early ones
    emergence/icl_score_se   its standard error over the held-out sequences
    emergence/icl_score/real, emergence/icl_score/generated    where the corpus has both kinds
    emergence/icl_olsson     nats; loss at one late position minus loss at one early one
    val/loss, val/loss/<label>                mean held-out token loss in nats

The ICL score of Olsson et al. 2022 (arXiv 2209.11895) takes positions 500 and 50 of 2,048. At a
single position, a few hundred sequences give a standard error of about 0.1 nats; bands reduce it to
a fraction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mda.data.stream import Corpus
from mda.model.loss import unembedding
from mda.model.plain_attention import eager_attention
from mda.schema import EmergenceConfig
from mda.schema.metrics import HEAD_METRICS
from mda.training.loss import vocabulary_losses
from mda.types import HeadId
from mda.unit.metrics import metric_function
from mda.unit.prompts import PromptObjective, prompt_objective
from mda.unit.tokens import repeated_tokens, token_distribution

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Follow = Callable[["PreTrainedModel"], Mapping[str, float]]
"""Measures units besides the heads, by the names of their columns."""

OLSSON_CONTEXT, OLSSON_LATE, OLSSON_EARLY = 2048, 500, 50
GENERATED = "generated_"  # how the labels of generated text begin
TOKENS = 2**14  # tokens that go through the model together


@dataclass(frozen=True)
class Probes:
    """The inputs on which every checkpoint of every arm is measured."""

    repeated_MT: Tensor  # int64, random tokens [M, 2 * length], the second copy = the first
    length: int
    held_out_MT1: Tensor  # int64 [M, T + 1]
    held_out_labels: tuple[str, ...]  # one a held-out row
    icl_late: tuple[int, int]  # positions [start, end)
    icl_early: tuple[int, int]
    prompts: PromptObjective | None = None


def make_probes(corpus: Corpus, settings: EmergenceConfig) -> Probes:
    """Draws the probes from a seed, without special ids; the same for every checkpoint and arm."""
    probabilities = token_distribution(corpus.counts, corpus.special_ids, settings.distribution)
    generator = torch.Generator().manual_seed(settings.seed)
    held_out = np.asarray(corpus.held_out)
    if settings.held_out is not None and len(held_out) > settings.held_out:
        rng = np.random.default_rng(settings.seed)
        held_out = np.sort(rng.choice(held_out, settings.held_out, replace=False))
    late, early = icl_bands(corpus.seq_len, settings.icl_late, settings.icl_early)
    return Probes(
        repeated_MT=repeated_tokens(
            probabilities, settings.n_sequences, settings.length, generator=generator
        ),
        length=settings.length,
        held_out_MT1=corpus.rows(held_out),
        held_out_labels=tuple(corpus.labels_of(held_out)),
        icl_late=late,
        icl_early=early,
        prompts=prompt_objective(settings.prompts, f"{settings.key}.prompts", corpus)
        if settings.prompts is not None
        else None,
    )


def icl_bands(
    seq_len: int, late: Sequence[int] | None, early: Sequence[int] | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the late and the early band of the ICL score.

    None means the second half, and the first 50 positions scaled from a context of 2,048.
    """
    first, last = late or (seq_len // 2, seq_len)
    start, end = early or (0, max(1, round(OLSSON_EARLY * seq_len / OLSSON_CONTEXT)))
    return (first, last), (start, end)


@torch.no_grad()
def measure(model: PreTrainedModel, probes: Probes, held_out: bool = True) -> dict[str, float]:
    """Returns all metrics of one model in evaluation mode, and restores the model's mode.

    Without `held_out`, the most expensive part, the metrics of held-out text are NaN.
    """
    training = model.training
    model.eval()
    try:
        loss_MT = held_out_losses(model, probes) if held_out else unmeasured(probes)
        on_prompts = _on_prompts(model, probes.prompts) if probes.prompts else {}
        return {**_on_repeats(model, probes), **on_prompts, **_on_held_out(loss_MT, probes)}
    finally:
        model.train(training)


def _on_repeats(model: PreTrainedModel, probes: Probes) -> dict[str, float]:
    metrics = {name: metric_function(name) for name in HEAD_METRICS}
    per_head: dict[str, list[Tensor]] = {name: [] for name in metrics}
    gains = []
    with eager_attention(model):
        for tokens_MT in in_batches(model, probes.repeated_MT):
            out = model.base_model(tokens_MT, output_attentions=True, use_cache=False)
            for name, metric in metrics.items():
                heads = [metric(a, probes.length) for a in out.attentions]
                per_head[name].append(torch.stack(heads, 1).double())  # [M, L, H]
            loss_MT = token_losses(model, out.last_hidden_state[:, :-1], tokens_MT[:, 1:])
            gains.append(copy_gain(loss_MT, probes.length).double())
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


def copy_gain(loss_MT: Tensor, length: int) -> Tensor:
    """Returns mean log p of second-copy tokens minus that of the first copy's, [M], in nats.

    `loss_MT[:, t]` is that of predicting token t + 1. Tokens 1 .. length - 1 of each copy count:
    the first token of a copy has nothing to be copied from.
    """
    return loss_MT[:, : length - 1].mean(1) - loss_MT[:, length : 2 * length - 1].mean(1)


def held_out_losses(model: PreTrainedModel, probes: Probes) -> Tensor:
    """Returns the loss in nats of every held-out token, float64 [M, T] on the CPU."""
    parts = []
    for tokens_MT1 in in_batches(model, probes.held_out_MT1):
        hidden_MTD = model.base_model(tokens_MT1[:, :-1], use_cache=False).last_hidden_state
        parts.append(token_losses(model, hidden_MTD, tokens_MT1[:, 1:]).double())
    return torch.cat(parts).cpu()


def unmeasured(probes: Probes) -> Tensor:
    """Returns NaN for every held-out token, [M, T]."""
    rows, length = probes.held_out_MT1.shape
    return torch.full((rows, length - 1), torch.nan, dtype=torch.float64)


def _on_prompts(model: PreTrainedModel, prompts: PromptObjective) -> dict[str, float]:
    contrast_M = prompts.contrasts(model)
    row = {"emergence/prompts": contrast_M.mean().item()}
    if len(contrast_M) > 1:
        row["emergence/prompts_se"] = (contrast_M.std() / len(contrast_M) ** 0.5).item()
    return row


def _on_held_out(loss_MT: Tensor, probes: Probes) -> dict[str, float]:
    labels = np.array(probes.held_out_labels)
    score_M = icl_scores(loss_MT, probes.icl_late, probes.icl_early)
    row = {
        "emergence/icl_score": score_M.mean().item(),
        "emergence/icl_score_se": (score_M.std() / len(score_M) ** 0.5).item(),
    }
    generated = torch.tensor([label.startswith(GENERATED) for label in labels])
    if generated.any() and not generated.all():
        row["emergence/icl_score/real"] = score_M[~generated].mean().item()
        row["emergence/icl_score/generated"] = score_M[generated].mean().item()
    row["emergence/icl_olsson"] = icl_olsson(loss_MT)
    row["val/loss"] = loss_MT.mean().item()
    for label in sorted(set(probes.held_out_labels)):
        row[f"val/loss/{label}"] = loss_MT[torch.from_numpy(labels == label)].mean().item()
    return row


def icl_scores(loss_MT: Tensor, late: tuple[int, int], early: tuple[int, int]) -> Tensor:
    """Returns mean loss over the late band minus that over the early one, by sequence, [M].

    Scores are in nats; lower means more learning in context.
    """
    return loss_MT[:, slice(*late)].mean(1) - loss_MT[:, slice(*early)].mean(1)


def icl_olsson(loss_MT: Tensor) -> float:
    """Returns loss at position 500 minus loss at position 50 in nats."""
    scale = loss_MT.shape[1] / OLSSON_CONTEXT
    late, early = (round(position * scale) for position in (OLSSON_LATE, OLSSON_EARLY))
    return (loss_MT[:, late].mean() - loss_MT[:, early].mean()).item()


def token_losses(model: PreTrainedModel, hidden_MTD: Tensor, targets_MT: Tensor) -> Tensor:
    """Returns the loss in nats at every position, [M, T], with logits formed in chunks."""
    hidden, targets = hidden_MTD.flatten(0, 1), targets_MT.flatten()
    losses = vocabulary_losses(hidden, unembedding(model), targets)
    return losses.view(targets_MT.shape)


def in_batches(model: PreTrainedModel, tokens_MS: Tensor) -> Iterator[Tensor]:
    """Yields rows on the model's device, at most `TOKENS` tokens at a time."""
    yield from tokens_MS.to(model.device).split(max(1, TOKENS // tokens_MS.shape[1]))
