"""EK-FAC curvature of parameter blocks, in two passes over a subset of the samples.

Pass 1 sums each block's two factors, see `kfac_math`; their eigenvectors are the basis. Pass 2 sums
the squared gradients of single sequences in that basis. Both are plain sums over samples: they may
be taken in parts, in any order and on any number of processes, and merged.

Labels are the model's own (`sampled`: the true Fisher, which for this loss is the Gauss-Newton
matrix) or the data's (`empirical`). A sampled label depends on seed, sample id and position only,
so that both passes see the same labels without keeping them.

Gradients are those of a sequence's MEAN token loss l = (1/T) sum_t l_t. With sampled labels the
tokens' gradients are uncorrelated, so Lambda approximates the Gauss-Newton matrix of l divided by
T. As the damping is relative, this is a factor common to all scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from mda import store
from mda.estimator import kfac_math
from mda.estimator.score import Rows, batches
from mda.model.loss import label_uniforms
from mda.types import ParameterBlock, Tap
from mda.unit.blocks import BlockTensors
from mda.unit.capture import Capture, capture, modules_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INDEPENDENT = "independent"  # factors of a side that do not depend on the block's other side
Sums = dict[str, Tensor]
PartialSums = Callable[[np.ndarray], Sums]
Shards = Callable[[str, PartialSums], Sums]
"""Takes a pass's name and what sums over some samples; returns the sums over all of them."""


@dataclass(frozen=True)
class Labels:
    """The source of the Fisher's labels, `sampled` or `empirical`, and the seed."""

    kind: str = "sampled"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("sampled", "empirical"):
            raise ValueError(f"labels={self.kind!r}; expected sampled, empirical")

    def uniforms(self, sample_ids: np.ndarray, length: int) -> Tensor | None:
        """Returns uniform numbers for the draw, [B, T], or None for the data's own labels."""
        if self.kind == "empirical":
            return None
        return label_uniforms(self.seed, sample_ids, length)


@dataclass(frozen=True)
class Fit:
    """What a fit needs beside a model and its samples."""

    blocks: Sequence[ParameterBlock]
    labels: Labels = Labels()
    batch_size: int = 32
    n_sequences: int | None = None  # samples, drawn with the labels' seed; None: all
    factors: str = INDEPENDENT
    skip: int = 0  # first positions whose parameters' effect is left out

    def subset(self, sample_ids: np.ndarray) -> np.ndarray:
        """Returns the ids of the samples that are fitted, in their order."""
        return fit_subset(sample_ids, self.n_sequences, self.labels.seed)

    def captures(
        self, model: PreTrainedModel, rows: Rows, sample_ids: np.ndarray
    ) -> Iterator[Capture]:
        """Yields the activations and gradients of the samples, a batch at a time."""
        for ids in batches(sample_ids, self.batch_size):
            tokens_BS = rows(ids)
            uniforms_BT = self.labels.uniforms(ids, tokens_BS.shape[1] - 1)
            modules = modules_of(self.blocks)
            yield capture(model, tokens_BS, modules, uniforms_BT=uniforms_BT, skip=self.skip)


def input_site(block: ParameterBlock, factors: str = INDEPENDENT) -> str:
    """Returns the name of the tensor whose moment A is: the block's input, or with gradients.

    Blocks with the same input share it where A is a moment of the inputs alone.
    """
    site = f"in {_text(block.input)}{' +1' if block.bias else ''}"
    return site if factors == INDEPENDENT else f"{site} of {block.name}"


def output_site(block: ParameterBlock, factors: str = INDEPENDENT) -> str:
    """Returns the name of the tensor whose moment S is: the block's output, or with inputs."""
    site = f"out {' '.join(map(_text, block.outputs))}"
    return site if factors == INDEPENDENT else f"{site} of {block.name}"


def _text(tap: Tap) -> str:
    layout = f"{tap.start}+{tap.size}" + (f"/{tap.stride}x{tap.groups}" if tap.groups > 1 else "")
    return f"{tap.module}[{layout}{f'x{tap.repeat}' if tap.repeat > 1 else ''}]"


@dataclass(frozen=True)
class Curvature:
    """EK-FAC curvature of some blocks: eigenvectors and Lambda, float64."""

    eigenvectors: Mapping[str, Tensor]  # by site, [G, I, I]
    eigenvalues: Mapping[str, Tensor]  # by block name: Lambda, [H, I, J]
    factors: str = INDEPENDENT  # whose eigenvectors they are, see `kfac_math`

    def basis(self, block: ParameterBlock) -> tuple[Tensor, Tensor]:
        """Returns Q_A and Q_S of a block, [G, I, I] and [G', J, J]."""
        sites = input_site(block, self.factors), output_site(block, self.factors)
        return self.eigenvectors[sites[0]], self.eigenvectors[sites[1]]

    def inverse_times(
        self, blocks: BlockTensors, damping: float, metric: BlockTensors | None = None
    ) -> dict[ParameterBlock, Tensor]:
        """Returns (H + c mean(Lambda) D / mean(D))^-1 V for each block and owner, float64.

        c is `damping`. D is the identity, or the diagonal in the eigenbasis of a diagonal `metric`
        [H, I, J], such as the denominators of Adam. A block with one owner may have any number of
        rows [R, I, J]. Raises ValueError for a block that was not fitted, or fitted with other
        biases, and for rows of some owners only.
        """
        result = {}
        for block, v_RIJ in blocks.items():
            values = self.eigenvalues.get(block.name)
            n_rows = len(v_RIJ) if block.owners == 1 else block.owners
            if values is None or v_RIJ.shape != (n_rows, *values.shape[1:]):
                fitted = {name: list(e.shape) for name, e in self.eigenvalues.items()}
                raise ValueError(f"{block} of shape {list(v_RIJ.shape)}; fitted are {fitted}")
            added, basis = kfac_math.damping(values, damping), self.basis(block)
            if metric is not None:
                added = added * kfac_math.in_basis(metric[block].to(values), *basis)
            result[block] = kfac_math.apply_inverse(v_RIJ.to(values), *basis, values + added)
        return result

    def save(self, path: Path) -> None:
        """Writes one safetensors file; `load` reads the same numbers back, bit for bit."""
        tensors = {f"eigenvectors/{site}": q for site, q in self.eigenvectors.items()}
        tensors |= {f"eigenvalues/{block}": e for block, e in self.eigenvalues.items()}
        store.write_safetensors(path, {k: t.cpu().contiguous() for k, t in tensors.items()})

    @classmethod
    def load(cls, path: Path, factors: str = INDEPENDENT) -> Curvature:
        """Reads a file of `save`, of a curvature with these factors."""
        tensors = store.read_safetensors(path)
        parts: dict[str, dict[str, Tensor]] = {"eigenvectors": {}, "eigenvalues": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            parts[kind][rest] = tensor
        return cls(**parts, factors=factors)


def fit_subset(sample_ids: np.ndarray, n: int | None, seed: int) -> np.ndarray:
    """Returns `n` of the ids, drawn without replacement, in their order; all if n is None."""
    ids = np.asarray(sample_ids)
    if n is None or n >= len(ids):
        return ids
    return ids[np.sort(np.random.default_rng(seed).choice(len(ids), n, replace=False))]


def fit_curvature(
    model: PreTrainedModel,
    rows: Rows,
    sample_ids: np.ndarray,
    fit: Fit,
    shards: Shards | None = None,
) -> Curvature:
    """Runs both passes over all these samples, at once or in the parts that `shards` makes."""
    all_at_once: Shards = lambda _name, sums: sums(np.asarray(sample_ids))  # noqa: E731
    over = shards or all_at_once
    moments = over("moments", lambda ids: sum_moments(model, rows, ids, fit))
    basis = eigenbasis(moments)
    squares = over("squares", lambda ids: sum_squares(model, rows, ids, fit, basis))
    n = len(sample_ids)
    return Curvature(
        {site: q.cpu() for site, q in basis.items()},
        {block: total.cpu() / n for block, total in squares.items()},
        fit.factors,
    )


def sum_moments(model: PreTrainedModel, rows: Rows, sample_ids: np.ndarray, fit: Fit) -> Sums:
    """Runs pass 1: sums A and S over samples at every site, [G, I, I] float64.

    A site that several blocks use, such as the input of qk and v, is stored once.
    """
    sums: Sums = {}
    for captured in fit.captures(model, rows, sample_ids):
        for site, part in _moments(captured, fit.blocks, fit.factors).items():
            _add(sums, site, part)
    return sums


def _moments(captured: Capture, blocks: Sequence[ParameterBlock], factors: str) -> Sums:
    """Returns A and S of one batch at every site."""
    if factors == INDEPENDENT:
        sites = {input_site(block): (Capture.x, block) for block in blocks}
        sites |= {output_site(block): (Capture.dy, block) for block in blocks}
        second_moment = kfac_math.second_moment_sum
        return {at: second_moment(read(captured, block)) for at, (read, block) in sites.items()}
    moments: Sums = {}
    for block in blocks:
        sites = input_site(block, factors), output_site(block, factors)
        sums = kfac_math.factor_sums(captured.x(block), captured.dy(block), factors)
        moments |= zip(sites, sums, strict=True)
    return moments


def eigenbasis(moments: Mapping[str, Tensor]) -> Sums:
    """Returns the eigenvectors of every site, float64; sums have the same ones as means."""
    return {site: kfac_math.eigenvectors(moment) for site, moment in moments.items()}


def sum_squares(
    model: PreTrainedModel,
    rows: Rows,
    sample_ids: np.ndarray,
    fit: Fit,
    basis: Mapping[str, Tensor],
) -> Sums:
    """Runs pass 2: sums the squared gradients of samples in the basis, [H, I, J] float64."""
    basis = {site: q.to(model.device, model.dtype) for site, q in basis.items()}
    sums: Sums = {}
    for captured in fit.captures(model, rows, sample_ids):
        for block in fit.blocks:
            x, dy = captured.x(block), captured.dy(block)
            q_a = basis[input_site(block, fit.factors)]
            q_s = basis[output_site(block, fit.factors)]
            _add(sums, block.name, kfac_math.squared_projection_sum(x, dy, q_a, q_s))
    return sums


def _add(sums: Sums, key: str, part: Tensor) -> None:
    sums[key] = sums[key] + part if key in sums else part.double()
