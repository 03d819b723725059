"""Models of every family at awkward sizes: float64, tiny, with every path switched on.

Weights are larger than at the start of training, so that attention is far from uniform, and no
bias is zero and no norm is one. They are drawn here, not by the code under test.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

N_LAYERS, N_VOCAB, LENGTH, D_FF = 2, 31, 9, 11

_NEOX = {"hidden_size": 24, "num_attention_heads": 3}
_LLAMA = {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 6}


def _rotary(share: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": share}


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "neox": ("gpt_neox", _NEOX | {"rope_parameters": _rotary(0.25)}),
    "neox sequential": (
        "gpt_neox",
        {"hidden_size": 16, "num_attention_heads": 2, "use_parallel_residual": False}
        | {"rope_parameters": _rotary(0.5)},
    ),
    "neox tied": (
        "gpt_neox",
        _NEOX | {"rope_parameters": _rotary(1.0), "tie_word_embeddings": True},
    ),
    "neox without attention bias": (
        "gpt_neox",
        {"hidden_size": 20, "num_attention_heads": 5, "attention_bias": False}
        | {"rope_parameters": _rotary(0.5), "hidden_act": "relu"},
    ),
    "neox one head": (
        "gpt_neox",
        {"hidden_size": 8, "num_attention_heads": 1, "rope_parameters": _rotary(0.5)},
    ),
    "llama": ("llama", _LLAMA),
    "llama groups of 3": (
        "llama",
        _LLAMA | {"num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "llama one group": ("llama", _LLAMA | {"num_key_value_heads": 1, "attention_bias": True}),
    "llama biased": (
        "llama",
        _LLAMA | {"num_key_value_heads": 3, "attention_bias": True, "mlp_bias": True},
    ),
    "llama wide heads": ("llama", _LLAMA | {"num_key_value_heads": 2, "head_dim": 6}),
    "mistral": ("mistral", _LLAMA | {"num_key_value_heads": 2, "sliding_window": None}),
    "qwen2": ("qwen2", _LLAMA | {"num_key_value_heads": 3}),
    "olmo2": ("olmo2", _LLAMA),
    "olmo2 groups of 3": ("olmo2", _LLAMA | {"num_key_value_heads": 2, "attention_bias": True}),
}
"""Case -> model_type, and what its configuration says besides the sizes above."""


def config_of(case: str, **changes: Any):
    """transformers' configuration of a case."""
    model_type, settings = FAMILIES[case]
    if model_type != "gpt_neox":
        settings = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}} | settings
    sizes = {
        "vocab_size": N_VOCAB,
        "num_hidden_layers": N_LAYERS,
        "intermediate_size": D_FF,
        "max_position_embeddings": 32,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return AutoConfig.for_model(model_type, **(sizes | settings | changes))


def enlarge(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Draws all weights anew: matrices N(0, 1.5^2 / inputs), embeddings of norm about 2 a
    dimension, biases .3 N(0, 1), norms 1 + .3 N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.ndim == 2:
                drawn *= 1.5 / math.sqrt(parameter.shape[1])
            else:
                drawn = 0.3 * drawn + (0.0 if name.endswith("bias") else 1.0)
            parameter.copy_(drawn)
    return model


def in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """The model in float64 throughout: transformers' RMSNorm is float32 whatever it is given."""
    for path, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            norm = nn.RMSNorm(module.weight.numel(), eps=module.variance_epsilon)
            norm.weight = module.weight
            model.set_submodule(path, norm)
    return model.double()


def toy(case: str = "neox", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model of a case, in float64 and evaluation mode."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_config(config_of(case, **changes), dtype=torch.float64)
    return in_float64(enlarge(model, seed)).eval()


def toy_tokens(n: int = 3, length: int = LENGTH + 1, seed: int = 2) -> torch.Tensor:
    """Random rows [n, length]."""
    return torch.randint(N_VOCAB, (n, length), generator=torch.Generator().manual_seed(seed))
