"""Mean ablation: running a model with the output of some heads or modules held constant.

The input of a layer's output map (of attention: the outputs z of all heads; of an MLP: the
activation of its neurons) is replaced at every position by its mean over the tokens of a reference
text, for some heads or as a whole. The means are those of the intact model. Because the map is
linear, the contribution to the residual stream becomes its own mean, a constant, which the later
layers read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mda.model.architecture import Architecture
from mda.types import HeadId
from mda.unit.blocks import features
from mda.unit.capture import module_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Place = tuple[str, slice]
"""An output map by its path, and the features of its input that are replaced."""


def head_place(architecture: Architecture, head: HeadId) -> Place:
    """Returns the place at which a head's output is read."""
    tap = architecture.head_blocks(head.layer)["o"].input
    return tap.module, features(tap, head.head)


def module_place(architecture: Architecture, layer: int, part: str) -> Place:
    """Returns the place where a layer's whole `attention` or `mlp` enters its output map."""
    if part == "attention":
        return head_place(architecture, HeadId(layer, 0))[0], slice(None)
    return architecture.neuron_blocks(layer)["out"].input.module, slice(None)


def mean_inputs(
    model: PreTrainedModel, places: Iterable[Place], chunks: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Returns the mean over all tokens of each map's whole input, [features] by path.

    `chunks` are token rows [n, T] that are run together.
    """
    paths = list(dict.fromkeys(path for path, _ in places))
    total = dict.fromkeys(paths, torch.zeros((), dtype=torch.float64))
    n_tokens = 0
    for inputs_BT in chunks:
        n_tokens += inputs_BT.numel()
        for path, z_BTF in module_inputs(model, inputs_BT, paths).items():
            # float64, so that cutting the text into chunks makes no visible difference.
            total[path] = total[path] + z_BTF.double().sum((0, 1)).cpu()
    return {path: summed / n_tokens for path, summed in total.items()}


@contextmanager
def ablated(
    model: PreTrainedModel, places: Iterable[Place], means: Mapping[str, Tensor]
) -> Iterator[None]:
    """Makes the maps read `means` (`mean_inputs`) at these places inside the block."""
    of_path: dict[str, list[slice]] = defaultdict(list)
    for path, part in places:
        of_path[path].append(part)

    def replacing(path: str):
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            z_BTF = args[0].clone()
            for part in of_path[path]:
                z_BTF[..., part] = means[path][part].to(z_BTF)
            return (z_BTF, *args[1:])

        return hook

    with ExitStack() as stack:
        for path in of_path:
            hook = model.get_submodule(path).register_forward_pre_hook(replacing(path))
            stack.callback(hook.remove)
        yield
