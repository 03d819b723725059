"""The layout of model families for attribution, one adapter each, and nowhere else.

An adapter gives the path of the family's layers, and the packing of heads and neurons into linear
maps; the rest of the project uses `ParameterBlock`s and units. The blocks of a head are

    block   input I        output J                parameters
    qk      D              2K (query, key)         W_Q and W_K of the head, one joint block
    v       D              K                       W_V
    o       K (z)          D                       W_O

those of an MLP neuron

    in      D              1, or 2 (gate and up)   its column of the input matrix, and of the gate
    out     1              D                       its row of the output matrix

and those of a whole attention (qkv, o) or MLP (in, out) are the same maps with one owner. Under
grouped-query attention the query heads of a group share W_K and W_V: these parameters count as
every such head's own, so an edit of them affects the whole group.

Biases of maps that write into the residual stream are added once for all owners and belong to none.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from mda.schema import ConfigError
from mda.schema.model import FAMILIES, ScratchConfig
from mda.types import ParameterBlock

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Architecture(Protocol):
    """One configuration's sizes and layout. `layers_path` and the two names locate its modules."""

    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    d_ff: int
    layers_path: str  # gpt_neox.layers
    attention_name: str  # within a layer
    mlp_name: str

    def head_blocks(self, layer: int, bias: bool = False) -> dict[str, ParameterBlock]:
        """Returns blocks qk, v and o of all heads of a layer."""
        ...

    def neuron_blocks(self, layer: int, bias: bool = False) -> dict[str, ParameterBlock]:
        """Returns blocks `in` and `out` of all MLP neurons of a layer."""
        ...

    def module_blocks(self, layer: int, part: str, bias: bool = False) -> list[ParameterBlock]:
        """Returns every linear map of a layer's `attention` or `mlp`, as a block with one owner."""
        ...

    def neuron_activation(self, layer: int) -> str:
        """Returns the path of the module whose input [B, T, d_ff] is the neurons' activation."""
        ...


class Family(Protocol):
    """The class methods of an adapter, which is made from transformers' configuration."""

    def __call__(self, config: Any) -> Architecture: ...

    residual_writers: Sequence[str]  # endings of the weights that write into the residual stream

    def scratch(self, sizes: ScratchConfig) -> Any:
        """Returns transformers' configuration of a model with these sizes."""
        ...


def family(model_type: str) -> Family:
    """Returns the adapter's class of a model type.

    Raises ConfigError, with the supported types, for any other.
    """
    if model_type not in FAMILIES:
        accepted = ", ".join(sorted(FAMILIES))
        raise ConfigError(f"model_type={model_type} is not supported; expected {accepted}")
    module, _, name = FAMILIES[model_type].partition(":")
    return getattr(import_module(module), name)


def architecture(model: PreTrainedModel) -> Architecture:
    """Returns the adapter of a model. Raises ConfigError for a family without one."""
    return family(model.config.model_type)(model.config)


def check_layer(layer: int, n_layers: int) -> None:
    """Raises ValueError for a layer the model does not have."""
    if not 0 <= layer < n_layers:
        raise ValueError(f"layer {layer} does not exist; the model has 0 to {n_layers - 1}")
