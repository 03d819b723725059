"""The capabilities of a model with and without its strongest heads: is the unit load-bearing?

Names, a public interface:

    capabilities/real_loss       nats; mean token loss on held-out text that was not generated
    capabilities/icl_score       nats; loss late minus loss early in that text; lower: learns more
    capabilities/copy_gain       nats; few-shot copying: a span's loss at first minus its copy's
    capabilities/copy_accuracy   share of the copy's tokens that are the most likely ones
    capabilities/label_margin    nats; few-shot labels: log p of the right token minus the wrong
    capabilities/label_accuracy  share of prompts in which that is above 0; chance is .5
    capabilities/<any>/top_heads      its change when the strongest heads are mean-ablated
    capabilities/<any>/random_heads   the same for as many other heads, mean over random sets

A unit is load-bearing for a number that changes more with `top_heads` than with `random_heads`. If
a corpus has only generated text, that text is used as the real one; if it has no two classes, there
is no label task. Induction heads that grow on synthetic copies need not be load-bearing (arXiv
2509.22947).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mda.data.stream import Corpus
from mda.emergence.measure import GENERATED, icl_scores, in_batches, token_losses
from mda.emergence.prompts import CopyPrompts, LabelPrompts, copy_prompts, label_prompts
from mda.model.architecture import Architecture
from mda.model.loss import unembedding
from mda.schema import CapabilitiesConfig
from mda.types import HeadId
from mda.unit.ablation import ablated, head_place, mean_inputs
from mda.unit.tokens import token_distribution

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Bands = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Trials:
    """The inputs of the tests: real held-out text and the two tasks made of it."""

    text_MT1: Tensor
    bands: Bands  # late and early positions of the ICL score
    copying: CopyPrompts
    labelling: LabelPrompts | None


def make_trials(corpus: Corpus, settings: CapabilitiesConfig, bands: Bands) -> Trials:
    """Draws the trials from a seed, the same for every arm.

    The separator is the most frequent token.
    """
    held_out = np.asarray(corpus.held_out)
    labels = np.array(corpus.labels_of(held_out))
    real = np.array([not label.startswith(GENERATED) for label in labels])
    if real.any():
        held_out, labels = held_out[real], labels[real]
    rows = corpus.rows(held_out).numpy()
    chosen = np.random.default_rng([settings.seed, 0]).permutation(len(rows))[: settings.held_out]
    words = token_distribution(corpus.counts, corpus.special_ids, "unigram_sqrt").numpy()
    separator = int(words.argmax())
    words[separator] = 0
    words /= words.sum()
    shared = (settings.shots, separator)
    return Trials(
        text_MT1=torch.from_numpy(rows[np.sort(chosen)]),
        bands=bands,
        copying=copy_prompts(rows, settings.prompts, settings.span, *shared, settings.seed),
        labelling=label_prompts(
            rows, labels.tolist(), settings.prompts, settings.snippet, *shared, words, settings.seed
        ),
    )


@torch.no_grad()
def try_out(model: PreTrainedModel, trials: Trials) -> dict[str, float]:
    """Returns the model's numbers on all trials, in evaluation mode, and restores its mode."""
    training = model.training
    model.eval()
    try:
        row = {**_on_text(model, trials), **_on_copies(model, trials.copying)}
        if trials.labelling is not None:
            row |= _on_labels(model, trials.labelling)
        return {f"capabilities/{name}": value for name, value in row.items()}
    finally:
        model.train(training)


@torch.no_grad()
def capabilities(
    model: PreTrainedModel,
    architecture: Architecture,
    trials: Trials,
    strongest: Sequence[HeadId],
    settings: CapabilitiesConfig,
) -> dict[str, float]:
    """Returns the model's numbers, and their changes without the strongest or random heads.

    `strongest` are the model's heads, strongest first. Means for the ablation are taken on the
    trials' text.
    """
    values = try_out(model, trials)
    sets = head_sets(strongest, settings)
    if not settings.ablation or not sets:
        return values
    places = [[head_place(architecture, head) for head in heads] for heads in sets]
    means = mean_inputs(model, chain(*places), in_batches(model, trials.text_MT1[:, :-1]))
    changes = []
    for of_set in places:
        with ablated(model, of_set, means):
            without = try_out(model, trials)
        changes.append({name: without[name] - value for name, value in values.items()})
    top, *others = changes
    for name in list(values):
        values[f"{name}/top_heads"] = top[name]
        values[f"{name}/random_heads"] = float(np.mean([change[name] for change in others]))
    return values


def head_sets(strongest: Sequence[HeadId], settings: CapabilitiesConfig) -> list[list[HeadId]]:
    """Returns the strongest heads, and random sets of the same number of others."""
    k = min(settings.heads, len(strongest) // 2)
    if k == 0:
        return []
    rng, others = np.random.default_rng([settings.seed, 3]), strongest[k:]
    drawn = [rng.choice(len(others), k, replace=False) for _ in range(settings.random_sets)]
    return [list(strongest[:k]), *([others[i] for i in sorted(places)] for places in drawn)]


def _on_text(model: PreTrainedModel, trials: Trials) -> dict[str, float]:
    loss_MT = torch.cat([_losses(model, part) for part in in_batches(model, trials.text_MT1)])
    late, early = trials.bands
    score = icl_scores(loss_MT, late, early).mean().item()
    return {"real_loss": loss_MT.mean().item(), "icl_score": score}


def _on_copies(model: PreTrainedModel, task: CopyPrompts) -> dict[str, float]:
    gains, hits, span = [], [], task.span
    for tokens_MS in in_batches(model, task.tokens_MS):
        hidden_MTD = _hidden(model, tokens_MS)
        loss_MT = token_losses(model, hidden_MTD, tokens_MS[:, 1:]).double()
        first = loss_MT[:, -2 * span - 1 : -span - 1]
        gains.append((first - loss_MT[:, -span:]).mean(1))
        best = unembedding(model).logits(hidden_MTD[:, -span:]).argmax(-1)
        hits.append((best == tokens_MS[:, -span:]).double().mean(1))
    return {
        "copy_gain": torch.cat(gains).mean().item(),
        "copy_accuracy": torch.cat(hits).mean().item(),
    }


def _on_labels(model: PreTrainedModel, task: LabelPrompts) -> dict[str, float]:
    margins = []
    wrong = in_batches(model, task.wrong_M[:, None].expand(task.tokens_MS.shape))
    for tokens_MS, wrong_MS in zip(in_batches(model, task.tokens_MS), wrong, strict=True):
        last_MD = _hidden(model, tokens_MS)[:, -1]
        logits_MV = unembedding(model).logits(last_MD).double()
        right_M = logits_MV.gather(1, tokens_MS[:, -1:])
        margins.append((right_M - logits_MV.gather(1, wrong_MS[:, :1]))[:, 0])
    margin_M = torch.cat(margins)
    return {
        "label_margin": margin_M.mean().item(),
        "label_accuracy": (margin_M > 0).double().mean().item(),
    }


def _hidden(model: PreTrainedModel, tokens_MS: Tensor) -> Tensor:
    return model.base_model(tokens_MS[:, :-1], use_cache=False).last_hidden_state


def _losses(model: PreTrainedModel, tokens_MS: Tensor) -> Tensor:
    return token_losses(model, _hidden(model, tokens_MS), tokens_MS[:, 1:]).double()
