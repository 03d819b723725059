"""OLMo-2: Llama's layout with norms after attention and MLP, and norms of queries and keys.

The norms of q and k span the whole projection, so a head's attention depends a little on the other
heads' W_Q and W_K; these are not among its own blocks.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from transformers import PreTrainedModel

from mda.model.llama import Llama


class Olmo2(Llama):
    """Adapter of `Olmo2ForCausalLM`."""

    def queries_and_keys(
        self, model: PreTrainedModel, layer: int, outputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        attention = model.get_submodule(self._path(layer, "self_attn"))
        query, key = (outputs[path] for path in self.query_key_modules(layer))
        return self._heads(model, attention.q_norm(query), attention.k_norm(key))  # type: ignore
