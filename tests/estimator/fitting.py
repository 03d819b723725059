"""Curvature of a case's blocks, and numbers in its shapes."""

from __future__ import annotations

import torch

from mda.estimator.ekfac import Curvature, Fit, Labels, fit_curvature

EMPIRICAL = Labels("empirical")


def fit(case, table, labels=EMPIRICAL, batch_size=4, shards=None, **more):
    wanted = Fit(case.blocks, labels, batch_size, **more)
    return fit_curvature(case.model, table.rows, table.ids, wanted, shards)


def random_like(fitted: Curvature, blocks, seed=5):
    generator = torch.Generator().manual_seed(seed)
    shapes = {block: fitted.eigenvalues[block.name].shape for block in blocks}
    return {b: torch.randn(s, generator=generator, dtype=torch.float64) for b, s in shapes.items()}


def basis_of(fitted, block, owner):
    return [q[owner if len(q) > 1 else 0] for q in fitted.basis(block)]
