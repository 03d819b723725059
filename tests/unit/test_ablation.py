"""Mean ablation of heads against hooks made by hand, the families' packing written out."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mda.model.architecture import architecture
from mda.model.build import scratch
from mda.schema import ScratchConfig
from mda.types import HeadId
from mda.unit.ablation import ablated, head_place, mean_inputs

T, K = 9, 4


def neox():
    sizes = ScratchConfig(n_layers=2, d_model=12, n_heads=3, d_ff=24, vocab_size=40, max_seq_len=16)
    return scratch(sizes, seed=0), "gpt_neox.layers.{}.attention.dense"


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=2, hidden_size=16, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=20, vocab_size=40, max_position_embeddings=16,
    )  # fmt: skip
    return LlamaForCausalLM(config), "model.layers.{}.self_attn.o_proj"


@pytest.mark.parametrize("make", [neox, llama])
def test_ablated_heads_put_out_their_mean_and_all_else_is_computed_from_it(make):
    model, path = make()
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4 if p.ndim == 2 else 1)
    tokens = torch.randint(40, (6, T), generator=torch.Generator().manual_seed(1))
    modules, seen = [model.get_submodule(path.format(layer)) for layer in (0, 1)], {}
    hooks = [
        module.register_forward_pre_hook(lambda _m, args, i=i: seen.update({i: args[0]}))
        for i, module in enumerate(modules)
    ]
    whole = model(tokens).logits.detach()
    for hook in hooks:
        hook.remove()
    by_hand = {i: z.reshape(6 * T, -1, K).mean(0).detach() for i, z in seen.items()}  # [H, K]

    def replace(i, head):
        def hook(_module, args):
            heads = [args[0][..., K * h : K * (h + 1)] for h in range(args[0].shape[-1] // K)]
            heads[head] = by_hand[i][head].expand_as(heads[head])
            return (torch.cat(heads, -1),)

        return modules[i].register_forward_pre_hook(hook)

    hooks = [replace(0, 2), replace(1, 0)]
    expected = model(tokens).logits.detach()
    for hook in hooks:
        hook.remove()
    arch = architecture(model)
    places = [head_place(arch, HeadId(0, 2)), head_place(arch, HeadId(1, 0))]
    means = mean_inputs(model, places, tokens.split(4))  # in parts of unequal size
    with ablated(model, places, means), torch.no_grad():
        ours = model(tokens).logits
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    assert (ours - whole).abs().max() > 1e-3
    assert torch.equal(model(tokens).logits, whole), "nothing is left behind"


def test_two_heads_of_a_layer_are_ablated_together():
    model, path = neox()
    arch, tokens = architecture(model.eval()), torch.arange(8)[None]
    means = {path.format(layer): torch.full((12,), 10.0 + layer) for layer in (0, 1)}
    seen = []
    module = model.get_submodule(path.format(1))
    places = [head_place(arch, HeadId(1, head)) for head in (0, 2)]
    with ablated(model, places, means), torch.no_grad():
        hook = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        model(tokens)
        hook.remove()
    z = seen[0][0]
    assert (z[:, :4] == 11).all() and (z[:, 8:] == 11).all()
    assert (z[:, 4:8] != 11).all()
