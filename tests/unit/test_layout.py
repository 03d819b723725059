"""Which parameters a block names: told by what changes in transformers' own forward pass.

Gradients and `gather` read a block by the same layout, so they agree on a wrong one too; here the
attention patterns, the values and the activations of the model itself say whose a parameter is.
"""

import pytest
import torch
from derivatives import all_blocks
from families import FAMILIES, N_LAYERS, InputPrecision, config_of, enlarge, toy_tokens
from families import toy as make_toy
from transformers import AutoModelForCausalLM

from mda.model.architecture import architecture
from mda.model.plain_attention import eager_attention
from mda.unit.blocks import add_to, gather
from mda.unit.capture import capture, modules_of, record

GROUPED = [case for case in FAMILIES if "group" in case or case in ("llama biased", "qwen2")]


def seen(model, tokens, layer):
    """Eager attention patterns, the heads' outputs z, and the neurons' activations of a layer."""
    at = model.get_submodule(architecture(model).layers_path)[layer]
    output, down = {
        "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
        "gpt2": ("attn.c_proj", "mlp.c_proj"),
    }.get(model.config.model_type, ("self_attn.o_proj", "mlp.down_proj"))
    output, down = at.get_submodule(output), at.get_submodule(down)
    found = {}
    handles = [
        output.register_forward_hook(lambda _m, args, out: found.update(z=args[0], o=out)),
        down.register_forward_hook(lambda _m, args, out: found.update(a=args[0], mlp=out)),
    ]
    with eager_attention(model), InputPrecision(), torch.no_grad():
        found["pattern"] = model(tokens, output_attentions=True).attentions[layer]
    for handle in handles:
        handle.remove()
    heads = architecture(model).n_heads
    return found | {"z": found["z"].unflatten(-1, (heads, -1))}


def changed(before, after, what, dim):
    """Indices along a dimension at which something changed."""
    different = (before[what] - after[what]).abs() > 1e-6
    return different.movedim(dim, 0).flatten(1).any(1).nonzero().squeeze(1).tolist()


def moved(model, tokens, block, owner, layer):
    """What is seen before and after an owner's parameters of a block are changed."""
    before = seen(model, tokens, layer)
    generator = torch.Generator().manual_seed(owner)
    delta = torch.randn(block.shape[1:], generator=generator, dtype=torch.float64)
    add_to(block, owner, dict(model.named_parameters()), delta)
    return before, seen(model, tokens, layer)


def group_of(model, head):
    """All heads that share a head's key and value."""
    heads = model.config.num_attention_heads
    repeat = heads // getattr(model.config, "num_key_value_heads", heads)
    return list(range(head // repeat * repeat, head // repeat * repeat + repeat))


@pytest.mark.parametrize("case", FAMILIES)
def test_the_models_of_these_tests_have_every_path_switched_on(case):
    """Attention far from uniform, no parameter zero, and float64 norms that are the real ones."""
    model, tokens = make_toy(case), toy_tokens()
    assert all(parameter.abs().min() > 0 for parameter in model.parameters())
    for layer in range(N_LAYERS):
        pattern = seen(model, tokens, layer)["pattern"].double()
        entropy = -(pattern * pattern.clamp(min=1e-30).log()).sum(-1)[..., 1:]
        uniform = torch.arange(2, tokens.shape[1] + 1).log()
        assert (entropy / uniform).mean() < 0.9
    plain = AutoModelForCausalLM.from_config(config_of(case), dtype=torch.float32)
    with torch.no_grad():
        theirs = enlarge(plain).eval()(tokens).logits
        torch.testing.assert_close(theirs.double(), model(tokens).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", FAMILIES)
def test_the_qk_block_of_a_head_decides_its_pattern_alone(case):
    model, tokens = make_toy(case), toy_tokens()
    head = architecture(model).n_heads - 1
    block = architecture(model).head_blocks(0, bias=True)["qk"]
    before, after = moved(model, tokens, block, head, 0)
    # the norms of OLMo-2's and OLMo-3's queries and keys span all heads
    spanning = case.startswith(("olmo2", "olmo3"))
    wanted = list(range(head + 1)) if spanning else group_of(model, head)
    assert changed(before, after, "pattern", 1) == wanted
    assert changed(before, after, "z", 2) == wanted


@pytest.mark.parametrize("case", ["olmo2", "olmo2 groups of 3"])
def test_the_qk_block_of_an_olmo2_head_is_its_query_and_key_before_the_norms(case):
    model, tokens = make_toy(case), toy_tokens()
    attention = model.model.layers[0].self_attn
    heads, groups = model.config.num_attention_heads, model.config.num_key_value_heads
    found = []
    for norm, n in ((attention.q_norm, heads), (attention.k_norm, groups)):
        norm.register_forward_hook(
            lambda _m, args, _o, n=n: found.append(args[0].unflatten(-1, (n, -1)))
        )
    moved(model, tokens, architecture(model).head_blocks(0, bias=True)["qk"], 4, 0)
    query, key, new_query, new_key = found
    for before, after, wanted in ((query, new_query, 4), (key, new_key, 4 // (heads // groups))):
        assert changed({"x": before}, {"x": after}, "x", 2) == [wanted]


@pytest.mark.parametrize("case", FAMILIES)
def test_the_v_block_of_a_head_decides_its_value_alone(case):
    model, tokens = make_toy(case), toy_tokens()
    block = architecture(model).head_blocks(0, bias=True)["v"]
    before, after = moved(model, tokens, block, 0, 0)
    assert changed(before, after, "pattern", 1) == []
    assert changed(before, after, "z", 2) == group_of(model, 0)


@pytest.mark.parametrize("case", FAMILIES)
def test_the_o_block_of_a_head_multiplies_its_output_alone(case):
    model, tokens = make_toy(case), toy_tokens()
    arch = architecture(model)
    head = arch.n_heads // 2
    delta = torch.randn(arch.d_head, arch.d_model, dtype=torch.float64)
    before = seen(model, tokens, 0)
    add_to(arch.head_blocks(0)["o"], head, dict(model.named_parameters()), delta)
    after = seen(model, tokens, 0)
    assert torch.equal(before["z"], after["z"])
    torch.testing.assert_close(after["o"] - before["o"], before["z"][:, :, head] @ delta)


@pytest.mark.parametrize("case", FAMILIES)
def test_the_blocks_of_a_neuron_are_its_activation_and_its_write(case):
    model, tokens = make_toy(case), toy_tokens()
    arch = architecture(model)
    neuron = 4
    before, after = moved(model, tokens, arch.neuron_blocks(0, bias=True)["in"], neuron, 0)
    assert changed(before, after, "a", 2) == [neuron]
    assert torch.equal(before["pattern"], after["pattern"])
    before = after
    delta = torch.randn(1, arch.d_model, dtype=torch.float64)
    add_to(arch.neuron_blocks(0, bias=True)["out"], neuron, dict(model.named_parameters()), delta)
    after = seen(model, tokens, 0)
    assert torch.equal(before["a"], after["a"])
    torch.testing.assert_close(
        after["mlp"] - before["mlp"], before["a"][:, :, neuron, None] * delta[0]
    )


@pytest.mark.parametrize("case", FAMILIES)
@pytest.mark.parametrize("bias", [False, True])
def test_module_blocks_are_all_linear_maps_of_the_module(case, bias):
    model = make_toy(case)
    arch = architecture(model)
    parameters = dict(model.named_parameters())
    for layer in range(N_LAYERS):
        home = f"{arch.layers_path}.{layer}"
        for part, name in (("attention", arch.attention_name), ("mlp", arch.mlp_name)):
            blocks = arch.module_blocks(layer, part, bias)
            own = [path for path in parameters if path.startswith(f"{home}.{name}.")]
            own = [path for path in own if "norm" not in path and "act_fn" not in path]
            wanted = [path for path in own if bias or path.endswith("weight")]
            if bias and case == "qwen2" and part == "attention":
                assert all(f"{home}.{name}.{p}_proj.bias" in wanted for p in "qkv")
            n = sum(gather(block, parameters).numel() for block in blocks)
            assert n == sum(parameters[path].numel() for path in wanted), (part, layer)


@pytest.mark.parametrize("case", FAMILIES)
@pytest.mark.parametrize("layer", [0, 1])
def test_recorded_patterns_are_the_eager_ones(case, layer):
    model, tokens = make_toy(case), toy_tokens()
    arch = architecture(model)
    modules = arch.head_blocks(layer)["qk"].modules
    ours = record(model, tokens, modules, patterns=True).patterns[layer]
    assert ours.requires_grad and ours.shape == (len(tokens), arch.n_heads, *2 * [len(tokens[0])])
    own = seen(model, tokens, layer)["pattern"]
    torch.testing.assert_close(ours.detach(), own, atol=1e-12, rtol=0)


@pytest.mark.parametrize("case", FAMILIES)
def test_the_activation_of_a_layer_is_what_its_output_matrix_reads(case):
    model, tokens = make_toy(case), toy_tokens()
    arch = architecture(model)
    for layer in range(N_LAYERS):
        with eager_attention(model), InputPrecision():
            read = record(model, tokens, [arch.neuron_activation(layer)]).inputs
        activation = seen(model, tokens, layer)["a"]
        ours = read[arch.neuron_activation(layer)]
        torch.testing.assert_close(ours, activation, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", FAMILIES)
def test_blocks_rebuild_what_their_modules_write(case):
    """x W_h, the bias as the weight of a 1, is the owner's features of the outputs."""
    model, tokens = make_toy(case), toy_tokens()
    arch, parameters = architecture(model), dict(model.named_parameters())
    for block in all_blocks(arch, 1, bias=True):
        tape = record(model, tokens, block.modules)
        x = tape.capture(tape.outputs).x(block)
        outputs = tape.capture(tape.outputs).dy(block).detach()
        weight = gather(block, parameters).detach()
        ours = torch.einsum("bthi,hij->bthj", x.expand(-1, -1, block.owners, -1), weight)
        if block.input.owners > 1:  # owners' outputs are summed
            ours = ours.sum(2, keepdim=True)
        missing = outputs - ours
        if not block.bias:  # what is left is the module's bias, the same everywhere
            missing = missing - missing[:1, :1]
        torch.testing.assert_close(missing, torch.zeros_like(missing), atol=1e-12, rtol=0)


@pytest.mark.parametrize("case", FAMILIES)
@pytest.mark.parametrize("bias", [False, True])
def test_adding_to_an_owner_changes_its_parameters_and_no_others(case, bias):
    model = make_toy(case)
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    heads, groups = model.config.num_attention_heads, model.config.to_dict()
    repeat = heads // (groups.get("num_key_value_heads") or heads)
    for block in all_blocks(architecture(model), 1, bias):
        for owner in {0, block.owners // 2, block.owners - 1}:
            tensors = {name: p.clone() for name, p in parameters.items()}
            add_to(block, owner, tensors, torch.ones(block.shape[1:], dtype=torch.float64))
            moves = {name: tensors[name] - parameters[name] for name in tensors}
            n_changed = sum(int((move.abs() > 0.5).sum()) for move in moves.values())
            assert n_changed == block.shape[1] * block.shape[2], (block, owner)
            added = gather(block, moves)
            torch.testing.assert_close(added[owner], torch.ones_like(added[owner]))
            for other in range(block.owners):
                if other == owner:
                    continue
                shares = repeat > 1 and other // repeat == owner // repeat
                name = block.name.partition(".")[2]
                shared = {"qk": block.shape[2] // 2, "v": block.shape[2]}.get(name, 0)
                wanted = torch.zeros_like(added[other])
                if shares and shared:
                    wanted[:, -shared:] = 1
                torch.testing.assert_close(added[other], wanted)


def test_packed_rows_of_a_head():
    model = make_toy("neox")  # three heads of K = 8: head 1 has q 24.., k 32.., v 40..48
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    blocks = architecture(model).head_blocks(0)
    for name, wanted in (("qk", range(24, 40)), ("v", range(40, 48))):
        tensors = {key: p.clone() for key, p in parameters.items()}
        add_to(blocks[name], 1, tensors, torch.ones(blocks[name].shape[1:]).double())
        key = "gpt_neox.layers.0.attention.query_key_value.weight"
        rows = (tensors[key] != parameters[key]).any(1).nonzero().squeeze(1)
        assert rows.tolist() == list(wanted)


def test_grouped_rows_of_a_head():
    model = make_toy("llama groups of 3")  # six heads of K = 4 in two groups
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    blocks = architecture(model).head_blocks(0)
    tensors = {key: p.clone() for key, p in parameters.items()}
    add_to(blocks["qk"], 4, tensors, torch.ones(blocks["qk"].shape[1:]).double())
    for name, wanted in (("q_proj", range(16, 20)), ("k_proj", range(4, 8)), ("v_proj", ())):
        key = f"model.layers.0.self_attn.{name}.weight"
        rows = (tensors[key] != parameters[key]).any(1).nonzero().squeeze(1)
        assert rows.tolist() == list(wanted), name


@pytest.mark.parametrize("case", GROUPED)
def test_heads_of_a_group_share_their_key_and_value_gradients(case):
    model, tokens = make_toy(case), toy_tokens()
    arch = architecture(model)
    repeat = arch.n_heads // model.config.num_key_value_heads
    blocks = arch.head_blocks(0)
    captured = capture(model, tokens, modules_of(blocks.values()))
    dv, dqk = captured.dy(blocks["v"]), captured.dy(blocks["qk"])
    k = arch.d_head
    for head in range(arch.n_heads):
        first = head // repeat * repeat
        assert torch.equal(dv[:, :, head], dv[:, :, first])
        assert torch.equal(dqk[:, :, head, k:], dqk[:, :, first, k:])
        if head != first:
            assert not torch.equal(dqk[:, :, head, :k], dqk[:, :, first, :k])
    assert len({dv[0, 0, head].sum().item() for head in range(0, arch.n_heads, repeat)}) == (
        arch.n_heads // repeat
    )


@pytest.mark.parametrize("case", ["neox", "llama", "olmo2"])
def test_a_layer_that_is_not_there_is_named(case):
    arch = architecture(make_toy(case))
    calls = (
        arch.head_blocks,
        arch.neuron_blocks,
        lambda layer: arch.module_blocks(layer, "mlp"),
        arch.neuron_activation,
    )
    for call in calls:
        for layer in (2, -1):
            with pytest.raises(ValueError, match=f"layer {layer} does not exist; .* has 0 to 1"):
                call(layer)
