"""What is read of a model is held against the model itself, and refused where it differs."""

import pytest
import torch
from families import FAMILIES, config_of, enlarge, toy, toy_tokens
from transformers import AutoModelForCausalLM

from mda.model import agreement
from mda.model.architecture import architecture
from mda.model.build import attention_of, initial_model, scratch
from mda.model.llama import Llama
from mda.model.loss import Unembedding, plain_losses
from mda.model.plain_attention import PlainAttention
from mda.schema import CheckpointConfig, ConfigError, ScratchConfig
from mda.schema.model import FAMILIES as ADAPTERS
from mda.training import loss as training_loss
from mda.training.loss import token_losses
from mda.unit.capture import capture, modules_of


def checkpoint(folder, case):
    """A folder as others publish it."""
    config = config_of(case)
    config._attn_implementation = attention_of(config)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    enlarge(model).eval().save_pretrained(folder)
    return CheckpointConfig(source=str(folder))


@pytest.mark.parametrize("case", FAMILIES)
def test_every_loss_is_the_model_s_own(case, monkeypatch):
    """Capture's, training's as a whole and in chunks, and transformers' own."""
    model, tokens = toy(case), toy_tokens()
    modules = modules_of(architecture(model).head_blocks(1).values())
    with torch.no_grad():
        own = model(input_ids=tokens, labels=tokens).loss.item()
        plain, whole = plain_losses(model, tokens), token_losses(model, tokens)
        monkeypatch.setattr(training_loss, "LOGITS", 5 * 31)
        chunks = token_losses(model, tokens)
    assert plain.mean().item() == pytest.approx(own, rel=1e-6)  # theirs is in float32
    assert torch.equal(whole, plain)
    torch.testing.assert_close(chunks, plain, rtol=1e-12, atol=1e-12)
    captured = capture(model, tokens, modules).losses_B
    torch.testing.assert_close(captured, plain.mean(1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", FAMILIES)
def test_a_supported_family_is_loaded(case, tmp_path):
    assert initial_model(checkpoint(tmp_path, case), 0).config.model_type == FAMILIES[case][0]


def test_a_family_from_outside_with_scaled_logits_is_right(tmp_path, monkeypatch):
    """Nothing is said of Cohere here but that it is laid out like Llama."""
    sizes = {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2}
    monkeypatch.setitem(FAMILIES, "cohere", ("cohere", sizes | {"logit_scale": 0.3}))
    monkeypatch.setitem(ADAPTERS, "cohere", "mda.model.llama:Llama")
    model, tokens = initial_model(checkpoint(tmp_path, "cohere"), 0), toy_tokens()
    modules = modules_of(architecture(model).head_blocks(1).values())
    own = model(input_ids=tokens, labels=tokens).loss.item()
    assert capture(model, tokens, modules).losses_B.mean().item() == pytest.approx(own, rel=1e-6)


@pytest.mark.parametrize("case", ["granite", "gemma2", "gemma3"])
def test_another_loss_than_the_model_s_own_is_refused_with_both(case, tmp_path, monkeypatch):
    """logits = h W, for families that scale or cap their logits."""
    settings = checkpoint(tmp_path, case)
    monkeypatch.setattr(
        agreement, "unembedding", lambda model: Unembedding(model.get_output_embeddings().weight)
    )
    model_type = FAMILIES[case][0]
    with pytest.raises(
        ConfigError,
        match=rf"model.source={tmp_path}: its adapter for {model_type} gives a loss of (\S+) nats, "
        r"the model itself (\S+); expected",
    ) as refusal:
        initial_model(settings, 0)
    ours, own = (float(number) for number in _numbers(refusal.value))
    assert abs(ours - own) > 0.01


def _numbers(error):
    words = str(error).replace(";", "").split()
    return words[words.index("nats,") - 1], words[words.index("itself") + 1]


class Reversed(PlainAttention):
    """Keeps each layer's heads in the wrong order."""

    def __exit__(self, *args):
        self.patterns = [pattern.flip(1) for pattern in self.patterns]
        return super().__exit__(*args)


def test_other_patterns_than_the_model_s_own_are_refused_with_both(tmp_path, monkeypatch):
    settings = checkpoint(tmp_path, "llama")
    monkeypatch.setattr(agreement, "PlainAttention", Reversed)
    says = r"attention probability of 0\.\d+ in layer 0, the model itself 0\.\d+; expected"
    with pytest.raises(ConfigError, match=says):
        initial_model(settings, 0)


class Narrow(Llama):
    """Says half of the heads that there are."""

    def __init__(self, model):
        super().__init__(model)
        self.n_heads //= 2


def test_an_adapter_with_other_heads_than_the_model_is_refused(monkeypatch):
    monkeypatch.setitem(ADAPTERS, "qwen2", f"{__name__}:Narrow")
    says = (
        r"model\.family=qwen2: its adapter for qwen2 gives 4 layers of 2 heads and 4 patterns, "
        "the model itself 4 layers of 4 heads"
    )
    with pytest.raises(ConfigError, match=says):
        scratch(ScratchConfig(family="qwen2"), 0)
