"""Models of every family at awkward sizes: float64, tiny, with every path switched on.

Weights are larger than at the start of training, so that attention is far from uniform, and no
bias is zero and no norm is one. They are drawn here, not by the code under test.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from mda.model.build import attention_of

N_LAYERS, N_VOCAB, LENGTH, D_FF = 2, 31, 9, 11

_NEOX = {"hidden_size": 24, "num_attention_heads": 3}
_LLAMA = {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 6}
_BOTH = ("sliding_attention", "full_attention")
_WINDOW, _SHORT = list(_BOTH), {"sliding_window": 4}


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
    "mistral window": ("mistral", _LLAMA | {"num_key_value_heads": 2, "sliding_window": 4}),
    "olmo2": ("olmo2", _LLAMA),
    "olmo2 groups of 3": ("olmo2", _LLAMA | {"num_key_value_heads": 2, "attention_bias": True}),
    "olmo3": ("olmo3", _LLAMA | {"num_key_value_heads": 2, "layer_types": _WINDOW} | _SHORT),
    "olmo": ("olmo", _LLAMA | {"num_key_value_heads": 3}),
    "qwen3": ("qwen3", _LLAMA | {"num_key_value_heads": 2, "head_dim": 6}),
    "smollm3": (
        "smollm3",
        _LLAMA | {"num_key_value_heads": 2, "no_rope_layers": [1, 0]},
    ),
    "granite": (
        "granite",
        _LLAMA
        | {"num_key_value_heads": 2, "attention_multiplier": 0.9, "logits_scaling": 3.0}
        | {"embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    ),
    "olmo clipped": ("olmo", _LLAMA | {"num_key_value_heads": 3, "clip_qkv": 2.0}),
    "apertus": ("apertus", _LLAMA | {"num_key_value_heads": 2, "mlp_bias": True}),
    "phi3": (
        "phi3",
        _LLAMA
        | {"num_key_value_heads": 2, "sliding_window": 4}
        | {"rope_parameters": _rotary(0.5)},
    ),
    "phi3 one group": ("phi3", _LLAMA | {"num_key_value_heads": 1}),
    "gpt2": ("gpt2", _NEOX),
    "gpt2 by layer": (
        "gpt2",
        _NEOX | {"n_inner": 13, "scale_attn_by_inverse_layer_idx": True},
    ),
    "gemma2": (
        "gemma2",
        _LLAMA
        | {"num_key_value_heads": 2, "head_dim": 6, "layer_types": _WINDOW}
        | {"query_pre_attn_scalar": 7, "attn_logit_softcapping": 2.0}
        | {"final_logit_softcapping": 3.0, "hidden_activation": "gelu_pytorch_tanh"}
        | _SHORT,
    ),
    "gemma3": (
        "gemma3_text",
        _LLAMA
        | {"num_key_value_heads": 2, "head_dim": 6, "layer_types": _WINDOW}
        | {"query_pre_attn_scalar": 7, "final_logit_softcapping": 3.0}
        | {"rope_parameters": dict.fromkeys(_BOTH, _rotary(1.0))}
        | _SHORT,
    ),
}
"""Case -> model_type, and what its configuration says besides the sizes above."""


def config_of(case: str, **changes: Any):
    """transformers' configuration of a case."""
    model_type, settings = FAMILIES[case]
    if model_type == "gpt2":
        settings = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0) | settings
    elif model_type != "gpt_neox":
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
                n_in = parameter.shape[0 if ".c_" in name else 1]  # GPT-2's are [inputs, outputs]
                drawn *= 1.5 / math.sqrt(n_in)
            else:
                drawn = 0.3 * drawn + (0.0 if name.endswith("bias") else 1.0)
            parameter.copy_(drawn)
    return model


def in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """The model in float64 throughout: transformers' norms are float32 whatever they are given."""
    for path, module in list(model.named_modules()):
        name = type(module).__name__
        if name.startswith("Gemma") and name.endswith("RMSNorm"):
            model.set_submodule(path, GemmaNorm(module.weight, module.eps))
        elif name.endswith("RMSNorm"):
            norm = nn.RMSNorm(module.weight.numel(), eps=module.variance_epsilon)
            norm.weight = module.weight
            model.set_submodule(path, norm)
        elif name == "OlmoLayerNorm":
            norm = nn.LayerNorm(module.normalized_shape, eps=1e-5, elementwise_affine=False)
            model.set_submodule(path, norm)
    return model.double()


class GemmaNorm(nn.Module):
    """Gemma's RMSNorm in the precision of its input: a weight of 0 changes nothing."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(x, self.weight.shape, 1 + self.weight, self.eps)


class InputPrecision(TorchFunctionMode):
    """Within, eager attention takes its softmax in the precision of the model, not in float32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is nn.functional.softmax:
            kwargs.pop("dtype", None)
        return func(*args, **kwargs)


def toy(case: str = "neox", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model of a case, in float64 and evaluation mode."""
    torch.set_num_threads(1)
    config = config_of(case, **changes)
    config._attn_implementation = attention_of(config)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    return in_float64(enlarge(model, seed)).eval()


def toy_tokens(n: int = 3, length: int = LENGTH + 1, seed: int = 2) -> torch.Tensor:
    """Random rows [n, length]."""
    return torch.randint(N_VOCAB, (n, length), generator=torch.Generator().manual_seed(seed))
