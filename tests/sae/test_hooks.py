"""Each hookpoint is the activation it is named after."""

import pytest
import torch
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from mda.sae.hooks import GPT_NEOX, Hookpoint, Paths, activations, module_name, of_module

LLAMA = Paths("model.layers", "self_attn", "mlp")


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=70, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    return LlamaForCausalLM(shape).eval()


@pytest.fixture(params=["neox", "llama"])
def family(request, model, llama):
    return (model, GPT_NEOX) if request.param == "neox" else (llama, LLAMA)


@torch.no_grad()
def test_the_residual_stream_is_that_of_hidden_states(family, tokens):
    model, paths = family
    states = model(tokens, output_hidden_states=True).hidden_states
    for layer in range(3):
        before = activations(model, tokens, Hookpoint("resid_pre", layer), paths)
        assert_close(before, states[layer], rtol=0, atol=0)
    for layer in range(2):
        after = activations(model, tokens, Hookpoint("resid_post", layer), paths)
        assert_close(after, states[layer + 1], rtol=0, atol=0)


@torch.no_grad()
def test_the_last_residual_stream_is_not_yet_normalised(model, tokens):
    last = activations(model, tokens, Hookpoint("resid_post", 2), GPT_NEOX)
    states = model(tokens, output_hidden_states=True).hidden_states
    assert not torch.allclose(last, states[3])
    assert_close(model.gpt_neox.final_layer_norm(last), states[3], rtol=0, atol=0)


@torch.no_grad()
def test_attention_and_mlp_add_up_to_what_the_layer_writes(family, tokens):
    model, paths = family
    x = {
        kind: activations(model, tokens, Hookpoint(kind, 1), paths)
        for kind in ("resid_pre", "attn_out", "mlp_out", "resid_post")
    }
    assert_close(x["resid_pre"] + x["attn_out"] + x["mlp_out"], x["resid_post"])
    assert not torch.allclose(x["attn_out"], x["mlp_out"])


def test_gradients_flow_to_what_lies_below_alone(model, tokens):
    x = activations(model, tokens[:2], Hookpoint("attn_out", 1), GPT_NEOX)
    layers = model.gpt_neox.layers
    weights = [layers[i].attention.dense.weight for i in (0, 1, 2)]
    below, own, above = torch.autograd.grad(x.square().sum(), weights, allow_unused=True)
    assert below.norm() > 0 and own.norm() > 0 and above is None


def test_a_reading_leaves_no_hook_behind(model, tokens):
    layer = model.gpt_neox.layers[1]
    tables = (layer._forward_hooks, layer._forward_pre_hooks, layer.mlp._forward_hooks)
    before = [dict(table) for table in tables]  # transformers keeps hooks of its own
    for kind in ("resid_pre", "resid_post", "mlp_out"):
        activations(model, tokens[:1], Hookpoint(kind, 1), GPT_NEOX)
    assert [dict(table) for table in tables] == before


def test_a_layer_that_is_not_there_is_refused(model, tokens):
    with pytest.raises(ValueError, match=r"L3\.resid_post: the model has layers 0 to 2"):
        activations(model, tokens, Hookpoint("resid_post", 3), GPT_NEOX)
    with pytest.raises(ValueError, match="'hook_z' of layer 0; expected resid_post"):
        Hookpoint("hook_z", 0)


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("layers.3", Hookpoint("resid_post", 3)),
        ("layers_3", Hookpoint("resid_post", 3)),
        ("gpt_neox.layers.3", Hookpoint("resid_post", 3)),
        ("layers.0.attention", Hookpoint("attn_out", 0)),
        ("model.layers.12.self_attn", Hookpoint("attn_out", 12)),
        ("h.2.mlp", Hookpoint("mlp_out", 2)),
        ("layers.3.mlp.act", None),
        ("layers.3.post_attention_layernorm", None),
        ("embed_in", None),
        ("layers", None),
    ],
)
def test_module_names_are_told_apart(name, hook):
    assert of_module(name) == hook


def test_module_names_are_read_back():
    for kind in ("resid_post", "attn_out", "mlp_out"):
        for paths in (GPT_NEOX, LLAMA):
            assert of_module(module_name(Hookpoint(kind, 2), paths)) == Hookpoint(kind, 2)
    assert module_name(Hookpoint("attn_out", 2), LLAMA) == "layers.2.self_attn"
    with pytest.raises(ValueError, match="no module's output"):
        module_name(Hookpoint("resid_pre", 2), GPT_NEOX)
