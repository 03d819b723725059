"""GPT-NeoX models in Pythia's shapes with Pythia's initialisation.

Weights are drawn as GPT-NeoX draws them: every matrix N(0, 2 / (5 d)) ("small init", Nguyen &
Salazar 2019, arXiv 1910.05895), the two that write into the residual stream
N(0, (2 / (L sqrt d))^2) ("wang init"), biases 0, LayerNorm weights 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from mda.schema import ConfigError, ModelConfig

RESIDUAL_WRITERS = ("attention.dense.weight", "mlp.dense_4h_to_h.weight")


def neox_config(shape: ModelConfig, attention: str = "sdpa") -> GPTNeoXConfig:
    """transformers' configuration of a shape: parallel residual, untied, no dropout."""
    config = GPTNeoXConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.d_model,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        intermediate_size=shape.d_ff,
        max_position_embeddings=shape.max_seq_len,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": float(shape.rotary_base),
            "partial_rotary_factor": shape.rotary_pct,
        },
        use_parallel_residual=True,
        tie_word_embeddings=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        use_cache=False,
        dtype="float32",
    )
    config._attn_implementation = attention
    return config


def scratch(shape: ModelConfig, seed: int) -> GPTNeoXForCausalLM:
    """A freshly initialised float32 model; the seed alone decides its weights."""
    model = GPTNeoXForCausalLM(neox_config(shape))
    generator = torch.Generator().manual_seed(seed)
    small = math.sqrt(2 / (5 * shape.d_model))
    wang = 2 / (shape.n_layers * math.sqrt(shape.d_model))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                std = wang if name.endswith(RESIDUAL_WRITERS) else small
                parameter.normal_(0, std, generator=generator)
    return model


def from_folder(folder: Path, shape: ModelConfig) -> GPTNeoXForCausalLM:
    """A local checkpoint folder (config.json + safetensors) as float32.

    Raises ConfigError where the folder holds no checkpoint or one of another shape.
    """
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise ConfigError(
            f"model.source={folder}: accepted: `scratch`, or a folder with config.json and "
            "*.safetensors"
        )
    model = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found, wanted = model.config, neox_config(shape)
    for key, name in {
        "n_layers": "num_hidden_layers",
        "d_model": "hidden_size",
        "n_heads": "num_attention_heads",
        "d_ff": "intermediate_size",
        "vocab_size": "vocab_size",
    }.items():
        if getattr(found, name) != getattr(wanted, name):
            raise ConfigError(
                f"model.{key}={getattr(wanted, name)}: the checkpoint in {folder} has "
                f"{getattr(found, name)}; choose the model preset of that checkpoint"
            )
    return model


def initial_model(shape: ModelConfig, seed: int) -> GPTNeoXForCausalLM:
    """The model a run starts from, as `model.source` says."""
    if shape.source == "scratch":
        return scratch(shape, seed)
    return from_folder(Path(shape.source), shape)


def load_weights(shape: ModelConfig, path: Path) -> GPTNeoXForCausalLM:
    """A model of this shape with the weights of one safetensors file."""
    model = GPTNeoXForCausalLM(neox_config(shape))
    model.load_state_dict(load_file(path))
    return model


@contextmanager
def eager_attention(model: GPTNeoXForCausalLM) -> Iterator[None]:
    """Within, the model can return attention patterns, which sdpa never forms."""
    before = model.config._attn_implementation or "eager"
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
