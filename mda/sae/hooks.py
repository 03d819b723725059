"""The activations of a model that a sparse autoencoder can read, and reading them.

    kind         activation [B, T, D]
    resid_pre    residual stream that enters the layer
    resid_post   residual stream that leaves it; of the last layer, before the final norm
    attn_out     output of the layer's attention module
    mlp_out      output of the layer's MLP module

`resid_post` of layer L is transformers' `hidden_states[L + 1]`, but for the last layer, where that
is already normalised. `resid_pre` of layer L is `resid_post` of layer L - 1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KINDS = ("resid_post", "resid_pre", "attn_out", "mlp_out")
_LAYERS = r"(?:layers|h|blocks)[._](?P<layer>\d+)"
_MODULES = {  # what families call these modules
    "resid_post": "",
    "attn_out": r"[._](?:attention|self_attn|self_attention|attn)",
    "mlp_out": r"[._](?:mlp|feed_forward)",
}


@dataclass(frozen=True)
class Hookpoint:
    """One activation of a model; prints as `L3.resid_post`. Raises ValueError for another kind."""

    kind: str
    layer: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.layer < 0:
            raise ValueError(
                f"hookpoint {self.kind!r} of layer {self.layer}; expected {', '.join(KINDS)} of "
                "layer 0 and above"
            )

    def __str__(self) -> str:
        return f"L{self.layer}.{self.kind}"


class ModulePaths(Protocol):
    """Paths of a model family's layers, and names of the modules in a layer."""

    @property
    def layers_path(self) -> str: ...
    @property
    def attention_name(self) -> str: ...
    @property
    def mlp_name(self) -> str: ...


@dataclass(frozen=True)
class Paths:
    """Module paths written out: `Paths("gpt_neox.layers", "attention", "mlp")`."""

    layers_path: str
    attention_name: str
    mlp_name: str


GPT_NEOX = Paths("gpt_neox.layers", "attention", "mlp")


def activations(
    model: PreTrainedModel, tokens_BT: Tensor, hook: Hookpoint, paths: ModulePaths
) -> Tensor:
    """Returns the activation that `hook` names, [B, T, D], differentiable if gradients are on.

    Runs the model without its unembedding, in the mode it is in. Raises ValueError for a layer
    the model does not have.
    """
    layers = model.get_submodule(paths.layers_path)
    assert isinstance(layers, nn.ModuleList)
    if hook.layer >= len(layers):
        raise ValueError(f"hookpoint {hook}: the model has layers 0 to {len(layers) - 1}")
    layer = layers[hook.layer]
    read: list[Tensor] = []

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        read.append(args[0] if args else kwargs["hidden_states"])

    def after(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        read.append(output[0] if isinstance(output, tuple) else output)

    if hook.kind == "resid_pre":
        handle = layer.register_forward_pre_hook(before, with_kwargs=True)
    else:
        inside = {"attn_out": paths.attention_name, "mlp_out": paths.mlp_name}
        module = layer.get_submodule(inside.get(hook.kind, ""))  # "" is the layer itself
        handle = module.register_forward_hook(after)
    try:
        model.base_model(input_ids=tokens_BT, use_cache=False)
    finally:
        handle.remove()
    (found,) = read
    return found


def of_module(name: str) -> Hookpoint | None:
    """Returns the hookpoint that is the output of the module `name`, such as `layers.3.mlp`.

    The name may start with the path of the layers. Returns None for any other module.
    """
    for kind, inside in _MODULES.items():
        if match := re.fullmatch(rf"(?:\w+\.)*?{_LAYERS}{inside}", name):
            return Hookpoint(kind, int(match["layer"]))
    return None


def module_name(hook: Hookpoint, paths: ModulePaths) -> str:
    """Returns the module whose output `hook` is, below the layers: `layers.3.attention`.

    Raises ValueError for `resid_pre`, the output of no module of its layer.
    """
    if hook.kind == "resid_pre":
        raise ValueError(f"hookpoint {hook} is no module's output; expected resid_post, attn_out, "
                         "mlp_out")  # fmt: skip
    inside = {"attn_out": paths.attention_name, "mlp_out": paths.mlp_name}.get(hook.kind)
    layer = f"{paths.layers_path.rpartition('.')[2]}.{hook.layer}"
    return f"{layer}.{inside}" if inside else layer
