"""Llama, Mistral, Qwen2, SmolLM2: separate projections, grouped-query attention, a gated MLP.

`q_proj` has H groups of K output features, `k_proj` and `v_proj` one group for each key-value
head; H / G query heads in turn share one. A neuron is a column of `gate_proj` and `up_proj` and a
row of `down_proj`; its activation is act(gate) * up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from mda.model.architecture import check_layer
from mda.schema.model import ScratchConfig
from mda.types import ParameterBlock, Tap


class Llama:
    """Adapter of `LlamaForCausalLM` and of families built like it."""

    residual_writers = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
    layers_path, attention_name, mlp_name = "model.layers", "self_attn", "mlp"

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config
        self.n_layers, self.n_heads = config.num_hidden_layers, config.num_attention_heads
        self.n_key_value_heads = config.num_key_value_heads
        self.d_model, self.d_ff = config.hidden_size, config.intermediate_size
        self.d_head = getattr(config, "head_dim", None) or self.d_model // self.n_heads
        first = model.get_submodule(f"{self.layers_path}.0")
        self.biased = {
            name for name, p in first.named_parameters() if name.endswith(".bias") and p.ndim == 1
        }

    @staticmethod
    def refuse(config: Mapping[str, Any]) -> str | None:
        return None

    @staticmethod
    def scratch(sizes: ScratchConfig) -> PretrainedConfig:
        """RMSNorm, gated MLP, tied embeddings, as SmolLM2; biases as the family has them."""
        whole = {"sliding_window": None} if sizes.family == "mistral" else {}
        return AutoConfig.for_model(
            sizes.family,
            vocab_size=sizes.vocab_size,
            hidden_size=sizes.d_model,
            num_hidden_layers=sizes.n_layers,
            num_attention_heads=sizes.n_heads,
            num_key_value_heads=sizes.n_key_value_heads or sizes.n_heads,
            intermediate_size=sizes.d_ff,
            max_position_embeddings=sizes.max_seq_len,
            rope_parameters={"rope_type": "default", "rope_theta": float(sizes.rotary_base)},
            tie_word_embeddings=True,
            attention_dropout=0.0,
            use_cache=False,
            pad_token_id=None,
            dtype="float32",
            **whole,
        )

    def _path(self, layer: int, name: str) -> str:
        check_layer(layer, self.n_layers)
        return f"{self.layers_path}.{layer}.{name}"

    def _biased(self, bias: bool, *linears: str) -> bool:
        return bias and all(f"{linear}.bias" in self.biased for linear in linears)

    def head_blocks(self, layer: int, bias: bool = False) -> dict[str, ParameterBlock]:
        q, k, v, o = (self._path(layer, f"self_attn.{p}_proj") for p in "qkvo")
        size, groups = self.d_head, self.n_key_value_heads
        own = {"size": size, "stride": size, "groups": self.n_heads}
        shared = {"size": size, "stride": size, "groups": groups, "repeat": self.n_heads // groups}
        x = Tap(q, self.d_model)  # the same tensor for all three
        return {
            "qk": ParameterBlock(
                f"L{layer}.qk",
                x,
                (Tap(q, **own), Tap(k, **shared)),
                self._biased(bias, "self_attn.q_proj", "self_attn.k_proj"),
            ),
            "v": ParameterBlock(
                f"L{layer}.v", x, (Tap(v, **shared),), self._biased(bias, "self_attn.v_proj")
            ),
            "o": ParameterBlock(f"L{layer}.o", Tap(o, **own), (Tap(o, self.d_model),)),
        }

    def neuron_blocks(self, layer: int, bias: bool = False) -> dict[str, ParameterBlock]:
        gate, up, down = (self._path(layer, f"mlp.{p}_proj") for p in ("gate", "up", "down"))
        hidden = {"size": 1, "stride": 1, "groups": self.d_ff}
        return {
            "in": ParameterBlock(
                f"L{layer}.neurons.in",
                Tap(gate, self.d_model),
                (Tap(gate, **hidden), Tap(up, **hidden)),
                self._biased(bias, "mlp.gate_proj", "mlp.up_proj"),
            ),
            "out": ParameterBlock(
                f"L{layer}.neurons.out", Tap(down, **hidden), (Tap(down, self.d_model),)
            ),
        }

    def module_blocks(self, layer: int, part: str, bias: bool = False) -> list[ParameterBlock]:
        d, f, k = self.d_model, self.d_ff, self.d_head
        inner, shared = self.n_heads * k, self.n_key_value_heads * k
        home, name, maps = {
            "attention": (
                "self_attn",
                "attn",
                [(("q", "k", "v"), "qkv", d, (inner, shared, shared)), (("o",), "o", inner, (d,))],
            ),
            "mlp": (
                "mlp",
                "mlp",
                [(("gate", "up"), "in", d, (f, f)), (("down",), "out", f, (d,))],
            ),
        }[part]
        found = []
        for linears, block, n_in, sizes in maps:
            paths = [self._path(layer, f"{home}.{linear}_proj") for linear in linears]
            outputs = tuple(Tap(path, size) for path, size in zip(paths, sizes, strict=True))
            own_bias = self._biased(bias, *(f"{home}.{linear}_proj" for linear in linears))
            label = f"L{layer}.{name}.{block}"
            found.append(ParameterBlock(label, Tap(paths[0], n_in), outputs, own_bias))
        return found

    def neuron_activation(self, layer: int) -> str:
        return self._path(layer, "mlp.down_proj")
