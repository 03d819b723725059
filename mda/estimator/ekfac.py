"""EK-FAC curvature of every head's blocks, in two passes over a subset of the samples.

Pass 1 sums the second moments of the activation sites; their eigenvectors are the basis. Pass 2
sums the squared gradients of single sequences in that basis. Both are plain sums over samples:
they may be taken in parts, in any order and on any number of processes, and merged.

Labels are the model's own (`sampled`: the true Fisher, which for this loss is the Gauss-Newton
matrix) or the data's (`empirical`). A sampled label depends on seed, sample id and position only,
so that both passes see the same labels without keeping them.

Gradients are those of a sequence's MEAN token loss l = (1/T) sum_t l_t. With sampled labels the
tokens' gradients are uncorrelated, so Lambda approximates the Gauss-Newton matrix of l divided by
T. The damping being relative, this is a factor common to all scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import GPTNeoXForCausalLM

from mda import store
from mda.estimator import kfac_math
from mda.estimator.score import Rows, batches
from mda.estimator.sharding import from_first_process, rank_and_size, shard, sum_over_processes
from mda.unit.gradients import Capture, capture
from mda.unit.loss import label_uniforms
from mda.unit.subspace import BLOCK_SITES, BlockId, BlockTensors, Subspace


class SiteId(NamedTuple):
    """One activation site of one layer, see `LayerGradients.site`."""

    layer: int
    site: str


@dataclass(frozen=True)
class Labels:
    """Where the labels of the Fisher come from: `sampled` or `empirical`, and the seed."""

    kind: str = "sampled"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("sampled", "empirical"):
            raise ValueError(f"labels={self.kind!r}; accepted: sampled, empirical")

    def uniforms(self, sample_ids: np.ndarray, length: int) -> Tensor | None:
        """Uniform numbers for the draw, [B, T]; None where the data's labels are taken."""
        if self.kind == "empirical":
            return None
        return label_uniforms(self.seed, sample_ids, length)


@dataclass(frozen=True)
class Curvature:
    """EK-FAC curvature of all heads of some layers: eigenvectors and Lambda, float64."""

    eigenvectors: Mapping[SiteId, Tensor]  # [G, I, I]
    eigenvalues: Mapping[BlockId, Tensor]  # Lambda, [H, I, J]
    n_sequences: int

    def inverse_times(self, blocks: BlockTensors, damping: float) -> dict[BlockId, Tensor]:
        """(H + c mean(Lambda))^-1 V for each block and head, float64; c = `damping`.

        Raises ValueError for a block that was not fitted, or fitted with other biases.
        """
        result = {}
        for at, v_HIJ in blocks.items():
            if at not in self.eigenvalues or self.eigenvalues[at].shape != v_HIJ.shape:
                fitted = {str(b): list(e.shape) for b, e in self.eigenvalues.items()}
                raise ValueError(f"{at} of shape {list(v_HIJ.shape)}; fitted are {fitted}")
            q_a, q_s = (self.eigenvectors[SiteId(at.layer, s)] for s in BLOCK_SITES[at.block])
            values = self.eigenvalues[at]
            damped = values + kfac_math.damping(values, damping)
            result[at] = kfac_math.apply_inverse(v_HIJ.to(values), q_a, q_s, damped)
        return result

    def save(self, path: Path) -> None:
        """Writes one safetensors file; `load` reads the same numbers back, bit for bit."""
        tensors = {f"eigenvectors/{s.layer}/{s.site}": q for s, q in self.eigenvectors.items()}
        tensors |= {f"eigenvalues/{b.layer}/{b.block}": e for b, e in self.eigenvalues.items()}
        tensors["n_sequences"] = torch.tensor(self.n_sequences)
        store.write_safetensors(path, {k: t.cpu().contiguous() for k, t in tensors.items()})

    @classmethod
    def load(cls, path: Path) -> Curvature:
        """Reads what `save` wrote."""
        tensors = store.read_safetensors(path)
        n_sequences = int(tensors.pop("n_sequences"))
        parts: dict[str, dict] = {"eigenvectors": {}, "eigenvalues": {}}
        for name, tensor in tensors.items():
            kind, layer, rest = name.split("/")
            key = SiteId if kind == "eigenvectors" else BlockId
            parts[kind][key(int(layer), rest)] = tensor
        return cls(parts["eigenvectors"], parts["eigenvalues"], n_sequences)


def fit_subset(sample_ids: np.ndarray, n: int | None, seed: int) -> np.ndarray:
    """`n` of the ids, drawn without replacement, in their order; all of them if n is None."""
    ids = np.asarray(sample_ids)
    if n is None or n >= len(ids):
        return ids
    return ids[np.sort(np.random.default_rng(seed).choice(len(ids), n, replace=False))]


def fit_curvature(
    model: GPTNeoXForCausalLM,
    rows: Rows,
    sample_ids: np.ndarray,
    layers: Sequence[int],
    subspace: Subspace,
    labels: Labels,
    batch_size: int = 32,
) -> Curvature:
    """Both passes over these samples, shared among the processes if there are several.

    Every process returns the same curvature. Raises ValueError for fewer samples than processes.
    """
    mine = shard(sample_ids)
    if len(sample_ids) < rank_and_size()[1]:
        raise ValueError(
            f"{len(sample_ids)} samples to fit the curvature on; accepted: one per process or more"
        )
    fit = (layers, subspace, labels, batch_size)
    moments = sum_over_processes(sum_moments(model, rows, mine, *fit))
    basis = from_first_process(eigenbasis(moments))
    squares = sum_over_processes(sum_squares(model, rows, mine, *fit, basis=basis))
    return curvature(basis, squares, len(sample_ids))


def sum_moments(
    model: GPTNeoXForCausalLM,
    rows: Rows,
    sample_ids: np.ndarray,
    layers: Sequence[int],
    subspace: Subspace,
    labels: Labels,
    batch_size: int = 32,
) -> dict[SiteId, Tensor]:
    """Pass 1: sum over samples and positions of x x^T at every site, [G, I, I] float64.

    A site that several blocks use, such as the input of qk and v, is there once.
    """
    sites = [
        SiteId(layer, site)
        for layer in layers
        for site in dict.fromkeys(s for b in subspace.blocks for s in BLOCK_SITES[b])
    ]
    sums: dict[SiteId, Tensor] = {}
    for ids in batches(sample_ids, batch_size):
        captured = _capture(model, rows, ids, layers, labels)
        for at in sites:
            activation = captured.layers[at.layer].site(at.site, subspace.bias)
            _add(sums, at, kfac_math.second_moment_sum(activation))
    return sums


def eigenbasis(moments: Mapping[SiteId, Tensor]) -> dict[SiteId, Tensor]:
    """Eigenvectors of every site, float64. Sums do as well as means: they have the same."""
    return {at: kfac_math.eigenvectors(moment) for at, moment in moments.items()}


def sum_squares(
    model: GPTNeoXForCausalLM,
    rows: Rows,
    sample_ids: np.ndarray,
    layers: Sequence[int],
    subspace: Subspace,
    labels: Labels,
    batch_size: int = 32,
    *,
    basis: Mapping[SiteId, Tensor],
) -> dict[BlockId, Tensor]:
    """Pass 2: sum over samples of the squared gradient in the basis, [H, I, J] float64."""
    dtype = model.dtype
    basis = {at: q.to(dtype) for at, q in basis.items()}
    sums: dict[BlockId, Tensor] = {}
    for ids in batches(sample_ids, batch_size):
        captured = _capture(model, rows, ids, layers, labels)
        for at in subspace.ids(layers):
            x, dy = (
                captured.layers[at.layer].site(s, subspace.bias) for s in BLOCK_SITES[at.block]
            )
            q_a, q_s = (basis[SiteId(at.layer, s)] for s in BLOCK_SITES[at.block])
            _add(sums, at, kfac_math.squared_projection_sum(x, dy, q_a, q_s))
    return sums


def curvature(
    basis: Mapping[SiteId, Tensor], squares: Mapping[BlockId, Tensor], n_sequences: int
) -> Curvature:
    """The sums of pass 2 over `n_sequences` samples, as curvature on the CPU."""
    return Curvature(
        {at: q.cpu() for at, q in basis.items()},
        {at: total.cpu() / n_sequences for at, total in squares.items()},
        n_sequences,
    )


def _capture(
    model: GPTNeoXForCausalLM, rows: Rows, ids: np.ndarray, layers: Sequence[int], labels: Labels
) -> Capture:
    tokens_BS = rows(ids)
    uniforms_BT = labels.uniforms(ids, tokens_BS.shape[1] - 1)
    return capture(model, tokens_BS, layers, uniforms_BT=uniforms_BT)


def _add(sums: dict, at: SiteId | BlockId, part: Tensor) -> None:
    sums[at] = sums[at] + part if at in sums else part.double()
