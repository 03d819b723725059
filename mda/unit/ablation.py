"""Mean ablation of attention heads: what a model does when some heads always say the same.

A head's output z, what it gives to the attention's output map, is replaced by its mean over the
tokens of a reference text at every position; the means are the whole model's. What the head adds
to the residual stream is then a constant, and the later layers see that constant.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mda.model.architecture import Architecture
from mda.types import HeadId
from mda.unit.blocks import features
from mda.unit.capture import module_inputs


def head_outputs(architecture: Architecture, head: HeadId) -> tuple[str, slice]:
    """The module that reads a head's output, and which of its input features they are."""
    tap = architecture.head_blocks(head.layer)["o"].input
    return tap.module, features(tap, head.head)


def mean_outputs(
    model: PreTrainedModel, architecture: Architecture, chunks: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Mean over all tokens of what the heads of each layer put out, [features] by module.

    `chunks` are token rows [n, T] that go through the model together.
    """
    layers = range(architecture.n_layers)
    paths = [head_outputs(architecture, HeadId(layer, 0))[0] for layer in layers]
    total = dict.fromkeys(paths, torch.zeros((), dtype=torch.float64))
    for inputs_BT in chunks:
        for path, z_BTF in module_inputs(model, inputs_BT, paths).items():
            total[path] = total[path] + z_BTF.double().sum((0, 1)).cpu()
    n_tokens = sum(inputs_BT.numel() for inputs_BT in chunks)
    return {path: one / n_tokens for path, one in total.items()}


@contextmanager
def ablated(
    model: PreTrainedModel,
    architecture: Architecture,
    heads: Sequence[HeadId],
    means: Mapping[str, Tensor],
) -> Iterator[None]:
    """Within, these heads put out `means` (`mean_outputs`) wherever they put out anything."""
    places: dict[str, list[slice]] = defaultdict(list)
    for head in heads:
        path, own = head_outputs(architecture, head)
        places[path].append(own)

    def replacing(path: str):
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            z_BTF = args[0].clone()
            for own in places[path]:
                z_BTF[..., own] = means[path][own].to(z_BTF)
            return (z_BTF, *args[1:])

        return hook

    with ExitStack() as stack:
        for path in places:
            hook = model.get_submodule(path).register_forward_pre_hook(replacing(path))
            stack.callback(hook.remove)
        yield
