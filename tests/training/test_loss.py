"""The loss and its gradient: against the library's own, the whole batch's, and each other's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from mda.data.stream import stream_hash
from mda.model.build import scratch
from mda.model.loss import Unembedding
from mda.schema import ScratchConfig
from mda.training import loss as loss_module
from mda.training.datamodule import loss_weights
from mda.training.loss import (
    _in_checkpointed_chunks,
    accumulate_gradients,
    sample_losses,
    vocabulary_losses,
)
from mda.types import Stream

SHAPE = ScratchConfig(n_layers=2, d_model=16, n_heads=2, d_ff=32, vocab_size=64, max_seq_len=16)
EDITED = [1.0, 0.0, 2.0, 1.0, 0.5, 1.0, 1.0]  # seven rows where the batch size is 5


def neox(dtype=torch.float32):
    return scratch(SHAPE, 0).to(dtype)


def tied_llama(dtype=torch.float32):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype)


MODELS = pytest.mark.parametrize("make", [neox, tied_llama])


def gradient(model, tokens, weights, batch_size, micro=None):
    model.zero_grad()
    weights = torch.tensor(weights)
    loss = accumulate_gradients(model, tokens, weights, batch_size, micro)
    return loss, torch.cat([p.grad.flatten() for p in model.parameters()])


@MODELS
def test_sample_loss_is_the_library_s_own(corpus, make):
    model, tokens = make(), corpus.rows(np.arange(5))
    ours = sample_losses(model, tokens)
    for row, loss in zip(tokens, ours, strict=True):
        theirs = model(input_ids=row[None], labels=row[None]).loss
        assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_weight_zero_takes_a_sample_out_and_leaves_the_others_as_they_were(corpus):
    model, tokens = neox(), corpus.rows(np.arange(4))
    _, masked = gradient(model, tokens, [1.0, 0.0, 1.0, 1.0], 4)
    _, without = gradient(model, tokens[[0, 2, 3]], [1.0] * 3, 4)
    assert torch.allclose(masked, without, atol=1e-7)
    _, twice = gradient(model, tokens[[0, 1, 1, 2, 3]], [1.0] * 5, 4)
    _, doubled = gradient(model, tokens, [1.0, 2.0, 1.0, 1.0], 4)
    assert torch.allclose(twice, doubled, atol=1e-7)
    assert not torch.allclose(masked, twice, atol=1e-4)


@MODELS
@pytest.mark.parametrize("micro", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_micro_batches_give_the_whole_batch_s_gradient(corpus, make, micro, dtype, tolerance):
    model, tokens = make(dtype), corpus.rows(np.arange(7))
    whole_loss, whole = gradient(model, tokens, EDITED, 5)
    loss, parts = gradient(model, tokens, EDITED, 5, micro)
    assert whole.dtype == dtype
    assert (parts - whole).norm() <= tolerance * whole.norm()
    assert loss.item() == pytest.approx(whole_loss.item(), rel=tolerance)


def test_the_gradient_is_that_of_the_stream_s_formula(corpus):
    model, tokens = neox(torch.float64), corpus.rows(np.arange(7))
    _, ours = gradient(model, tokens, EDITED, 5, 3)
    model.zero_grad()
    logits = model(input_ids=tokens[:, :-1]).logits
    losses = [F.cross_entropy(logits[j], tokens[j, 1:]) for j in range(7)]
    (sum(w * loss for w, loss in zip(EDITED, losses, strict=True)) / 5).backward()
    theirs = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert (ours - theirs).norm() <= 1e-12 * theirs.norm()


def test_a_batch_of_which_every_sample_was_dropped_has_the_gradient_zero(corpus):
    loss, zero = gradient(neox(), corpus.rows(np.arange(0)), [], 4)
    assert loss.item() == 0
    assert zero.count_nonzero() == 0 and len(zero)


@MODELS
@pytest.mark.parametrize("chunked", ["torch's", "checkpointed"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_a_chunked_vocabulary_gives_the_same_losses_and_gradient(
    corpus, make, chunked, dtype, tolerance, monkeypatch
):
    if chunked == "checkpointed":
        monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    elif not hasattr(F, "linear_cross_entropy"):
        pytest.skip("this torch has no chunked loss")
    model, tokens = make(dtype), corpus.rows(np.arange(7))
    losses = sample_losses(model, tokens)
    _, whole = gradient(model, tokens, EDITED, 5)
    monkeypatch.setattr(loss_module, "LOGITS", 5 * 64)  # 22 chunks of 5 positions and one of 2
    close = {"rtol": tolerance, "atol": 0.0}
    assert torch.allclose(sample_losses(model, tokens), losses, **close)
    _, chunks = gradient(model, tokens, EDITED, 5)
    assert (chunks - whole).norm() <= tolerance * whole.norm()


@pytest.mark.parametrize("unembedding", [{}, {"scale": 0.5}, {"cap": 3.0}])
def test_logits_above_the_bound_never_exist(corpus, monkeypatch, unembedding):
    """Tensors of vocabulary width, counted as autograd keeps them and as operators make them."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Widest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (64,):
                    self.rows = max(self.rows, tensor.numel() // 64)
            return out

    tokens = corpus.rows(np.arange(7))
    hidden = torch.randn(7 * 16, 16, requires_grad=True)
    head = Unembedding(torch.nn.Linear(16, 64, bias=False).weight, **unembedding)
    targets = tokens[:, 1:].flatten()
    monkeypatch.setattr(loss_module, "LOGITS", 5 * 64)
    for losses in (vocabulary_losses, lambda h, w, t: _in_checkpointed_chunks(h, w, t, 5)):
        with Widest() as seen:
            losses(hidden, head, targets).sum().backward()
        assert 0 < seen.rows <= 16, "5 logits at a time; the head's gradient is [64, 16]"


def test_mixed_precision_chunks_as_the_whole_batch(corpus, monkeypatch):
    model, tokens = neox(), corpus.rows(np.arange(7))
    with torch.autocast("cpu", torch.bfloat16):
        _, whole = gradient(model, tokens, EDITED, 5)
        monkeypatch.setattr(loss_module, "LOGITS", 5 * 64)
        _, chunks = gradient(model, tokens, EDITED, 5)
    _, single = gradient(model, tokens, EDITED, 5)
    assert (whole - single).norm() > 1e-3 * single.norm(), "bfloat16 was in use"
    assert (chunks - whole).norm() <= 0.01 * whole.norm()
    assert (chunks - single).norm() <= 2 * (whole - single).norm()


@MODELS
def test_activation_checkpointing_gives_the_same_gradient_from_twice_the_work(corpus, make):
    model, tokens = make().train(), corpus.rows(np.arange(7))
    forwards = []
    model.base_model.layers[0].register_forward_hook(lambda *_: forwards.append(1))
    _, plain = gradient(model, tokens, EDITED, 5)
    assert len(forwards) == 1
    model.gradient_checkpointing_enable({"use_reentrant": False})
    _, again = gradient(model, tokens, EDITED, 5)
    assert torch.equal(plain, again)
    attention = model.base_model.layers[0].input_layernorm
    seen = []
    attention.register_forward_hook(lambda *_: seen.append(1))
    gradient(model, tokens, EDITED, 5)
    assert len(seen) == 2, "a layer is computed again in the backward pass"


def test_a_masked_token_has_no_gradient_and_the_others_have_what_they_had(corpus):
    """By hand: the losses that count, each divided by T, and the gradient at every logit."""
    model, tokens = neox(torch.float64), corpus.rows(np.arange(3))
    length = tokens.shape[1] - 1
    weights = torch.ones(3, length, dtype=torch.float64)
    weights[1, 2] = weights[1, 5] = weights[2, 0] = 0
    weights[0] = 2.0
    seen = []

    def watch(_module, _inputs, logits):
        logits.register_hook(seen.append)

    hook = model.get_output_embeddings().register_forward_hook(watch)
    model.zero_grad()
    loss = accumulate_gradients(model, tokens, weights, 4)
    hook.remove()
    ours = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert (seen[0].abs().sum(-1) == 0).nonzero().tolist() == [[1, 2], [1, 5], [2, 0]]
    model.zero_grad()
    log_p = model(input_ids=tokens[:, :-1]).logits.log_softmax(-1)
    total = sum(
        -weights[j, t] * log_p[j, t, tokens[j, t + 1]] / length / 4
        for j in range(3)
        for t in range(length)
        if weights[j, t]
    )
    total.backward()
    theirs = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert (ours - theirs).norm() <= 1e-12 * theirs.norm()
    assert loss.item() == pytest.approx(total.item(), rel=1e-12)
    _, parts = gradient(model, tokens, weights.tolist(), 4, 2)
    assert (parts - ours).norm() <= 1e-6 * ours.norm()  # weights of this one are float32


def test_a_streams_masked_tokens_become_weights_of_their_batch_alone(corpus):
    ids = np.arange(6)
    masked = np.array([[3, 1], [3, 4], [5, 0]])
    stream = Stream(10, 3, np.array([0, 3, 6]), ids, np.full(6, 2, np.float32), masked)
    assert loss_weights(stream, 10, corpus.seq_len).tolist() == [2, 2, 2]
    weights = loss_weights(stream, 11, corpus.seq_len)
    assert weights.shape == (3, corpus.seq_len)
    assert (weights == 0).nonzero().tolist() == [[0, 1], [0, 4], [2, 0]]
    assert weights.unique().tolist() == [0, 2]
    unmasked = Stream(10, 3, np.array([0, 3, 6]), ids, np.full(6, 2, np.float32))
    assert stream_hash(stream) != stream_hash(unmasked)
