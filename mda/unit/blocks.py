"""Tensors of parameter blocks: their place in the model, gradients, and inner products.

A block's tensors have a leading owner dimension, [H, I, J]: weights, gradients, curvature and
directions of all heads or neurons of a layer lie in one tensor. Several units may share a whole
module, each with a direction of its own; their tensors are [R, I, J], a row for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from mda.types import ParameterBlock, Tap, Unit
from mda.unit.capture import Capture

BlockTensors = Mapping[ParameterBlock, Tensor]  # each [R, I, J]; R is the block's H, or above 1
Products = Callable[[Capture, ParameterBlock, Tensor], Tensor]


def gather(block: ParameterBlock, tensors: Mapping[str, Tensor]) -> Tensor:
    """Returns a block's weights [H, I, J], copied from tensors named and shaped like parameters.

    `tensors` are the parameters themselves, their gradients, or an optimizer's second moments.
    """
    parts = []
    for output in block.outputs:
        own_IHJ = output.of(_weight(output, tensors).T)  # of all the module's inputs
        own_HJGI = block.input.of(own_IHJ.permute(1, 2, 0))
        part_HIJ = own_HJGI[:, :, 0].transpose(1, 2)
        if block.input.owners > 1:
            part_HIJ = own_HJGI[0].permute(1, 2, 0)
        if block.bias:
            bias_HJ = output.of(tensors[f"{output.module}.bias"])
            part_HIJ = torch.cat((part_HIJ, bias_HJ.unsqueeze(1)), 1)
        parts.append(part_HIJ)
    return torch.cat(parts, -1)


@torch.no_grad()
def add_to(
    block: ParameterBlock, owner: int, tensors: Mapping[str, Tensor], delta_IJ: Tensor
) -> None:
    """Adds to one owner's parameters in place; shared ones change for all that share them."""
    n_in, place = block.input.size, 0
    inputs = features(block.input, owner)
    for output in block.outputs:
        rows, part = features(output, owner), delta_IJ[:, place : place + output.size]
        _weight(output, tensors)[rows, inputs] += part[:n_in].T
        if block.bias:
            tensors[f"{output.module}.bias"][rows] += part[n_in]
        place += output.size


def _weight(tap: Tap, tensors: Mapping[str, Tensor]) -> Tensor:
    """Returns a view of the weight of a tap's module, [outputs, inputs]."""
    weight = tensors[f"{tap.module}.weight"]
    return weight.T if tap.transposed else weight


def features(tap: Tap, owner: int) -> slice:
    """Returns the place of one owner's features among those of the tap's module."""
    start = tap.start + (owner // tap.repeat % tap.groups) * tap.stride
    return slice(start, start + tap.size)


def shared_owners(parts: Iterable[tuple[ParameterBlock, int]]) -> tuple[int, int] | None:
    """Returns two owners of a block that share some of its parameters, or None.

    Under grouped-query attention, the heads of a group share its keys and values.
    """
    of_block: dict[ParameterBlock, list[int]] = {}
    for block, owner in parts:
        of_block.setdefault(block, []).append(owner)
    for block, owners in of_block.items():
        for a, b in combinations(owners, 2):
            alike = [tap for tap in block.outputs if features(tap, a) == features(tap, b)]
            if alike and features(block.input, a) == features(block.input, b):
                return a, b
    return None


def block_gradients(captured: Capture, block: ParameterBlock) -> Tensor:
    """Returns the batch objective's gradient in a block, [H, I, J]: sum_bt x_bt dy_bt^T."""
    return outer_sum(captured.x(block), captured.dy(block))


def outer_sum(x_BTGI: Tensor, dy_BTGJ: Tensor) -> Tensor:
    """Returns sum_bt x_bt dy_bt^T for each owner, [H, I, J]; G is 1 for a shared tensor."""
    x_RGI, dy_RGJ = x_BTGI.flatten(0, 1), dy_BTGJ.flatten(0, 1)
    if x_RGI.shape[1] == 1:
        return torch.einsum("ri,rhj->hij", x_RGI[:, 0], dy_RGJ)
    if dy_RGJ.shape[1] == 1:
        return torch.einsum("rhi,rj->hij", x_RGI, dy_RGJ[:, 0])
    return torch.einsum("rhi,rhj->hij", x_RGI, dy_RGJ)


def token_products(captured: Capture, block: ParameterBlock, direction_RIJ: Tensor) -> Tensor:
    """Returns <direction of row r, x_t dy_t^T> for every token, [B, T, R].

    The sum over t is the inner product of the direction with the sequence's gradient, which is
    never formed: <P, x dy^T> = (x P) . dy, the gradient applied to the change of the outputs along
    the direction; or x . (P dy), where the outputs are shared by all owners.
    """
    direction_RIJ = direction_RIJ.to(captured.losses_B)
    x_BTGI, dy_BTGJ = captured.x(block), captured.dy(block)
    if x_BTGI.shape[2] == 1:
        weight = direction_RIJ.transpose(1, 2).flatten(0, 1)  # [R J, I]
        added = F.linear(x_BTGI.squeeze(2), weight).unflatten(-1, (len(direction_RIJ), -1))
        return (added * dy_BTGJ).sum(-1)
    if dy_BTGJ.shape[2] == 1:
        pulled = F.linear(dy_BTGJ.squeeze(2), direction_RIJ.flatten(0, 1))  # [B, T, R I]
        return (pulled.unflatten(-1, (len(direction_RIJ), -1)) * x_BTGI).sum(-1)
    added = torch.einsum("bthi,hij->bthj", x_BTGI, direction_RIJ)
    return (added * dy_BTGJ).sum(-1)


def sequence_products(captured: Capture, block: ParameterBlock, direction_RIJ: Tensor) -> Tensor:
    """Returns `token_products` summed over tokens, [B, R].

    Where several rows share a whole module, the sequence's gradient is formed once for all.
    """
    if block.owners == 1 and len(direction_RIJ) > 1:
        x_BTI, dy_BTJ = captured.x(block).squeeze(2), captured.dy(block).squeeze(2)
        gradients_BIJ = x_BTI.transpose(1, 2) @ dy_BTJ
        return gradients_BIJ.flatten(1) @ direction_RIJ.to(gradients_BIJ).flatten(1).T
    return token_products(captured, block, direction_RIJ).sum(1)


@dataclass(frozen=True)
class Directions:
    """P = M grad f for every unit, block by block: the factor of a sample's gradient.

    Units may be of several kinds; `groups` has for each kind its units and the tensors whose rows
    their `parts` index.
    """

    groups: tuple[tuple[tuple[Unit, ...], BlockTensors], ...]

    @classmethod
    def of(cls, units: Sequence[Unit], blocks: BlockTensors) -> Directions:
        """Returns the directions of units of one kind."""
        return cls(((tuple(units), blocks),))

    def __add__(self, other: Directions) -> Directions:
        return Directions(self.groups + other.groups)

    @property
    def units(self) -> list[Unit]:
        """All units, in the order of the columns of their scores."""
        return [unit for units, _ in self.groups for unit in units]

    @property
    def blocks(self) -> list[ParameterBlock]:
        """The blocks that have to be captured, each once."""
        return list(dict.fromkeys(block for _, tensors in self.groups for block in tensors))

    def of_unit(self, name: str) -> Directions:
        """Returns the direction of one unit alone."""
        return Directions(tuple(
            ((unit,), {block: t for block, t in tensors.items() if block in dict(unit.parts)})
            for units, tensors in self.groups
            for unit in units
            if unit.name == name
        ))  # fmt: skip

    def tangents(self, unit: Unit, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the unit's direction as a change of the model's parameters, by name.

        `weights` are the parameters; those in which the unit owns nothing are left out.
        """
        changes: dict[str, Tensor] = {}
        for units, tensors in self.groups:
            for block, row in unit.parts if unit in units else ():
                if block not in tensors:
                    continue
                for output in block.outputs:
                    for end in ("weight", *(["bias"] * block.bias)):
                        name = f"{output.module}.{end}"
                        changes.setdefault(name, torch.zeros_like(weights[name]))
                add_to(block, row, changes, tensors[block][row].to(weights[name]))
        return changes

    def sequence_influence(self, captured: Capture) -> Tensor:
        """Returns -<P_u, grad L(z)> for every sequence and unit, [B, U]."""
        return self._combine(captured, sequence_products)

    def token_influence(self, captured: Capture) -> Tensor:
        """Returns each token's contribution to `sequence_influence`, [B, T, U]."""
        return self._combine(captured, token_products)

    def _combine(self, captured: Capture, products: Products) -> Tensor:
        columns = []
        for (units, tensors), index in zip(self.groups, self._index, strict=True):
            example = captured.losses_B
            total: Tensor | None = None
            for block, direction in tensors.items():
                values = products(captured, block, direction)  # [.., R]
                if total is None:
                    total = example.new_zeros((*values.shape[:-1], len(units)))
                at, rows = (side.to(values.device) for side in index[block])
                total.index_add_(-1, at, -values.index_select(-1, rows))
            assert total is not None
            columns.append(total)
        return torch.cat(columns, -1)

    @cached_property
    def _index(self) -> list[dict[ParameterBlock, tuple[Tensor, Tensor]]]:
        return [index_of(units, tensors) for units, tensors in self.groups]


def index_of(
    units: Sequence[Unit], blocks: Iterable[ParameterBlock]
) -> dict[ParameterBlock, tuple[Tensor, Tensor]]:
    """Returns for each block the positions of the units that own a row of it, and these rows.

    A part in another block is left out: the unit's direction is zero there.
    """
    pairs: dict[ParameterBlock, list[tuple[int, int]]] = {block: [] for block in blocks}
    for place, unit in enumerate(units):
        for block, row in unit.parts:
            if block in pairs:
                pairs[block].append((place, row))
    return {
        block: tuple(torch.tensor(places, dtype=torch.long).reshape(-1, 2).T)  # type: ignore[misc]
        for block, places in pairs.items()
    }
