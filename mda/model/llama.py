"""Llama and families with its layout: grouped-query attention and a gated MLP.

The query has H groups of K output features, key and value one group for each key-value head; H / G
query heads in turn share one. A neuron is a column of the gate and of the up-projection and a row
of the down-projection; its activation is act(gate) * up. Other features of a family (norms of
queries and keys, sliding windows, soft caps, layers without positions) change no block. Where the
norms of q and k span the whole projection, as in OLMo-2, a head's attention depends a little on the
other heads' W_Q and W_K; these are not among its own blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
import transformers

from mda.model.architecture import check_layer
from mda.schema.model import ScratchConfig
from mda.types import ParameterBlock, Tap

MIXER, MLP = ("q", "k", "v", "o"), ("gate", "up", "down")


class Llama:
    """Adapter of `LlamaForCausalLM` and of families built like it."""

    residual_writers = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
    layers_path, attention_name, mlp_name = "model.layers", "self_attn", "mlp"
    linears: Mapping[str, str] = {
        **{name: f"self_attn.{name}_proj" for name in MIXER},
        **{name: f"mlp.{name}_proj" for name in MLP},
    }
    """Module of each map within a layer. Maps of one module lie side by side, in this order."""
    transposed = False  # weights are [outputs, inputs]

    def __init__(self, config: transformers.PretrainedConfig) -> None:
        self.config: Any = config
        self.n_layers, self.n_heads = config.num_hidden_layers, config.num_attention_heads
        self.n_key_value_heads = getattr(config, "num_key_value_heads", None) or self.n_heads
        self.d_model, self.d_ff = config.hidden_size, self.mlp_width(config)
        self.d_head = getattr(config, "head_dim", None) or self.d_model // self.n_heads
        inner, shared = self.n_heads * self.d_head, self.n_key_value_heads * self.d_head
        self.widths = {"q": inner, "k": shared, "v": shared, "o": self.d_model}
        self.widths |= {"gate": self.d_ff, "up": self.d_ff, "down": self.d_model}

    @cached_property
    def biased(self) -> set[str]:
        """The names of biases within a layer: families differ in what decides them."""
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(self.config)
        first = model.get_submodule(f"{self.layers_path}.0")
        return {
            name for name, p in first.named_parameters() if name.endswith(".bias") and p.ndim == 1
        }

    @staticmethod
    def mlp_width(config: transformers.PretrainedConfig) -> int:
        """Returns the number of neurons of a layer."""
        return config.intermediate_size

    @classmethod
    def scratch(cls, sizes: ScratchConfig) -> transformers.PretrainedConfig:
        """Returns the configuration of SmolLM2 (RMSNorm, gated MLP, tied embeddings).

        All else is as the family has it.
        """
        rope = {"rope_type": "default", "rope_theta": float(sizes.rotary_base)}
        return transformers.AutoConfig.for_model(
            sizes.family,
            vocab_size=sizes.vocab_size,
            hidden_size=sizes.d_model,
            num_hidden_layers=sizes.n_layers,
            num_attention_heads=sizes.n_heads,
            num_key_value_heads=sizes.n_key_value_heads or sizes.n_heads,
            intermediate_size=sizes.d_ff,
            max_position_embeddings=sizes.max_seq_len,
            tie_word_embeddings=True,
            attention_dropout=0.0,
            use_cache=False,
            pad_token_id=None,
            dtype="float32",
            **({"rope_parameters": rope} | _constants(sizes, rope)),
        )

    def _tap(self, layer: int, name: str, **layout: int) -> Tap:
        """Returns the outputs of a map: all of them, or laid out evenly among owners."""
        check_layer(layer, self.n_layers)
        home = self.linears[name]
        beside = [n for n, linear in self.linears.items() if linear == home]
        start = sum(self.widths[n] for n in beside[: beside.index(name)])
        layout = layout or {"size": self.widths[name]}
        path = f"{self.layers_path}.{layer}.{home}"
        return Tap(path, start=start, transposed=self.transposed, **layout)

    def _input(self, layer: int, name: str, **layout: int) -> Tap:
        return self._tap(layer, name, **layout)._replace(start=0)

    def _biased(self, bias: bool, *names: str) -> bool:
        return bias and all(f"{self.linears[name]}.bias" in self.biased for name in names)

    def _of_mlp(self) -> tuple[str, ...]:
        """Returns the maps into the neurons: gate and up, or one alone."""
        return tuple(name for name in ("gate", "up") if name in self.linears)

    def head_blocks(self, layer: int, bias: bool = False) -> dict[str, ParameterBlock]:
        size, groups = self.d_head, self.n_key_value_heads
        own = {"size": size, "stride": size, "groups": self.n_heads}
        shared = {"size": size, "stride": size, "groups": groups, "repeat": self.n_heads // groups}
        x = self._input(layer, "q", size=self.d_model)  # the same tensor for all three
        qk = self._tap(layer, "q", **own), self._tap(layer, "k", **shared)
        v, z = self._tap(layer, "v", **shared), self._input(layer, "o", **own)
        return {
            "qk": ParameterBlock(f"L{layer}.qk", x, qk, self._biased(bias, "q", "k")),
            "v": ParameterBlock(f"L{layer}.v", x, (v,), self._biased(bias, "v")),
            "o": ParameterBlock(f"L{layer}.o", z, (self._tap(layer, "o"),)),
        }

    def neuron_blocks(self, layer: int, bias: bool = False) -> dict[str, ParameterBlock]:
        hidden, into = {"size": 1, "stride": 1, "groups": self.d_ff}, self._of_mlp()
        x, outputs = (
            self._input(layer, into[0], size=self.d_model),
            [self._tap(layer, name, **hidden) for name in into],
        )
        activation, written = self._input(layer, "down", **hidden), self._tap(layer, "down")
        name = f"L{layer}.neurons"
        return {
            "in": ParameterBlock(f"{name}.in", x, tuple(outputs), self._biased(bias, *into)),
            "out": ParameterBlock(f"{name}.out", activation, (written,)),
        }

    def module_blocks(self, layer: int, part: str, bias: bool = False) -> list[ParameterBlock]:
        name, maps = {
            "attention": (
                "attn",
                {"qkv": (("q", "k", "v"), self.d_model), "o": (("o",), self.widths["q"])},
            ),
            "mlp": ("mlp", {"in": (self._of_mlp(), self.d_model), "out": (("down",), self.d_ff)}),
        }[part]
        found = []
        for block, (names, n_in) in maps.items():
            outputs = tuple(self._tap(layer, one) for one in names)
            x, own_bias = self._input(layer, names[0], size=n_in), self._biased(bias, *names)
            found.append(ParameterBlock(f"L{layer}.{name}.{block}", x, outputs, own_bias))
        return found

    def neuron_activation(self, layer: int) -> str:
        return self._tap(layer, "down").module


def _constants(sizes: ScratchConfig, rope: dict[str, Any]) -> dict[str, Any]:
    """Returns values that transformers fixes to those of the published model, for any size."""
    d_head = sizes.d_model // sizes.n_heads
    gemma = {"head_dim": d_head, "query_pre_attn_scalar": d_head}
    by_layer = {"rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), rope)}
    return {
        "mistral": {"sliding_window": None},
        "granite": {"attention_multiplier": d_head**-0.5},
        "qwen3": {"head_dim": d_head},
        "gemma2": gemma,
        "gemma3_text": gemma | by_layer,
        "olmo3": by_layer,
    }.get(sizes.family, {})


class Apertus(Llama):
    """Adapter of `ApertusForCausalLM`: an MLP without a gate."""

    linears: Mapping[str, str] = {n: at for n, at in Llama.linears.items() if n != "gate"}


class Phi3(Llama):
    """Adapter of `Phi3ForCausalLM`: one matrix for query, key and value, one for gate and up."""

    linears: Mapping[str, str] = {
        **dict.fromkeys(("q", "k", "v"), "self_attn.qkv_proj"),
        "o": "self_attn.o_proj",
        **dict.fromkeys(("gate", "up"), "mlp.gate_up_proj"),
        "down": "mlp.down_proj",
    }


class Gpt2(Llama):
    """Adapter of `GPT2LMHeadModel`: learned positions, weights stored [inputs, outputs]."""

    residual_writers = ("attn.c_proj.weight", "mlp.c_proj.weight")
    layers_path, attention_name, mlp_name = "transformer.h", "attn", "mlp"
    linears: Mapping[str, str] = {
        **dict.fromkeys(("q", "k", "v"), "attn.c_attn"),
        "o": "attn.c_proj",
        "up": "mlp.c_fc",
        "down": "mlp.c_proj",
    }
    transposed = True

    @staticmethod
    def mlp_width(config: transformers.PretrainedConfig) -> int:
        return config.n_inner or 4 * config.n_embd

    @classmethod
    def scratch(cls, sizes: ScratchConfig) -> transformers.PretrainedConfig:
        """Returns the configuration of GPT-2: tied embeddings, no dropout."""
        return transformers.AutoConfig.for_model(
            "gpt2",
            vocab_size=sizes.vocab_size,
            n_embd=sizes.d_model,
            n_layer=sizes.n_layers,
            n_head=sizes.n_heads,
            n_inner=sizes.d_ff,
            n_positions=sizes.max_seq_len,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            use_cache=False,
            dtype="float32",
        )
