"""Scores of samples, given a direction for every unit: the pass that EK-FAC and TracIn share.

Up-weighting sample z by eps moves the parameters by -eps M grad L(z), with M the inverse curvature
(EK-FAC), the learning rate (TracIn) or Adam's step sizes, and with them the measurement f by
-eps <grad f, M grad L(z)>. With the direction P = M grad f, which does not depend on z, the score
of z is -<P, grad L(z)>: score > 0 means that up-weighting the sample raises the measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.autograd.forward_ad as forward
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mda.model.loss import cross_entropy, logits_cross_entropy, unembedding
from mda.model.plain_attention import PlainAttention
from mda.unit.blocks import Directions
from mda.unit.capture import capture, frozen, modules_of, output_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Rows = Callable[[np.ndarray], Tensor]
"""Sample ids -> their tokens, int64 [B, T + 1]; for a corpus, its method `rows`."""


class SampleScores(NamedTuple):
    """Scores and losses of samples, in the order of their ids."""

    values_NU: Tensor  # on the CPU, float32 or float64
    losses_N: Tensor  # mean token loss in nats; NaN where an estimator computes none


def batches(sample_ids: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yields the ids in order, `batch_size` at a time; the last batch may be shorter."""
    for start in range(0, len(sample_ids), batch_size):
        yield sample_ids[start : start + batch_size]


def score_samples(
    model: PreTrainedModel,
    rows: Rows,
    sample_ids: np.ndarray,
    directions: Directions,
    batch_size: int = 32,
    skip: int = 0,
) -> SampleScores:
    """Returns the score of every sample for every unit, [N, U], and its loss, [N].

    One forward and backward pass for each batch, whatever the number and kinds of units. Only the
    result grows with N. The effect of the parameters at the first `skip` positions is left out.
    Runs on the model's device in the model's precision.
    """
    values = torch.empty(len(sample_ids), len(directions.units), dtype=model.dtype)
    losses = torch.empty(len(sample_ids), dtype=model.dtype)
    modules, done = modules_of(directions.blocks), 0
    for ids in batches(sample_ids, batch_size):
        captured = capture(model, rows(ids), modules, skip=skip)
        here = slice(done, done + len(ids))
        values[here] = directions.sequence_influence(captured).cpu()
        losses[here] = captured.losses_B.cpu()
        done += len(ids)
    return SampleScores(values, losses)


def token_influence(
    model: PreTrainedModel, tokens_BS: Tensor, directions: Directions, skip: int = 0
) -> Tensor:
    """Returns the influence of every token, [B, T, U]; its sum over T is the samples' score.

    Position t gathers what the weights see at t: the query that asks there, the key and value that
    are read there, and the output that is written there; 0 at the first `skip` positions.
    """
    modules = modules_of(directions.blocks)
    influence = directions.token_influence(capture(model, tokens_BS, modules, skip=skip))
    return F.pad(influence, (0, 0, skip, 0))


def target_influence(
    model: PreTrainedModel, tokens_BS: Tensor, tangents: Mapping[str, Tensor], skip: int = 0
) -> Tensor:
    """Returns the part of each token's loss in one unit's score, [B, T], which sum to the score.

    With l_t the loss at position t, that of predicting token t + 1, it is -<P, grad l_t> / T, where
    `tangents` are the direction P by parameter (`Directions.tangents`): the first-order effect of
    masking this token's loss. `token_influence` splits the same sum by the position at which the
    unit acts, which may be long before the affected loss.

    All tokens' derivatives along P come out of one forward pass that carries the change of every
    activation (forward-mode differentiation). It ends at the last hidden state h_t, since <P, grad
    l_t> = <dh_t / dP, grad_h l_t>. A change of the unembedding, which comes after it, is added.
    """
    tokens_BS, head = tokens_BS.to(model.device), f"{output_path(model)}.weight"
    tangents, of_head = {**tangents}, tangents.get(head)
    tangents.pop(head, None)
    with (
        torch.no_grad(), frozen(model), forward.dual_level(), PlainAttention(),
        _still(model, tangents, skip),
    ):  # fmt: skip
        weights = dict(model.named_parameters())
        moved = {name: forward.make_dual(weights[name], t) for name, t in tangents.items()}
        prefix = f"{model.base_model_prefix}."
        moved = {name.removeprefix(prefix): dual for name, dual in moved.items()}
        out = functional_call(model.base_model, moved, (tokens_BS[:, :-1],), {"use_cache": False})
        hidden_BTD, change_BTD = forward.unpack_dual(out.last_hidden_state)
        if change_BTD is None:  # the direction is empty
            change_BTD = torch.zeros_like(hidden_BTD)
    hidden_BTD = hidden_BTD.detach().requires_grad_()
    losses_BT = cross_entropy(hidden_BTD, unembedding(model), tokens_BS[:, 1:])
    (slope_BTD,) = torch.autograd.grad(losses_BT.sum(), hidden_BTD)
    found_BT = (change_BTD * slope_BTD).sum(-1)
    if of_head is not None:
        found_BT += _of_unembedding(model, hidden_BTD.detach(), tokens_BS[:, 1:], of_head, skip)
    return -found_BT / losses_BT.shape[1]


def _of_unembedding(
    model: PreTrainedModel, hidden_BTD: Tensor, labels_BT: Tensor, tangent_VD: Tensor, skip: int
) -> Tensor:
    """Returns each loss's derivative along a change of the unembedding, [B, T]; 0 before `skip`."""
    unembed = unembedding(model)
    x_BTD = unembed.scaled(hidden_BTD)
    logits_BTV = F.linear(x_BTD, unembed.weight_VD.detach()).requires_grad_()
    losses = logits_cross_entropy(unembed.capped(logits_BTV).flatten(0, 1), labels_BT.flatten())
    (slope_BTV,) = torch.autograd.grad(losses.sum(), logits_BTV)
    found_BT = (F.linear(x_BTD, tangent_VD) * slope_BTV).sum(-1)
    found_BT[:, :skip] = 0
    return found_BT


@contextmanager
def _still(model: PreTrainedModel, tangents: Mapping[str, Tensor], skip: int) -> Iterator[None]:
    """Keeps moved parameters unchanged at the first `skip` positions inside the block.

    An output's change has a part from the input and one from the parameters; the latter, which is
    the map with the tangents for parameters, is subtracted there.
    """

    def still(bare: nn.Module, tangents_of: dict[str, Tensor]):
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            value, change = forward.unpack_dual(output)
            assert change is not None
            x = forward.unpack_dual(args[0]).primal[:, :skip]
            change = change.clone()
            change[:, :skip] -= functional_call(bare, tangents_of, (x,))
            return forward.make_dual(value, change)

        return hook

    with ExitStack() as stack:
        for path in {name.rpartition(".")[0] for name in tangents} if skip else ():
            module = model.get_submodule(path)
            tangents_of = {
                end: tangents.get(f"{path}.{end}", torch.zeros_like(parameter))
                for end, parameter in module.named_parameters()
            }
            hook = still(deepcopy(module), tangents_of)
            stack.callback(module.register_forward_hook(hook).remove)
        yield
