"""EK-FAC against the explicit Fisher matrix of a block, in float64."""

import itertools

import pytest
import torch
from mda.unit.gradients import capture
from mda.unit.subspace import BLOCK_SITES

from mda.estimator import kfac_math
from mda.estimator.kfac_math import (
    apply,
    apply_inverse,
    damping,
    eigenvectors,
    second_moment_sum,
    squared_projection_sum,
)

C = 0.1


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(n: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(random(n, n, seed=seed)).Q


def fit(x, dy):
    """Q_A, Q_S and Lambda of pairs [B, T, G, I] and [B, T, G', J]."""
    q_a, q_s = eigenvectors(second_moment_sum(x)), eigenvectors(second_moment_sum(dy))
    return q_a, q_s, squared_projection_sum(x, dy, q_a, q_s) / len(x)


def explicit_fisher(x, dy, head: int = 0):
    """mean_b vec(G_b) vec(G_b)^T of one head, [I J, I J]."""
    x, dy = (s[:, :, head if s.shape[2] > 1 else 0] for s in (x, dy))
    g = torch.einsum("bti,btj->bij", x, dy).flatten(1)
    return g.T @ g / len(g)


def as_matrix(q_a, q_s, eigenvalues):
    q = torch.kron(q_a, q_s)
    return q @ torch.diag(eigenvalues.flatten()) @ q.T


def solve_explicitly(fisher, v):
    """(F + c mean(diag) 1)^-1 v: the mean eigenvalue is the mean of the diagonal."""
    damped = fisher + C * fisher.diagonal().mean() * torch.eye(len(fisher), dtype=fisher.dtype)
    return torch.linalg.solve(damped, v.flatten()).view_as(v)


def test_one_sample_of_one_token_is_the_explicit_damped_fisher():
    """G = x dy^T has rank one: the basis holds x and dy, and Lambda is exact."""
    x, dy, v = random(1, 1, 1, 5, seed=1), random(1, 1, 1, 3, seed=2), random(1, 5, 3, seed=3)
    q_a, q_s, values = fit(x, dy)
    ours = apply_inverse(v, q_a, q_s, values + damping(values, C))
    torch.testing.assert_close(ours[0], solve_explicitly(explicit_fisher(x, dy), v[0]))


def test_independent_orthogonal_tokens_are_the_explicit_damped_fisher():
    """Every x with every dy, each family orthogonal: vec(G) has a Kronecker eigenbasis."""
    xs = orthogonal(4, 1) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    dys = orthogonal(3, 2) * torch.tensor([1.0, 0.5, 2.0])
    pairs = list(itertools.product(xs.T, dys.T))
    x = torch.stack([a for a, _ in pairs])[:, None, None]
    dy = torch.stack([s for _, s in pairs])[:, None, None]
    q_a, q_s, values = fit(x, dy)
    fisher = explicit_fisher(x, dy)
    torch.testing.assert_close(as_matrix(q_a[0], q_s[0], values[0]), fisher)
    v = random(1, 4, 3, seed=3)
    ours = apply_inverse(v, q_a, q_s, values + damping(values, C))
    torch.testing.assert_close(ours[0], solve_explicitly(fisher, v[0]))


@pytest.mark.parametrize("block", BLOCK_SITES)
def test_ekfac_is_closer_to_the_explicit_fisher_than_kfac(toy, table, block):
    captured = capture(toy, table.tokens, [1]).layers[1]
    x, dy = (captured.site(s) for s in BLOCK_SITES[block])
    q_a, q_s, values = fit(x, dy)
    a = torch.linalg.eigvalsh(second_moment_sum(x))
    s = torch.linalg.eigvalsh(second_moment_sum(dy))
    for head in range(2):
        fisher = explicit_fisher(x, dy, head)
        basis = [q[head if len(q) > 1 else 0] for q in (q_a, q_s)]
        kfac = a[head if len(a) > 1 else 0][:, None] * s[head if len(s) > 1 else 0]
        kfac_matrix = as_matrix(*basis, kfac)
        # generous to K-FAC: its scale is the best there is
        kfac_matrix *= (kfac_matrix * fisher).sum() / kfac_matrix.square().sum()
        ekfac = (as_matrix(*basis, values[head]) - fisher).norm()
        assert ekfac < (kfac_matrix - fisher).norm()


def test_solve_undoes_apply():
    q_a, q_s, values = fit(random(6, 4, 1, 5, seed=1), random(6, 4, 3, 2, seed=2))
    damped = values + damping(values, C)
    v = random(3, 5, 2, seed=3)
    for there, back in ((apply, apply_inverse), (apply_inverse, apply)):
        torch.testing.assert_close(back(there(v, q_a, q_s, damped), q_a, q_s, damped), v)


@pytest.mark.parametrize(("g_in", "g_out"), [(1, 3), (3, 1), (1, 1)])
def test_heads_that_share_a_side_equal_heads_one_by_one(g_in, g_out):
    x, dy = random(4, 6, g_in, 5, seed=1), random(4, 6, g_out, 2, seed=2)
    q_a, q_s, values = fit(x, dy)
    for head in range(max(g_in, g_out)):
        at_in, at_out = min(head, g_in - 1), min(head, g_out - 1)
        alone = fit(x[:, :, [at_in]], dy[:, :, [at_out]])
        torch.testing.assert_close(values[head], alone[2][0])
        rotated = [q_a[at_in].T @ g @ q_s[at_out] for g in _gradients(x, dy, at_in, at_out)]
        torch.testing.assert_close(values[head], torch.stack(rotated).square().mean(0))


def _gradients(x, dy, at_in, at_out):
    return torch.einsum("bti,btj->bij", x[:, :, at_in], dy[:, :, at_out])


@pytest.mark.parametrize("scale", [1e-6, 1e3])
def test_ranking_survives_the_scale_of_the_loss(scale):
    """A loss in other units: all scores change by one factor, 1 / scale."""
    x, dy, probe = random(8, 6, 1, 5, seed=1), random(8, 6, 2, 3, seed=2), random(2, 5, 3, seed=3)
    scores = []
    for unit in (1.0, scale):
        q_a, q_s, values = fit(x, unit * dy)
        direction = apply_inverse(probe, q_a, q_s, values + damping(values, C))
        gradients = torch.einsum("btgi,bthj->bhij", x, unit * dy)
        scores.append(-(gradients * direction).sum((2, 3)))
    torch.testing.assert_close(scores[1] * scale, scores[0])


def test_damping_is_relative_to_each_heads_own_mean():
    values = torch.stack([torch.full((2, 2), 1.0), torch.full((2, 2), 10.0)])
    assert damping(values, 0.1).flatten().tolist() == pytest.approx([0.1, 1.0])


def test_a_head_without_curvature_is_named():
    values = torch.stack([torch.ones(2, 2), torch.zeros(2, 2)])
    with pytest.raises(ValueError, match=r"heads \[1\]"):
        damping(values, 0.1)
    with pytest.raises(ValueError, match=r"damping=0 .* heads \[0, 1\]"):
        damping(values, 0)


def test_eigenvectors_are_float64_and_ordered_with_the_moments():
    moment = second_moment_sum(random(5, 4, 2, 3).float())
    q = eigenvectors(moment)
    assert q.dtype == torch.float64
    diagonal = q.transpose(1, 2) @ moment.double() @ q
    off = diagonal - torch.diag_embed(diagonal.diagonal(dim1=1, dim2=2))
    assert off.abs().max() < 1e-5 * moment.abs().max()  # the moments came in float32
    assert kfac_math.eigenvectors(2 * moment.double()).abs().allclose(q.abs())
