"""Inner products that never form a gradient equal those with the explicit gradient."""

from itertools import combinations

import pytest
import torch
from derivatives import all_blocks, parameter_gradients, sequence_losses
from families import FAMILIES, N_LAYERS, toy_tokens
from families import toy as make_toy

from mda.model.architecture import architecture
from mda.types import Part, Unit
from mda.unit.blocks import (
    Directions,
    add_to,
    gather,
    index_of,
    outer_sum,
    sequence_products,
    shared_owners,
    token_products,
)
from mda.unit.capture import capture, modules_of
from mda.unit.kind import joint


def explicit(model, tokens, blocks):
    """Gradient of each sequence's loss in each block, [B, H, I, J], by autograd."""
    rows = []
    for row in range(len(tokens)):
        loss = sequence_losses(model, tokens[row : row + 1]).sum()
        gradients = parameter_gradients(model, loss)
        rows.append({block: gather(block, gradients) for block in blocks})
    return {block: torch.stack([found[block] for found in rows]) for block in blocks}


def drawn(shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", FAMILIES)
def test_products_equal_those_with_the_explicit_gradient(case, bias):
    """Blocks with many owners, and whole modules with one row and with several."""
    model, tokens = make_toy(case), toy_tokens()
    blocks = all_blocks(architecture(model), 0, bias)
    captured, gradients = (
        capture(model, tokens, modules_of(blocks)),
        explicit(model, tokens, blocks),
    )
    for block in blocks:
        for n_rows in (block.owners,) if block.owners > 1 else (1, 4):
            direction = drawn((n_rows, *block.shape[1:]))
            expected_BR = torch.einsum(
                "rij,brij->br",
                direction,
                gradients[block].expand(-1, n_rows, -1, -1),
            )
            by_token = token_products(captured, block, direction)
            assert by_token.shape == (*tokens[:, 1:].shape, n_rows)
            torch.testing.assert_close(by_token.sum(1), expected_BR)
            torch.testing.assert_close(sequence_products(captured, block, direction), expected_BR)
            x, dy = captured.x(block)[1:2, 2:3], captured.dy(block)[1:2, 2:3]  # one token's own
            torch.testing.assert_close(by_token[1, 2], (direction * outer_sum(x, dy)).sum((1, 2)))


def all_kinds(model, tokens):
    """Units of four kinds and random directions of each: heads, neurons, modules, features."""
    arch = architecture(model)
    heads = [arch.head_blocks(layer) for layer in range(N_LAYERS)]
    neurons = arch.neuron_blocks(1, bias=True)
    modules = {part: arch.module_blocks(1, part, bias=True) for part in ("attention", "mlp")}
    units = {
        "heads": [
            Unit(f"L{layer}H{head}", tuple(Part(block, head) for block in found.values()))
            for layer, found in enumerate(heads)
            for head in range(arch.n_heads)
        ],
        "neurons": [
            Unit(f"L1N{n}", tuple(Part(block, n) for block in neurons.values()))
            for n in range(arch.d_ff)
        ],
        "modules": [
            Unit("L1.mlp", tuple(Part(block, 0) for block in modules["mlp"])),
            Unit("L1", tuple(Part(b, 0) for part in modules.values() for b in part)),
        ],
        "features": [
            Unit(f"L1F{row}", tuple(Part(block, row) for block in modules["mlp"]))
            for row in range(3)
        ],
    }
    directions = {}
    for seed, (kind, of_kind) in enumerate(units.items()):
        blocks = dict.fromkeys(part.block for unit in of_kind for part in unit.parts)
        n_rows = {"features": 3}
        directions[kind] = {
            block: drawn((n_rows.get(kind, block.owners), *block.shape[1:]), seed)
            for block in blocks
        }
    # a neuron's measurement has no gradient in its output row: no direction there
    del directions["neurons"][neurons["out"]]
    return units, directions


@pytest.mark.parametrize("case", ["neox", "llama groups of 3", "llama biased", "olmo2"])
def test_several_kinds_in_one_pass_equal_each_alone_and_the_explicit_gradient(case):
    model, tokens = make_toy(case), toy_tokens()
    units, tensors = all_kinds(model, tokens)
    alone = {kind: Directions.of(units[kind], tensors[kind]) for kind in units}
    together = alone["heads"] + alone["neurons"] + alone["modules"] + alone["features"]
    assert [unit.name for unit in together.units] == [u.name for k in units for u in units[k]]
    assert len(set(together.blocks)) == len(together.blocks)
    captured = capture(model, tokens, modules_of(together.blocks))
    found = together.sequence_influence(captured)
    torch.testing.assert_close(together.token_influence(captured).sum(1), found)

    gradients = explicit(model, tokens, together.blocks)
    place = 0
    for kind, of_kind in units.items():
        columns = found[:, place : place + len(of_kind)]
        own = capture(model, tokens, modules_of(alone[kind].blocks))
        torch.testing.assert_close(alone[kind].sequence_influence(own), columns)
        for unit, column in zip(of_kind, columns.T, strict=True):
            expected = torch.zeros(len(tokens), dtype=torch.float64)
            for block, row in unit.parts:
                if block not in tensors[kind]:
                    continue
                owner = row if block.owners > 1 else 0
                expected -= (tensors[kind][block][row] * gradients[block][:, owner]).sum((1, 2))
            torch.testing.assert_close(column, expected)
        place += len(of_kind)


def test_a_mechanism_is_the_sum_of_its_heads(toy, tokens):
    arch = architecture(toy)
    blocks = [arch.head_blocks(layer) for layer in range(3)]
    heads = [
        Unit(f"L{layer}H{head}", tuple(Part(block, head) for block in found.values()))
        for layer, found in enumerate(blocks)
        for head in range(2)
    ]
    both = joint(heads, ["L2H1", "L0H0"])
    assert both.name == "mechanism" and len(both.parts) == 6
    tensors = {block: drawn(block.shape) for found in blocks for block in found.values()}
    captured = capture(toy, tokens, modules_of(tensors))
    found = Directions.of([*heads, both], tensors).sequence_influence(captured)
    torch.testing.assert_close(found[:, 6], found[:, 5] + found[:, 0])
    assert (found[:, :6].abs() > 1e-9).all()
    assert len(joint(heads, ["L2H1", "L2H1"]).parts) == 3  # named twice, owned once


@pytest.mark.parametrize("case", FAMILIES)
def test_heads_share_parameters_where_they_have_a_group_s_keys_and_values(case):
    """Against the parameters themselves: which of them a change of each head moves."""
    model = make_toy(case)
    arch = architecture(model)
    weights = {name: torch.zeros_like(p) for name, p in model.named_parameters()}

    def moved(block, head):
        changed = {name: w.clone() for name, w in weights.items()}
        add_to(block, head, changed, torch.ones(block.shape[1:], dtype=torch.float64))
        return {name: w != 0 for name, w in changed.items()}

    seen = set()
    for block in arch.head_blocks(1).values():
        for a, b in combinations(range(arch.n_heads), 2):
            one, other = moved(block, a), moved(block, b)
            common = any((one[name] & other[name]).any() for name in one)
            assert (shared_owners([(block, a), (block, b)]) is not None) == common
            seen.add(common)
    groups = model.config.to_dict().get("num_key_value_heads") or arch.n_heads
    assert (True in seen) == (groups < arch.n_heads)


def test_the_direction_of_one_unit_is_a_column_of_all(toy, tokens):
    blocks = [architecture(toy).head_blocks(layer) for layer in range(2)]
    heads = [
        Unit(f"L{layer}H{head}", tuple(Part(block, head) for block in found.values()))
        for layer, found in enumerate(blocks)
        for head in range(2)
    ]
    tensors = {block: drawn(block.shape) for found in blocks for block in found.values()}
    captured, every = capture(toy, tokens, modules_of(tensors)), Directions.of(heads, tensors)
    for column, unit in enumerate(heads):
        own = every.of_unit(unit.name)
        assert own.units == [unit] and len(own.blocks) == 3
        torch.testing.assert_close(
            own.token_influence(captured)[..., 0], every.token_influence(captured)[..., column]
        )


def test_a_part_without_a_direction_is_left_out(toy):
    blocks = architecture(toy).neuron_blocks(0)
    unit = Unit("L0N2", tuple(Part(block, 2) for block in blocks.values()))
    at, rows = index_of([unit], [blocks["in"]])[blocks["in"]]
    assert at.tolist() == [0] and rows.tolist() == [2]
    assert set(index_of([unit], [blocks["in"]])) == {blocks["in"]}
