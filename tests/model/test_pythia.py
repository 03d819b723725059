"""Pythia's initialisation by its formula, shapes by the published parameter counts, checkpoints."""

import math

import pytest
import torch
from mda.model.pythia import eager_attention, initial_model, load_weights, neox_config, scratch
from safetensors.torch import save_file
from transformers import GPTNeoXForCausalLM

from mda.config import compose
from mda.schema import ConfigError, ModelConfig

SHAPE = ModelConfig(n_layers=2, d_model=64, n_heads=4, d_ff=256, vocab_size=512, max_seq_len=32)


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
    parameters = dict(model.named_parameters())
    for name, std in wanted.items():
        n = parameters[name].numel()
        assert parameters[name].std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * n)), name
    assert parameters["gpt_neox.layers.0.attention.dense.bias"].abs().max() == 0
    assert parameters["gpt_neox.final_layer_norm.weight"].min() == 1


def test_the_seed_alone_decides_the_weights():
    torch.manual_seed(1)
    one = scratch(SHAPE, 3)
    torch.manual_seed(2)
    two = scratch(SHAPE, 3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    other = scratch(SHAPE, 4)
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
    shape = compose([f"model={preset}", "data=tokens", "data.path=x"], needs=["model"]).model
    with torch.device("meta"):
        model = GPTNeoXForCausalLM(neox_config(shape))
    assert sum(p.numel() for p in model.parameters()) == published


def test_patterns_come_out_of_the_model_that_trains_with_sdpa():
    model = scratch(SHAPE, 0)
    tokens = torch.arange(20)[None]
    plain = model(tokens).logits
    with eager_attention(model):
        out = model(tokens, output_attentions=True)
    assert [tuple(a.shape) for a in out.attentions] == [(1, 4, 20, 20)] * 2
    assert torch.allclose(out.attentions[0].sum(-1), torch.ones(1, 4, 20), atol=1e-5)
    assert torch.allclose(out.logits, plain, atol=1e-5)
    assert model.config._attn_implementation == "sdpa"


def test_a_checkpoint_folder_is_loaded_as_it_was_saved(tmp_path):
    model = scratch(SHAPE, 5)
    model.half().save_pretrained(tmp_path)
    loaded = initial_model(ModelConfig(**{**vars(SHAPE), "source": str(tmp_path)}), seed=0)
    assert loaded.dtype == torch.float32
    saved = model.get_output_embeddings().weight.float()
    assert torch.equal(loaded.get_output_embeddings().weight, saved)


def test_weights_alone_are_loaded_too(tmp_path):
    model = scratch(SHAPE, 5)
    save_file(dict(model.named_parameters()), tmp_path / "model.safetensors")
    loaded = load_weights(SHAPE, tmp_path / "model.safetensors")
    assert torch.equal(loaded.get_output_embeddings().weight, model.get_output_embeddings().weight)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_layers": 3}, r"model.n_layers=3: the checkpoint in .* has 2"),
        ({"d_model": 32, "n_heads": 4}, "model.d_model=32"),
        ({"vocab_size": 600}, "model.vocab_size=600"),
        ({"source": "no/such/folder"}, "model.source=no/such/folder: accepted: `scratch`"),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused(tmp_path, change, says):
    scratch(SHAPE, 0).save_pretrained(tmp_path)
    shape = ModelConfig(**{**vars(SHAPE), "source": str(tmp_path), **change})
    with pytest.raises(ConfigError, match=says):
        initial_model(shape, 0)
