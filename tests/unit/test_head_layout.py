"""The packing of heads, against transformers' own eager attention."""

import pytest
import torch
from mda.model.head_layout import (
    attention,
    attention_pattern,
    block_bias,
    block_weight,
    model_shape,
    rotary_tables,
    split_qkv,
)
from mda.model.pythia import eager_attention


@pytest.mark.parametrize("layer", [0, 2])
def test_pattern_from_packed_features_is_the_eager_pattern(toy, tokens, layer):
    seen = {}
    module = attention(toy, layer).query_key_value
    handle = module.register_forward_hook(lambda _m, _a, out: seen.update(qkv=out))
    with eager_attention(toy), torch.no_grad():
        eager = toy(tokens, output_attentions=True).attentions[layer]
    handle.remove()
    cos, sin = rotary_tables(toy, tokens.shape[1])
    ours = attention_pattern(seen["qkv"], model_shape(toy).n_heads, cos, sin)
    # transformers' eager softmax is float32 even in a float64 model
    torch.testing.assert_close(ours, eager, atol=1e-6, rtol=0)


def test_blocks_rebuild_the_packed_features(toy):
    module, shape = attention(toy, 1), model_shape(toy)
    x_TD = torch.randn(5, shape.d_model, dtype=torch.float64)
    query, key, value = split_qkv(module.query_key_value(x_TD), shape.n_heads)
    qkv, dense, n = module.query_key_value, module.dense, shape.n_heads
    qk = torch.einsum("td,hdj->thj", x_TD, block_weight(qkv.weight, dense.weight, "qk", n))
    qk = qk + block_bias(qkv.bias, "qk", n).squeeze(1)
    v = torch.einsum("td,hdk->thk", x_TD, block_weight(qkv.weight, dense.weight, "v", n))
    v = v + block_bias(qkv.bias, "v", n).squeeze(1)
    torch.testing.assert_close(qk, torch.cat((query, key), -1))
    torch.testing.assert_close(v, value)
    summed = torch.einsum("thk,hkd->td", v, block_weight(qkv.weight, dense.weight, "o", n))
    torch.testing.assert_close(summed + dense.bias, dense(v.flatten(1)))


def test_writing_to_a_block_writes_to_the_model(toy):
    module = attention(toy, 0)
    before = module.query_key_value.weight.clone()
    with torch.no_grad():
        block_weight(module.query_key_value.weight, module.dense.weight, "v", 2)[1] += 1.0
    changed = (module.query_key_value.weight != before).any(1).nonzero().squeeze(1)
    assert changed.tolist() == list(range(40, 48))  # head 1, K = 8: q 24.., k 32.., v 40..48


def test_a_layer_that_is_not_there_is_named(toy):
    with pytest.raises(ValueError, match=r"layer 3 does not exist; the model has 0 to 2"):
        attention(toy, 3)
