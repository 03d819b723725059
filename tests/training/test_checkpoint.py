"""Checkpoints are loaded strictly: every tensor, under its name, beside its parameter."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from mda import store
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
    with pytest.raises(ConfigError, match=r"step_0.* expected a checkpoint after the first upd"):
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
    assert "loss_scale" not in json.loads((plain / "state.json").read_text())
    assert checkpoint.loss_scale(plain) == {}


def misshapen(moments, name):
    moments[f"{name}/exp_avg"] = moments[f"{name}/exp_avg"].T.contiguous()


def in_half(moments, name):
    moments[f"{name}/exp_avg_sq"] = moments[f"{name}/exp_avg_sq"].half()


def negative(moments, name):
    moments[f"{name}/exp_avg_sq"][0, 0] = -1e-6


def not_finite(moments, name):
    moments[f"{name}/exp_avg"][0, 0] = torch.nan


def too_old(moments, name):
    moments[f"{name}/step"] += 7


def between_steps(moments, name):
    moments[f"{name}/step"] -= 0.5


MOMENTS = {
    misshapen: "exp_avg is torch.float32 of the shape [16, 64]; expected torch.float32 of the sh",
    in_half: "exp_avg_sq is torch.float16 of the shape [64, 16]; expected torch.float32 of the",
    negative: "exp_avg_sq holds negative values; expected mean squares, 0 or above",
    not_finite: "exp_avg holds values that are not finite; expected finite values",
    too_old: "step is 8; expected whole numbers from 0 to 7",
    between_steps: "step is 0.5; expected whole numbers from 0 to 7",
}


@pytest.mark.parametrize("damage", MOMENTS, ids=lambda damage: damage.__name__)
def test_moments_that_adamw_cannot_have_left_are_refused_by_name(damage, tmp_path):
    model = scratch(SHAPE, 0)
    folder = checkpoint.save(tmp_path, 7, model, stepped(model))
    path, name = folder / "optimizer.safetensors", "gpt_neox.embed_in.weight"
    moments = load_file(path)
    damage(moments, name)
    save_file(moments, path)
    with pytest.raises(ConfigError) as refused:
        checkpoint.load(folder, model, adamw(model, TrainingConfig()))
    assert str(refused.value).startswith(f"{path}: {name}/{MOMENTS[damage]}")


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)


def renamed(path):
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({f"{key}.x" if key == name else key: t for key, t in tensors.items()}, path)


@pytest.mark.parametrize("file", checkpoint.FILES)
@pytest.mark.parametrize("damage", [flipped, renamed])
def test_a_checkpoint_knows_the_bytes_it_was_saved_with(file, damage, tmp_path):
    model = scratch(SHAPE, 0)
    folder = checkpoint.save(tmp_path, 1, model, stepped(model))
    checkpoint.verify(folder)
    damage(folder / file)
    with pytest.raises(store.Torn, match=f"step_1/{file} has changed since it was saved"):
        checkpoint.verify(folder)
