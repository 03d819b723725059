"""GPT-NeoX (Pythia): queries, keys and values packed by head, a plain MLP.

`query_key_value` is head-major: its 3D output features are H groups of 3K, and a group holds that
head's query, key and value, K features each. `dense` reads the H concatenated head outputs z, so
that head h owns its input columns h*K .. (h+1)*K. Residuals are parallel or sequential, any share
of a head's dimensions rotates, embeddings are tied or not: none of it changes the place of a block.
"""

from __future__ import annotations

from typing import Any

import transformers

from mda.model.architecture import check_layer
from mda.schema.model import ScratchConfig
from mda.types import ParameterBlock, Tap


class GptNeox:
    """Adapter of `GPTNeoXForCausalLM`."""

    residual_writers = ("attention.dense.weight", "mlp.dense_4h_to_h.weight")
    layers_path, attention_name, mlp_name = "gpt_neox.layers", "attention", "mlp"

    def __init__(self, config: transformers.GPTNeoXConfig) -> None:
        self.n_layers, self.n_heads = config.num_hidden_layers, config.num_attention_heads
        self.d_model, self.d_ff = config.hidden_size, config.intermediate_size
        self.d_head = config.hidden_size // config.num_attention_heads
        self.attention_bias: bool = config.attention_bias

    @staticmethod
    def scratch(sizes: ScratchConfig) -> transformers.GPTNeoXConfig:
        """Returns the configuration of Pythia: parallel residual, untied, no dropout."""
        return transformers.GPTNeoXConfig(
            vocab_size=sizes.vocab_size,
            hidden_size=sizes.d_model,
            num_hidden_layers=sizes.n_layers,
            num_attention_heads=sizes.n_heads,
            intermediate_size=sizes.d_ff,
            max_position_embeddings=sizes.max_seq_len,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": float(sizes.rotary_base),
                "partial_rotary_factor": sizes.rotary_pct,
            },
            use_parallel_residual=True,
            tie_word_embeddings=False,
            attention_dropout=0.0,
            hidden_dropout=0.0,
            use_cache=False,
            dtype="float32",
        )

    def _path(self, layer: int, name: str) -> str:
        check_layer(layer, self.n_layers)
        return f"{self.layers_path}.{layer}.{name}"

    def head_blocks(self, layer: int, bias: bool = False) -> dict[str, ParameterBlock]:
        qkv = self._path(layer, "attention.query_key_value")
        dense, k = self._path(layer, "attention.dense"), self.d_head
        bias = bias and self.attention_bias

        def features(start: int, size: int) -> Tap:
            return Tap(qkv, size, start, stride=3 * k, groups=self.n_heads)

        x, z = Tap(qkv, self.d_model), Tap(dense, k, stride=k, groups=self.n_heads)
        return {
            "qk": ParameterBlock(f"L{layer}.qk", x, (features(0, 2 * k),), bias),
            "v": ParameterBlock(f"L{layer}.v", x, (features(2 * k, k),), bias),
            "o": ParameterBlock(f"L{layer}.o", z, (Tap(dense, self.d_model),)),
        }

    def neuron_blocks(self, layer: int, bias: bool = False) -> dict[str, ParameterBlock]:
        up, down = (self._path(layer, f"mlp.{name}") for name in ("dense_h_to_4h", "dense_4h_to_h"))
        hidden: dict[str, Any] = {"size": 1, "stride": 1, "groups": self.d_ff}
        x = Tap(up, self.d_model)
        return {
            "in": ParameterBlock(f"L{layer}.neurons.in", x, (Tap(up, **hidden),), bias),
            "out": ParameterBlock(
                f"L{layer}.neurons.out", Tap(down, **hidden), (Tap(down, self.d_model),)
            ),
        }

    def module_blocks(self, layer: int, part: str, bias: bool = False) -> list[ParameterBlock]:
        d, f = self.d_model, self.d_ff
        maps = {
            "attention": [("query_key_value", "qkv", d, 3 * d), ("dense", "o", d, d)],
            "mlp": [("dense_h_to_4h", "in", d, f), ("dense_4h_to_h", "out", f, d)],
        }[part]
        found = []
        for linear, name, n_in, n_out in maps:
            path = self._path(layer, f"{part}.{linear}")
            own_bias = bias and (part == "mlp" or self.attention_bias)
            block = f"L{layer}.{'attn' if part == 'attention' else part}.{name}"
            found.append(ParameterBlock(block, Tap(path, n_in), (Tap(path, n_out),), own_bias))
        return found

    def neuron_activation(self, layer: int) -> str:
        return self._path(layer, "mlp.dense_4h_to_h")
