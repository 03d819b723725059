"""Models from nothing: their initialisation, their sizes, and reading one back."""

import math
import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from mda.config import compose
from mda.cost.passes import Shape
from mda.model.architecture import architecture, family
from mda.model.build import (
    from_config,
    function_of,
    initial_model,
    layout_of,
    load_weights,
    saved_config,
    scratch,
)
from mda.model.plain_attention import eager_attention
from mda.schema import ScratchConfig
from mda.schema.model import FAMILIES

SIZES = {
    "n_layers": 2,
    "d_model": 64,
    "n_heads": 4,
    "d_ff": 256,
    "vocab_size": 512,
    "max_seq_len": 32,
}
SHAPE = ScratchConfig(**SIZES)
DENSE = "gpt_neox.layers.1.attention.dense.weight"
TOKENS = torch.arange(20)[None] % 31


def test_initial_weights_have_the_stated_spread():
    model = scratch(SHAPE, 0)
    small, wang = math.sqrt(2 / (5 * 64)), 2 / (2 * math.sqrt(64))
    wanted = {
        "gpt_neox.embed_in.weight": small,
        "lm_head.weight": small,
        "gpt_neox.layers.0.attention.query_key_value.weight": small,
        "gpt_neox.layers.1.mlp.dense_h_to_4h.weight": small,
        "gpt_neox.layers.1.attention.dense.weight": wang,
        "gpt_neox.layers.0.mlp.dense_4h_to_h.weight": wang,
    }
    assert_spread(model, wanted)
    parameters = dict(model.named_parameters())
    assert parameters["gpt_neox.layers.0.attention.dense.bias"].abs().max() == 0
    assert parameters["gpt_neox.final_layer_norm.weight"].min() == 1


LIKE_LLAMA = ["llama", "mistral", "qwen2", "olmo2", "granite", "qwen3", "smollm3"]


@pytest.mark.parametrize("name", LIKE_LLAMA)
def test_scratch_models_of_other_families_follow_the_same_rule(name):
    sizes = ScratchConfig(**SIZES, family=name, n_key_value_heads=2, rotary_base=500.0)
    model = scratch(sizes, 0)
    small, wang = math.sqrt(2 / (5 * 64)), 2 / (2 * math.sqrt(64))
    wanted = {
        "model.embed_tokens.weight": small,
        "model.layers.0.self_attn.q_proj.weight": small,
        "model.layers.0.self_attn.k_proj.weight": small,
        "model.layers.1.mlp.gate_proj.weight": small,
        "model.layers.1.self_attn.o_proj.weight": wang,
        "model.layers.0.mlp.down_proj.weight": wang,
    }
    assert_spread(model, wanted)
    parameters = dict(model.named_parameters())
    assert "lm_head.weight" not in parameters  # tied
    assert parameters["model.layers.0.self_attn.k_proj.weight"].shape == (32, 64)
    assert all(p.abs().max() == 0 for path, p in parameters.items() if path.endswith("bias"))
    assert parameters["model.norm.weight"].min() == parameters["model.norm.weight"].max() == 1
    assert model.config.rope_parameters["rope_theta"] == 500
    assert model.config.model_type == name and model.dtype == torch.float32
    assert getattr(model.config, "sliding_window", None) is None
    assert model(TOKENS).logits.shape == (1, 20, 512)
    assert function_of(sizes)["model_type"] == name


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_starts_from_its_sizes(name):
    sizes = ScratchConfig(**SIZES, family=name, rotary_base=500.0)
    model, content = scratch(sizes, 0), function_of(sizes)
    adapter = architecture(model)
    assert (adapter.n_layers, adapter.n_heads, adapter.d_head) == (2, 4, 16)
    assert (adapter.d_model, adapter.d_ff) == (64, 256)
    assert Shape.of(layout_of(sizes)) == Shape.of(model)
    assert name == "gpt2" or set(re.findall(r"'rope_theta': ([0-9.]+)", str(content))) == {"500.0"}
    for path, parameter in model.named_parameters():
        if path.endswith(tuple(family(name).residual_writers)):
            n = parameter.numel()
            wang = pytest.approx(2 / (2 * math.sqrt(64)), rel=4 / math.sqrt(2 * n))
            assert parameter.std().item() == wang, path


def assert_spread(model, wanted):
    parameters = dict(model.named_parameters())
    for name, std in wanted.items():
        n = parameters[name].numel()
        assert parameters[name].std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * n)), name


@pytest.mark.parametrize("name", ["gpt_neox", "llama", "olmo2"])
def test_the_seed_alone_decides_the_weights(name):
    sizes = ScratchConfig(**SIZES, family=name)
    torch.manual_seed(1)
    one = scratch(sizes, 3)
    torch.manual_seed(2)
    two = initial_model(sizes, 3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    other = scratch(sizes, 4)
    assert not torch.equal(one.get_output_embeddings().weight, other.get_output_embeddings().weight)


@pytest.mark.parametrize(
    ("preset", "published"),
    [  # parameters in all, from the models' own published configurations
        ("pythia-14m", 14_067_712),
        ("pythia-31m", 30_494_720),
        ("pythia-70m", 70_426_624),
        ("pythia-160m", 162_322_944),
        ("pythia-410m", 405_334_016),
        ("pythia-1b", 1_011_781_632),
    ],
)
def test_presets_have_the_published_number_of_parameters(preset, published):
    sizes = compose([f"model={preset}", "data=tokens", "data.path=x"], needs=["model"]).model
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(family(sizes.family).scratch(sizes))
    assert sum(p.numel() for p in model.parameters()) == published


@pytest.mark.parametrize("name", ["gpt_neox", "llama", "olmo2"])
def test_patterns_come_out_of_the_model_that_trains_with_sdpa(name):
    model = scratch(ScratchConfig(**SIZES, family=name), 0)
    plain = model(TOKENS).logits
    with eager_attention(model):
        out = model(TOKENS, output_attentions=True)
    assert [tuple(a.shape) for a in out.attentions] == [(1, 4, 20, 20)] * 2
    assert torch.allclose(out.attentions[0].sum(-1), torch.ones(1, 4, 20), atol=1e-5)
    assert torch.allclose(out.logits, plain, atol=1e-5)
    assert model.config._attn_implementation == "sdpa"


def test_scratch_keys_change_with_every_size():
    before = function_of(SHAPE)
    changes = {"n_layers": 3, "d_model": 32, "n_heads": 2, "d_ff": 8, "vocab_size": 9}
    changes |= {"max_seq_len": 64, "rotary_pct": 1.0, "rotary_base": 9.0, "family": "llama"}
    for name, value in changes.items():
        assert function_of(ScratchConfig(**{**SIZES, name: value})) != before, name
    assert function_of(ScratchConfig(**SIZES, name="another", peak_lr=1.0)) == before


def test_saved_weights_that_do_not_fit_are_refused_by_name():
    model = scratch(SHAPE, 5)
    weights = dict(model.named_parameters())
    again = from_config(saved_config(model), weights)
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    less = {name: w for name, w in weights.items() if name != DENSE}
    with pytest.raises(ValueError, match=f"weight {DENSE} is missing"):
        load_weights(model, less)
    with pytest.raises(ValueError, match="weight new is unknown to the model"):
        load_weights(model, weights | {"new": torch.ones(1)})
    with pytest.raises((ValueError, RuntimeError), match=DENSE):
        load_weights(model, weights | {DENSE: torch.ones(1)})
