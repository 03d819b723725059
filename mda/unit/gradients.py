"""The one capture pass: a forward and a backward from which every head's gradients follow.

The gradient of a loss with respect to a linear map y = x @ W is sum_t x_t dy_t^T, where dy_t is
the gradient with respect to the map's output at position t. So it is enough to keep input and
output gradient of `query_key_value` and `dense` in the layers of interest: per-sample, per-token
gradients of every block of every head are products of what is kept. All of the path from a head
to the loss counts, later heads included; nothing on it is detached. Parameters are frozen, so
that no weight gradient is computed, and the lowest layer's `query_key_value` output is a leaf, so
that the backward pass stops there.

Convention: a sequence's loss is the MEAN over its tokens, and gradients are those of the SUM over
the sequences of the batch, so that each sequence has its own gradient whatever the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import GPTNeoXForCausalLM

from mda.model.head_layout import attention, model_shape, output_features, per_head
from mda.unit.loss import cross_entropy, sampled_cross_entropy, unembedding


@dataclass(frozen=True)
class LayerGradients:
    """What one layer's attention saw: inputs of its linear maps, gradients of their outputs."""

    x_BTD: Tensor  # input of query_key_value
    dqkv_BTHJ: Tensor  # gradient of its output, J = 3K: query, key and value of each head
    z_BTHK: Tensor  # input of dense: the heads' outputs
    do_BTD: Tensor  # gradient of the output of dense, the same for all heads

    def site(self, name: str, bias: bool = False) -> Tensor:
        """An activation or gradient as [B, T, G, I]; G is 1 where all heads share it, else H.

        `x` input of qk and v, with a column of ones if `bias`; `dqk`, `dv` gradients of their
        outputs; `z` input and `do` output gradient of o.
        """
        d_head = self.z_BTHK.shape[-1]
        match name:
            case "x":
                ones = self.x_BTD.new_ones((*self.x_BTD.shape[:2], 1))
                x = torch.cat((self.x_BTD, ones), -1) if bias else self.x_BTD
                return x.unsqueeze(2)
            case "dqk" | "dv":
                return self.dqkv_BTHJ[..., output_features(name[1:], d_head)]
            case "z":
                return self.z_BTHK
            case "do":
                return self.do_BTD.unsqueeze(2)
        raise ValueError(f"site {name!r}; accepted: x, dqk, dv, z, do")


@dataclass(frozen=True)
class Capture:
    """Gradients of one batch by layer, and the mean token loss of each sequence in nats, [B]."""

    layers: Mapping[int, LayerGradients]
    losses_B: Tensor


@dataclass(frozen=True)
class Tape:
    """A forward pass, ready to be differentiated: its live tensors by layer."""

    hidden_BTD: Tensor  # after the final LayerNorm
    x_BTD: Mapping[int, Tensor]
    qkv_BTX: Mapping[int, Tensor]  # X = 3D, packed
    z_BTD: Mapping[int, Tensor]
    out_BTD: Mapping[int, Tensor]  # output of dense
    n_heads: int

    def gradients(self, of: Tensor, weights: Tensor | None = None) -> dict[int, LayerGradients]:
        """Gradients of sum(weights * of), or of the scalar `of`, in every captured layer.

        A layer that `of` does not depend on gets gradients of zero.
        """
        inputs = [*self.qkv_BTX.values(), *self.out_BTD.values()]
        found = torch.autograd.grad(of, inputs, weights, allow_unused=True)
        grads = [
            torch.zeros_like(i) if g is None else g for g, i in zip(found, inputs, strict=True)
        ]
        n_layers = len(self.qkv_BTX)
        parts = zip(self.qkv_BTX, grads[:n_layers], grads[n_layers:], strict=True)
        return {layer: self.layer_gradients(layer, dqkv, do) for layer, dqkv, do in parts}

    def layer_gradients(self, layer: int, dqkv_BTX: Tensor, do_BTD: Tensor) -> LayerGradients:
        """This layer's inputs together with gradients of its outputs."""
        return LayerGradients(
            x_BTD=self.x_BTD[layer],
            dqkv_BTHJ=per_head(dqkv_BTX, self.n_heads),
            z_BTHK=self.z_BTD[layer].unflatten(-1, (self.n_heads, -1)),
            do_BTD=do_BTD,
        )


def record(model: GPTNeoXForCausalLM, inputs_BT: Tensor, layers: Sequence[int]) -> Tape:
    """Forward pass that keeps what `layers` need, with a graph from the lowest of them upwards.

    Parameters are frozen and dropout is off during the pass; both are restored. Raises ValueError
    for a layer the model does not have or for no layers at all.
    """
    if not layers:
        raise ValueError("layers=[]; accepted: at least one layer to capture")
    order = sorted(set(layers))
    x: dict[int, Tensor] = {}
    qkv: dict[int, Tensor] = {}
    z: dict[int, Tensor] = {}
    out: dict[int, Tensor] = {}

    def keep_qkv(layer: int):
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x[layer] = args[0].detach()
            leaf = layer == order[0]
            qkv[layer] = output.detach().requires_grad_() if leaf else output
            return qkv[layer]

        return hook

    def keep_out(layer: int):
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            z[layer], out[layer] = args[0].detach(), output

        return hook

    with ExitStack() as stack:
        for layer in order:
            module = attention(model, layer)
            for linear, hook in (("query_key_value", keep_qkv), ("dense", keep_out)):
                handle = getattr(module, linear).register_forward_hook(hook(layer))
                stack.callback(handle.remove)
        stack.enter_context(_frozen(model))
        stack.enter_context(torch.enable_grad())
        hidden = model.gpt_neox(inputs_BT, use_cache=False).last_hidden_state  # type: ignore
    return Tape(hidden, x, qkv, z, out, model_shape(model).n_heads)


def capture(
    model: GPTNeoXForCausalLM,
    tokens_BS: Tensor,
    layers: Sequence[int],
    *,
    weights_BT: Tensor | None = None,
    uniforms_BT: Tensor | None = None,
) -> Capture:
    """Gradients of sum_bt w_bt l_bt for a batch of token rows [B, S], S = T + 1.

    l_bt is the next-token loss in nats at position t. `weights_BT` defaults to 1 / T, the mean
    over tokens, summed over sequences. With `uniforms_BT` the labels are drawn from the model
    (`label_uniforms`) instead of taken from the tokens, and so are the reported losses.
    """
    device = model.device
    tokens_BS = tokens_BS.to(device)
    tape = record(model, tokens_BS[:, :-1], layers)
    unembed_VD = unembedding(model)
    with torch.enable_grad():
        if uniforms_BT is None:
            losses_BT = cross_entropy(tape.hidden_BTD, unembed_VD, tokens_BS[:, 1:])
        else:
            losses_BT, _ = sampled_cross_entropy(
                tape.hidden_BTD, unembed_VD, uniforms_BT.to(device)
            )
    if weights_BT is None:
        weights_BT = torch.full_like(losses_BT, 1 / losses_BT.shape[1])
    layer_gradients = tape.gradients(losses_BT, weights_BT.to(losses_BT))
    return Capture(layer_gradients, losses_BT.detach().mean(1))


@contextmanager
def _frozen(model: GPTNeoXForCausalLM) -> Iterator[None]:
    """Within, no parameter wants a gradient and dropout is off."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    was_training = model.training
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(was_training)
        for parameter in wanted:
            parameter.requires_grad_(True)
