"""Probes (f_probe): how well a unit does its job, differentiable, on seeded random tokens.

`copy`            log-probability of the token that followed the first time, in nats: the MEAN over
                  all positions of every copy after the first, and over sequences. One number for
                  the whole model, shared by all heads. (The paper sums; that is M * P times this.)
`previous_token`  attention A[t, t-1], the MEAN over positions t >= 1 and sequences: one number for
                  each head. It depends on the head's own W_Q and W_K, and on what lies below.

The position matters (the copy probe of the authors' release is off by one): with a prefix of P
tokens, position t >= P holds the same token as t - P, the token that followed it is at t - P + 1,
and the logits at t are those of token t + 1. The probe's rows are therefore P * repeats tokens
and the first token once more, so that the last position has its target as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import GPTNeoXForCausalLM

from mda.model.head_layout import attention_pattern, model_shape, rotary_tables
from mda.types import HeadId
from mda.unit.gradients import LayerGradients, Tape, capture, record
from mda.unit.loss import cross_entropy, unembedding
from mda.unit.subspace import BlockId, Subspace, block_gradients
from mda.unit.tokens import repeated_tokens

TARGETS = ("copy", "previous_token")
CHUNK = 32  # sequences of a probe that go through the model together


@dataclass(frozen=True)
class Probe:
    """What is asked, and on which tokens, int64 [M, S]; `period` is the length P of one copy."""

    target: str
    tokens_MS: Tensor
    period: int

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"probe target {self.target!r}; accepted: {', '.join(TARGETS)}")

    def weights(self, inputs_MT: Tensor) -> Tensor:
        """Weights [M, T] of the token losses whose sum is the copy probe.

        -1 / n at the n positions after the first copy, 0 elsewhere.
        """
        weights = torch.zeros(inputs_MT.shape, device=inputs_MT.device, dtype=torch.float64)
        weights[:, self.period :] = -1 / (len(self.tokens_MS) * (inputs_MT.shape[1] - self.period))
        return weights


class ProbeGradients(NamedTuple):
    """Value of the probe for each head, [L, H], and its gradient in the captured blocks."""

    values_LH: Tensor
    blocks: dict[BlockId, Tensor]


def draw_probe(
    target: str, probabilities_V: Tensor, *, n: int, length: int, repeats: int = 2, seed: int
) -> Probe:
    """`n` sequences of `length` random tokens, repeated; `mda.unit.tokens` has distributions.

    The copy probe takes two copies or more, the previous-token probe usually one. Raises
    ValueError for another target, no sequence, fewer than two tokens or too few copies.
    """
    fewest = 2 if target == "copy" else 1
    for name, value, low in (("n", n, 1), ("length", length, 2), ("repeats", repeats, fewest)):
        if value < low:
            raise ValueError(f"{name}={value} with target={target}; accepted: {low} or more")
    generator = torch.Generator().manual_seed(seed)
    tokens = repeated_tokens(probabilities_V, n, length, repeats=repeats, generator=generator)
    if target == "copy":
        tokens = torch.cat((tokens, tokens[:, :1]), dim=1)
    return Probe(target, tokens, length)


@torch.no_grad()
def probe_values(model: GPTNeoXForCausalLM, probe: Probe) -> Tensor:
    """f_probe of every head, [L, H], without gradients; `copy` is the same for all."""
    shape = model_shape(model)
    layers = range(shape.n_layers)
    total = torch.zeros(shape.n_layers, shape.n_heads, dtype=torch.float64)
    for tokens in _chunks(model, probe):
        if probe.target == "copy":
            tape = record(model, tokens[:, :-1], [shape.n_layers - 1])
            losses = cross_entropy(tape.hidden_BTD, unembedding(model), tokens[:, 1:])
            total += (losses * probe.weights(losses)).sum().cpu()
        else:
            tape = record(model, tokens, layers)
            total += torch.stack([_previous(model, tape, probe, at) for at in layers]).cpu()
    return total


def probe_gradients(
    model: GPTNeoXForCausalLM,
    probe: Probe,
    layers: Sequence[int],
    subspace: Subspace,
    together: Sequence[HeadId] = (),
) -> ProbeGradients:
    """Gradient of the probe with respect to every head of `layers`, block by block, [H, I, J].

    `copy`: one forward and backward serve all heads, and what they have downstream.
    `previous_token`: the gradient of each head's OWN attention with respect to its own parameters,
    one backward per layer for all its heads. With `together`, instead the gradient of the mean
    attention of those heads with respect to all of `layers`, through the layers in between: the
    probe of a mechanism.
    """
    layers = sorted(set(layers))
    blocks: dict[BlockId, Tensor] = {}
    for tokens in _chunks(model, probe):
        if probe.target == "copy":
            captured = capture(model, tokens, layers, weights_BT=probe.weights(tokens[:, 1:]))
            gradients = dict(captured.layers)
        else:
            gradients = _previous_gradients(model, tokens, probe, layers, together)
        for at in subspace.ids(layers):
            gradient = block_gradients(gradients[at.layer], at.block, subspace.bias)
            blocks[at] = blocks[at] + gradient if at in blocks else gradient
    return ProbeGradients(probe_values(model, probe), blocks)


def _previous(model: GPTNeoXForCausalLM, tape: Tape, probe: Probe, layer: int) -> Tensor:
    """Share of these sequences in the mean of A[t, t-1] of a layer's heads, [H], on the tape."""
    qkv_BTX = tape.qkv_BTX[layer]
    cos, sin = rotary_tables(model, qkv_BTX.shape[1])
    pattern_BHTT = attention_pattern(qkv_BTX, tape.n_heads, cos, sin)
    return pattern_BHTT.diagonal(-1, 2, 3).mean(2).sum(0) / len(probe.tokens_MS)


def _previous_gradients(
    model: GPTNeoXForCausalLM,
    tokens: Tensor,
    probe: Probe,
    layers: list[int],
    together: Sequence[HeadId],
) -> dict[int, LayerGradients]:
    if together:
        needed = sorted({*layers, *(head.layer for head in together)})
        tape = record(model, tokens, needed)
        with torch.enable_grad():
            means = {h: _previous(model, tape, probe, h.layer)[h.head] for h in together}
            return tape.gradients(torch.stack(list(means.values())).mean())
    tape = record(model, tokens, layers)
    gradients: dict[int, LayerGradients] = {}
    for layer in layers:
        with torch.enable_grad():
            own = _previous(model, tape, probe, layer).sum()
        (dqkv_BTX,) = torch.autograd.grad(own, tape.qkv_BTX[layer])
        gradients[layer] = tape.layer_gradients(
            layer, dqkv_BTX, torch.zeros_like(tape.out_BTD[layer])
        )
    return gradients


def _chunks(model: GPTNeoXForCausalLM, probe: Probe) -> Iterator[Tensor]:
    device = model.device
    yield from (chunk.to(device) for chunk in probe.tokens_MS.split(CHUNK))
