"""The cost of passes of a model over tokens: floating-point operations, and bytes in use.

A multiplication and an addition are two operations. With N the weights of all linear maps (the
unembedding included), L layers of width d and sequences of T tokens, a token costs

    forward        2 N + 4 L d T      query with key and weight with value: 2 d T in each layer
    update         6 N + 12 L d T     forward, and backward to weights and to activations
    capture        4 N + 12 L d T     forward, and backward to activations alone

as in Kaplan et al. 2020 (arXiv 2001.08361, section 2.1, whose 6 N D is an update without attention)
and Chowdhery et al. 2022 (arXiv 2204.02311, appendix B). Softmax, norms and activation functions
are left out, and so is the causal mask, which could save half of the attention.

Bytes are those of float32 tensors that live at the same time, with attention that never forms its
pattern (sdpa). Under bf16 they are an upper bound. A GPU holds more logits at a time than a CPU;
`logits` is their number where that matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from mda.estimator.ekfac import INDEPENDENT, input_site, output_site
from mda.model.architecture import architecture
from mda.model.loss import RUN, TILE
from mda.training.loss import LOGITS
from mda.types import ParameterBlock

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FLOAT, DOUBLE = 4, 8
ADAMW = 4  # numbers for each parameter: weight, gradient, two moments


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that decide the cost of a pass."""

    n_layers: int
    n_heads: int
    d_model: int
    d_ff: int
    vocab_size: int
    gated: bool  # the MLP has a gate, as Llama's
    n_parameters: int
    n_linear: int  # weights of linear maps, unembedding included

    @classmethod
    def of(cls, model: PreTrainedModel) -> Shape:
        """Returns the sizes counted on a model, which may be on the device `meta`."""
        from transformers.pytorch_utils import Conv1D  # loaded where there is a model

        adapter, head = architecture(model), model.get_output_embeddings()
        linear = [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]
        return cls(
            n_layers=adapter.n_layers,
            n_heads=adapter.n_heads,
            d_model=adapter.d_model,
            d_ff=adapter.d_ff,
            vocab_size=len(head.weight),  # type: ignore[union-attr]
            gated=len(adapter.neuron_blocks(0)["in"].outputs) > 1,
            n_parameters=sum(parameter.numel() for parameter in model.parameters()),
            n_linear=sum(module.weight.numel() for module in linear),
        )

    @property
    def n_unembedding(self) -> int:
        return self.vocab_size * self.d_model


def forward_flops(shape: Shape, length: int) -> float:
    """Returns the operations of one sequence of `length` tokens, vocabulary included."""
    return length * 2 * shape.n_linear + attention_flops(shape, length)


def attention_flops(shape: Shape, length: int) -> float:
    """Returns the operations of one sequence's attention, forward; backward costs twice that."""
    return 4 * shape.n_layers * shape.d_model * length**2


def update_flops(shape: Shape, length: int, checkpointing: bool = False) -> float:
    """Returns the operations of one sequence's share of an update.

    Activation checkpointing runs the layers again, each up to the input of its last linear map.
    """
    left_out = shape.n_unembedding + shape.n_layers * shape.d_model * shape.d_ff
    again = forward_flops(shape, length) - 2 * length * left_out
    return 3 * forward_flops(shape, length) + (again if checkpointing else 0)


def capture_flops(shape: Shape, length: int) -> float:
    """Returns the operations of one sequence's forward pass and backward to activations.

    This is an upper bound: the backward pass ends in the lowest captured layer.
    """
    return 2 * forward_flops(shape, length) + attention_flops(shape, length)


def target_flops(shape: Shape, length: int) -> float:
    """Returns the operations of one sequence's loss scores: 3 times the layers, 2 the vocabulary.

    Forward differentiation multiplies with a change of every map, known to be 0 or not. This is an
    upper bound: below the unit nothing changes, and nothing is computed.
    """
    return 3 * forward_flops(shape, length) - 2 * length * shape.n_unembedding


def product_flops(rows: Mapping[ParameterBlock, int], length: int) -> float:
    """Returns the operations of one sequence's products with each row of the blocks."""
    return sum(2 * length * n * b.shape[1] * b.shape[2] for b, n in rows.items())


def fit_flops(
    shape: Shape, blocks: Iterable[ParameterBlock], length: int, factors: str = INDEPENDENT
) -> float:
    """Returns the operations of both passes of an EK-FAC fit over one sequence.

    Eigenvectors are left out. Factors of sequences' gradients form these in the first pass as well.
    """
    blocks = list(blocks)
    squares = 0.0
    for block in blocks:
        h, i, j = block.shape
        squares += 2 * h * i * j * (length + i + j)
    moments = squares
    if factors != "sequence":
        moments = sum(2 * length * g * i * i for g, i in sites(blocks, factors).values())
    return 2 * capture_flops(shape, length) + moments + squares


def sites(
    blocks: Iterable[ParameterBlock], factors: str = INDEPENDENT
) -> dict[str, tuple[int, int]]:
    """Returns (G, I) of every place whose second moment [G, I, I] EK-FAC keeps, by name."""
    places: dict[str, tuple[int, int]] = {}
    for block in blocks:
        _, n_in, n_out = block.shape
        places[input_site(block, factors)] = (block.input.owners, n_in)
        n_owners = max(tap.owners for tap in block.outputs)
        places[output_site(block, factors)] = (n_owners, n_out)
    return places


def update_bytes(
    shape: Shape, n_sequences: int, length: int, checkpointing: bool = False, logits: int = LOGITS
) -> float:
    """Returns the bytes of an update: weights, gradients, moments, activations."""
    tokens, d = n_sequences * length, shape.d_model
    layer = 10 * d + (4 if shape.gated else 2) * shape.d_ff  # see tests/cost/test_passes.py
    kept = shape.n_layers * d + layer if checkpointing else shape.n_layers * layer
    activations = FLOAT * tokens * (kept + 2 * d)
    states = FLOAT * ADAMW * shape.n_parameters
    return states + activations + vocabulary_bytes(shape, tokens, logits)


def vocabulary_bytes(shape: Shape, tokens: int, logits: int = LOGITS) -> float:
    """Returns the bytes of the loss and its gradient: three times the logits, or a chunk's.

    With chunks, the gradient of the unembedding is added.
    """
    if tokens * shape.vocab_size <= logits:
        return 3 * FLOAT * tokens * shape.vocab_size
    return FLOAT * (3 * logits + shape.n_unembedding + 2 * tokens * shape.d_model)


def capture_bytes(shape: Shape, n_sequences: int, length: int, mlp: bool = False) -> float:
    """Returns the bytes of a capture: weights, graph, captured tensors and their gradients.

    With `mlp`, maps of the MLP are captured too.
    """
    d, f = shape.d_model, shape.d_ff
    layer = 10 * d + (3 if shape.gated else 1) * f + (d + f if mlp else 0)
    gradients = 4 * d + (d + f if mlp else 0)
    tokens = n_sequences * length
    return FLOAT * (shape.n_parameters + shape.n_layers * tokens * (layer + gradients))


def vocabulary_map_bytes(blocks: Iterable[ParameterBlock], tokens: int) -> float:
    """Returns the bytes of whole one-hot inputs and logits where their maps are captured.

    The logits are there three times: with the loss, and with its gradient.
    """
    counted = {"embedding": lambda b: b.input.size, "unembedding": lambda b: 3 * b.outputs[0].size}
    return FLOAT * tokens * sum(counted[b.name](b) for b in blocks if b.name in counted)


def curvature_bytes(blocks: Iterable[ParameterBlock], factors: str = INDEPENDENT) -> float:
    """Returns the bytes of EK-FAC on disk, float64: eigenvectors [G, I, I], Lambda [H, I, J]."""
    blocks = list(blocks)
    vectors = sum(g * i * i for g, i in sites(blocks, factors).values())
    return DOUBLE * (vectors + sum(_size(block) for block in blocks))


def tile_bytes(shape: Shape, tokens: int, chunk: int) -> float:
    """Returns the bytes of the logits that a capture's loss forms together, of `chunk` in all."""
    tile = min(TILE, shape.vocab_size)
    return FLOAT * min(tokens, chunk // tile) * tile


def label_bytes(shape: Shape, tokens: int, chunk: int) -> float:
    """Returns the bytes of the loss with labels that are drawn.

    While the vocabulary is swept, a tile of logits and three copies of the masses of its runs; then
    the masses, twice more in float64, and the unembedding of the run that was drawn. The gradient
    of every position is added.
    """
    positions = min(tokens, chunk // min(TILE, shape.vocab_size))
    masses = positions * shape.vocab_size / RUN
    swept = tile_bytes(shape, tokens, chunk) + 3 * FLOAT * masses
    drawn = (FLOAT + 2 * DOUBLE) * masses + FLOAT * positions * RUN * shape.d_model
    return max(swept, drawn) + FLOAT * tokens * shape.d_model


def fit_bytes(
    shape: Shape,
    blocks: Iterable[ParameterBlock],
    n_sequences: int,
    length: int,
    mlp: bool = False,
    factors: str = INDEPENDENT,
) -> float:
    """Returns the bytes of a fit.

    They are a capture, three times the factors, and the gradients of the largest block.
    """
    blocks = list(blocks)
    gradients = 3 * FLOAT * n_sequences * max(_size(block) for block in blocks)
    capture = capture_bytes(shape, n_sequences, length, mlp)
    return capture + 3 * curvature_bytes(blocks, factors) + gradients


def inverse_flops(n: int, size: int) -> float:
    """Returns the operations of products of n gradients of `size` numbers, and a factorization."""
    small = min(n, size)
    return 2 * n * size * small + small**3 / 3


def inverse_bytes(n: int, block: ParameterBlock, on_gpu: bool = False) -> float:
    """Returns the bytes of `exact` on one block: gradients twice, and an owner's in float64.

    A GPU gets no more than an owner's at a time.
    """
    owner_size = block.shape[1] * block.shape[2]
    held = FLOAT * n * owner_size if on_gpu else 2 * FLOAT * n * _size(block)
    return held + DOUBLE * (2 * n * owner_size + 2 * min(n, owner_size) ** 2)


def second_order_bytes(shape: Shape, n_sequences: int, length: int) -> float:
    """Returns the bytes of a step backwards: graphs of a gradient and its derivative.

    Attention patterns are included. The gradient, the products and the adjoint are added, each as
    large as the weights.
    """
    tokens, d = n_sequences * length, shape.d_model
    layer = tokens * (14 * d + (11 if shape.gated else 4) * shape.d_ff)
    layer += 5.5 * n_sequences * shape.n_heads * length**2
    ends = tokens * (8 * d + 5 * shape.vocab_size)
    return FLOAT * (shape.n_layers * layer + ends + 12 * shape.n_parameters)


def _size(block: ParameterBlock) -> int:
    h, i, j = block.shape
    return h * i * j
