"""Checkpoints are loaded strictly: every tensor, under its name, beside its parameter."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from mda.model.build import scratch
from mda.schema import ConfigError, ScratchConfig, TrainingConfig
from mda.training import checkpoint
from mda.training.optimizer import adamw

SHAPE = ScratchConfig(n_layers=2, d_model=16, n_heads=2, d_ff=32, vocab_size=64, max_seq_len=16)


def tied_llama():
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def stepped(model):
    """The optimizer after one update."""
    optimizer = adamw(model, TrainingConfig())
    tokens = torch.arange(10)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("make", [lambda: scratch(SHAPE, 0), tied_llama], ids=["neox", "tied"])
def test_a_checkpoint_comes_back_bit_for_bit(make, tmp_path):
    model = make()
    optimizer = stepped(model)
    folder = checkpoint.save(tmp_path, 7, model, optimizer)
    other = make()
    found = adamw(other, TrainingConfig())
    assert checkpoint.load(folder, other, found) == 7
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        for key, value in optimizer.state[ours].items():
            assert torch.equal(value, found.state[theirs][key]), key


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        ("model", ("embed_in.weight", None), "lacks gpt_neox.embed_in.weight:"),
        (
            "model",
            ("final_layer_norm.bias", "gpt_neox.final_norm.bias"),
            "lacks gpt_neox.final_layer_norm.bias and has the unknown gpt_neox.final_norm.bias:",
        ),
        ("optimizer", ("final_layer_norm.bias/exp_avg", None), "lacks gpt_neox.final_layer_norm."),
        (
            "optimizer",
            ("final_layer_norm.bias/exp_avg", "gpt_neox.x/exp_avg"),
            "lacks gpt_neox.final_layer_norm.bias/exp_avg and has the unknown gpt_neox.x/exp_avg:",
        ),
    ],
)
def test_a_missing_or_renamed_tensor_is_refused_by_name(file, change, sentence, tmp_path):
    model = scratch(SHAPE, 0)
    folder = checkpoint.save(tmp_path, 1, model, stepped(model))
    path, (end, renamed) = folder / f"{file}.safetensors", change
    tensors = load_file(path)
    (name,) = [name for name in tensors if name.endswith(end)]
    value = tensors.pop(name)
    save_file(tensors | ({renamed: value} if renamed else {}), path)
    with pytest.raises(ConfigError) as refused:
        checkpoint.load(folder, model, adamw(model, TrainingConfig()))
    assert f"{file}.safetensors {sentence}" in str(refused.value)


def test_a_checkpoint_of_another_shape_is_refused_by_name(tmp_path):
    model = scratch(SHAPE, 0)
    folder = checkpoint.save(tmp_path, 0, model, adamw(model, TrainingConfig()))
    wider = scratch(ScratchConfig(**{**vars(SHAPE), "vocab_size": 80}), 0)
    with pytest.raises(ConfigError, match=r"has the shape \[64, 16\], the model's is \[80, 16\]"):
        checkpoint.load(folder, wider, adamw(wider, TrainingConfig()))


def test_a_tied_tensor_is_found_under_either_name(tmp_path):
    model = tied_llama()
    folder = checkpoint.save(tmp_path, 0, model, adamw(model, TrainingConfig()))
    path = folder / "model.safetensors"
    tensors = load_file(path)
    assert "lm_head.weight" not in tensors
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path)
    other = tied_llama()
    checkpoint.load(folder, other, adamw(other, TrainingConfig()))
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, path)
    with pytest.raises(ConfigError, match=r"lacks model\.embed_tokens\.weight:"):
        checkpoint.load(folder, other, adamw(other, TrainingConfig()))


def test_second_moments_before_the_first_update_are_refused(tmp_path):
    model = scratch(SHAPE, 0)
    folder = checkpoint.save(tmp_path, 0, model, adamw(model, TrainingConfig()))
    with pytest.raises(ConfigError, match=r"step_0.* accepted: a checkpoint after the first upd"):
        checkpoint.second_moments(folder, 0.95)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_optimizer_s_state_lies_beside_its_parameters(device, tmp_path):
    """The fused AdamW wants all of it there; meta stands in for a GPU: what stays behind shows."""
    model = scratch(SHAPE, 0)
    folder = checkpoint.save(tmp_path, 1, model, stepped(model))
    other = scratch(SHAPE, 0).to(device)
    optimizer = adamw(other, TrainingConfig())
    checkpoint.load(folder, other, optimizer)
    for parameter in other.parameters():
        assert {optimizer.state[parameter][key].device.type for key in checkpoint.MOMENTS} == {
            device
        }


def test_the_loss_scale_of_fp16_is_part_of_a_checkpoint(tmp_path):
    model = scratch(SHAPE, 0)
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    scaler.scale(torch.ones(()))
    folder = checkpoint.save(tmp_path, 3, model, stepped(model), scaler.state_dict())
    other = torch.amp.GradScaler("cpu")
    other.load_state_dict(checkpoint.loss_scale(folder))
    assert other.get_scale() == 512.0
    plain = checkpoint.save(tmp_path, 4, model, stepped(model))
    assert json.loads((plain / "state.json").read_text()) == {"step": 4}
    assert checkpoint.loss_scale(plain) == {}
