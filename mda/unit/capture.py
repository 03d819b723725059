"""The capture pass: one forward and one backward, from which every block's gradients follow.

The gradient of a loss with respect to a linear map y = x @ W is sum_t x_t dy_t^T, where dy_t is the
gradient with respect to the map's output at position t. So it is enough to keep the input and the
output gradient of the linear maps that contain the wanted blocks: per-sample, per-token gradients
of every head, neuron or module are products of these. The whole path from a unit to the loss
counts, later layers included; nothing on it is detached. Parameters are frozen, so no weight
gradient is computed. The outputs of the lowest captured maps are leaves, so the backward pass stops
there.

Convention: a sequence's loss is the MEAN over its tokens, and gradients are those of the SUM over
the sequences of the batch, so that each sequence has its own gradient whatever the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mda.model.loss import (
    Unembedding,
    cross_entropy,
    logits_cross_entropy,
    sampled_cross_entropy,
    unembedding,
)
from mda.model.plain_attention import PlainAttention
from mda.types import ParameterBlock, Tap

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Capture:
    """The inputs of one batch's linear maps and the gradients of their outputs.

    By module path, [B, T, features]; and the mean token loss of each sequence in nats, [B].
    """

    inputs: Mapping[str, Tensor]
    output_gradients: Mapping[str, Tensor]
    losses_B: Tensor

    def x(self, block: ParameterBlock) -> Tensor:
        """Returns a block's inputs [B, T, G, I]; G is H, or 1 where all owners share them.

        A block with a bias has a column of ones.
        """
        x = block.input.of(self.inputs[block.input.module])
        return torch.cat((x, torch.ones_like(x[..., :1])), -1) if block.bias else x

    def dy(self, block: ParameterBlock) -> Tensor:
        """Returns gradients of a block's outputs [B, T, G, J]; G is H, or 1 where shared by all."""
        return joined(block.outputs, self.output_gradients)


@dataclass(frozen=True)
class Tape:
    """A forward pass, ready to be differentiated: its live tensors by module path."""

    hidden_BTD: Tensor  # after the final norm
    inputs: Mapping[str, Tensor]  # detached
    live_inputs: Mapping[str, Tensor]  # on the graph
    outputs: Mapping[str, Tensor]
    watched: Mapping[str, Tensor]  # on the graph: outputs of modules that are no linear maps
    patterns: Sequence[Tensor]  # on the graph: [B, H, T, T] of every layer, where asked for

    def gradients(self, of: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
        """Returns the gradient of sum(weights * of), or of the scalar `of`, at captured outputs.

        An output that `of` does not depend on gets a gradient of zero.
        """
        paths, outputs = zip(*self.outputs.items(), strict=True)
        computed = torch.autograd.grad(of, outputs, weights, allow_unused=True)
        return {
            path: torch.zeros_like(output) if gradient is None else gradient
            for path, output, gradient in zip(paths, outputs, computed, strict=True)
        }

    def capture(self, gradients: Mapping[str, Tensor], losses_B: Tensor | None = None) -> Capture:
        """Returns this pass's inputs together with gradients of its outputs."""
        losses = self.hidden_BTD.new_zeros(len(self.hidden_BTD)) if losses_B is None else losses_B
        return Capture(self.inputs, gradients, losses)


def record(
    model: PreTrainedModel,
    inputs_BT: Tensor,
    modules: Iterable[str],
    watch: Iterable[str] = (),
    patterns: bool = False,
) -> Tape:
    """Yields a forward pass that keeps the inputs of these maps, with a graph from the lowest up.

    `watch` names modules whose outputs are kept on the graph besides, such as whole layers; with
    `patterns` so are the attention patterns, from attention that is written out (`PlainAttention`).
    Parameters are frozen and dropout is off during the pass; both are restored. Raises ValueError
    for a path that the model does not have.
    """
    paths = list(dict.fromkeys(modules))
    inputs: dict[str, Tensor] = {}
    live: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    watched: dict[str, Tensor] = {}

    def see(path: str):
        def hook(_module: nn.Module, _args: object, output: Tensor | tuple) -> None:
            watched[path] = output[0] if isinstance(output, tuple) else output

        return hook

    def keep(path: str):
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = _one_hot(args[0], module) if isinstance(module, nn.Embedding) else args[0]
            live[path], inputs[path] = x, x.detach()
            if not output.requires_grad:  # nothing captured lies below
                output = output.detach().requires_grad_()
            outputs[path] = output
            return output.clone() if clips else output

        return hook

    # OLMo then clips queries, keys and values in place: what it overwrites must not be ours.
    clips = getattr(model.config, "clip_qkv", None) is not None
    with ExitStack() as stack:
        for path, hook in [*((p, keep) for p in paths), *((p, see) for p in watch)]:
            try:
                module = model.get_submodule(path)
            except AttributeError as error:
                raise ValueError(f"the model has no module {path}") from error
            stack.callback(module.register_forward_hook(hook(path)).remove)
        stack.enter_context(frozen(model))
        stack.enter_context(torch.enable_grad())
        attention = stack.enter_context(PlainAttention(keep=True)) if patterns else None
        hidden = model.base_model(inputs_BT, use_cache=False).last_hidden_state
    kept = attention.patterns if attention else ()
    return Tape(hidden, inputs, live, outputs, watched, kept)


def capture(
    model: PreTrainedModel,
    tokens_BS: Tensor,
    modules: Iterable[str],
    *,
    weights_BT: Tensor | None = None,
    uniforms_BT: Tensor | None = None,
    skip: int = 0,
) -> Capture:
    """Returns gradients of sum_bt w_bt l_bt for a batch of token rows [B, S], S = T + 1.

    l_bt is the next-token loss in nats at position t. `weights_BT` defaults to 1 / T, the mean
    over tokens, summed over sequences. With `uniforms_BT` the labels are drawn from the model
    (`label_uniforms`) instead of taken from the tokens, and so are the reported losses. The first
    `skip` positions are left out of what is returned, but not of the pass. Logits are formed as a
    whole only where the unembedding is among the modules; its outputs are those before scale and
    soft cap. Raises ValueError for no modules or a path that the model does not have.
    """
    device, head, modules = model.device, output_path(model), list(modules)
    if not modules:
        raise ValueError("no modules to capture; expected at least one")
    tokens_BS = tokens_BS.to(device)
    tape = record(model, tokens_BS[:, :-1], [path for path in modules if path != head])
    unembed, labels_BT = unembedding(model), tokens_BS[:, 1:]
    with torch.enable_grad():
        if uniforms_BT is None:
            losses_BT = cross_entropy(tape.hidden_BTD, unembed, labels_BT)
        else:
            drawn = sampled_cross_entropy(tape.hidden_BTD, unembed, uniforms_BT.to(device))
            losses_BT, labels_BT = drawn
        if head in modules:
            tape, losses_BT = _through_logits(tape, head, unembed, labels_BT)
    if weights_BT is None:
        weights_BT = torch.full_like(losses_BT, 1 / losses_BT.shape[1])
    gradients = tape.gradients(losses_BT, weights_BT.to(losses_BT))
    seen = tape.capture(gradients, losses_BT.detach().mean(1))
    if not skip:
        return seen
    inputs, gradients = (
        {path: side_BTF[:, skip:] for path, side_BTF in side.items()}
        for side in (seen.inputs, seen.output_gradients)
    )
    return Capture(inputs, gradients, seen.losses_B)


def _through_logits(
    tape: Tape, head: str, unembed: Unembedding, labels_BT: Tensor
) -> tuple[Tape, Tensor]:
    """Returns the pass with the unembedding among its maps, and the losses from its logits."""
    x_BTD = unembed.scaled(tape.hidden_BTD)
    logits_BTV = F.linear(x_BTD, unembed.weight_VD.detach())
    if not logits_BTV.requires_grad:  # no other map is captured
        logits_BTV.requires_grad_()
    capped = unembed.capped(logits_BTV).flatten(0, 1)
    losses_BT = logits_cross_entropy(capped, labels_BT.flatten()).view(labels_BT.shape)
    inputs = {**tape.inputs, head: x_BTD.detach()}
    return replace(tape, inputs=inputs, outputs={**tape.outputs, head: logits_BTV}), losses_BT


def _one_hot(ids: Tensor, embedding: nn.Embedding) -> Tensor:
    """Returns the tokens as inputs of a linear map, [B, T, V]."""
    return F.one_hot(ids, embedding.num_embeddings).to(embedding.weight.dtype)


def output_path(model: PreTrainedModel) -> str:
    """Returns the path of the unembedding among the model's modules."""
    head = model.get_output_embeddings()
    return next(name for name, module in model.named_modules() if module is head)


def joined(taps: tuple[Tap, ...], tensors: Mapping[str, Tensor]) -> Tensor:
    """Returns the owners' features of several modules side by side, [.., G, sum of sizes]."""
    parts = [tap.of(tensors[tap.module]) for tap in taps]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def modules_of(blocks: Iterable[ParameterBlock]) -> list[str]:
    """Returns the paths of the modules that contain these blocks, each once."""
    return list(dict.fromkeys(path for block in blocks for path in block.modules))


@contextmanager
def frozen(model: PreTrainedModel, gradients: bool = False) -> Iterator[None]:
    """Turns off dropout inside the block, and the gradients of parameters off or on."""
    others = [parameter for parameter in model.parameters() if parameter.requires_grad != gradients]
    was_training = model.training
    model.eval().requires_grad_(gradients)
    try:
        yield
    finally:
        model.train(was_training)
        for parameter in others:
            parameter.requires_grad_(not gradients)


@torch.no_grad()
def module_inputs(
    model: PreTrainedModel, inputs_BT: Tensor, modules: Iterable[str]
) -> dict[str, Tensor]:
    """Returns the inputs of these modules in a forward pass without gradients, by path."""
    inputs: dict[str, Tensor] = {}

    def keep(path: str):
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs[path] = args[0]

        return hook

    with ExitStack() as stack:
        for path in modules:
            handle = model.get_submodule(path).register_forward_pre_hook(keep(path))
            stack.callback(handle.remove)
        stack.enter_context(frozen(model))
        model.base_model(inputs_BT, use_cache=False)
    return inputs
