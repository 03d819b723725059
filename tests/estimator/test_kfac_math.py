"""EK-FAC against the explicit Fisher matrix of a block, in float64."""

import itertools

import pytest
import torch
from in_memory import Case

from mda.estimator import kfac_math
from mda.estimator.kfac_math import (
    apply_inverse,
    damping,
    eigenvectors,
    factor_sums,
    rotated,
    second_moment_sum,
    sequence_gradients,
    squared_projection_sum,
)
from mda.unit.capture import capture, modules_of

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


@pytest.mark.parametrize("place", [0, 1, 2])
def test_ekfac_is_closer_to_the_explicit_fisher_than_kfac(toy, table, place):
    """For qk, v and o of every head of the second layer."""
    block = Case.of(toy, "heads", bias=False).blocks[3 + place]
    captured = capture(toy, table.tokens, modules_of([block]))
    x, dy = captured.x(block), captured.dy(block)
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


def test_the_inverse_of_every_owner_solves_its_own_damped_matrix():
    q_a, q_s, values = fit(random(6, 4, 1, 5, seed=1), random(6, 4, 3, 2, seed=2))
    damped = values + damping(values, C)
    v = random(3, 5, 2, seed=3)
    ours = apply_inverse(v, q_a, q_s, damped)
    for head in range(3):
        matrix = as_matrix(q_a[0], q_s[head], damped[head])
        torch.testing.assert_close(matrix @ ours[head].flatten(), v[head].flatten())


SHARING = [(1, 3), (3, 1), (3, 3), (1, 1)]  # groups of the input and of the output


@pytest.mark.parametrize(("g_in", "g_out"), SHARING)
def test_owners_that_share_a_side_equal_owners_one_by_one(g_in, g_out):
    x, dy = random(4, 6, g_in, 5, seed=1), random(4, 6, g_out, 2, seed=2)
    q_a, q_s, values = fit(x, dy)
    for head in range(max(g_in, g_out)):
        at_in, at_out = min(head, g_in - 1), min(head, g_out - 1)
        alone = fit(x[:, :, [at_in]], dy[:, :, [at_out]])
        torch.testing.assert_close(values[head], alone[2][0])
        turned = [q_a[at_in].T @ g @ q_s[at_out] for g in _gradients(x, dy, at_in, at_out)]
        torch.testing.assert_close(values[head], torch.stack(turned).square().mean(0))


def _gradients(x, dy, at_in, at_out):
    return torch.einsum("bti,btj->bij", x[:, :, at_in], dy[:, :, at_out])


@pytest.mark.parametrize(("g_in", "g_out"), SHARING)
def test_shared_bases_equal_the_computation_owner_by_owner(g_in, g_out):
    """`sequence_gradients`, `rotated` and `apply_inverse` against loops over owners."""
    n = max(g_in, g_out)
    x, dy = random(4, 6, g_in, 5, seed=1), random(4, 6, g_out, 2, seed=2)
    q_a = torch.stack([orthogonal(5, seed) for seed in range(g_in)])
    q_s = torch.stack([orthogonal(2, 10 + seed) for seed in range(g_out)])
    values, v = random(n, 5, 2, seed=3).square() + 0.1, random(n, 5, 2, seed=4)
    gradients = sequence_gradients(x, dy)
    assert gradients.shape == (4, n, 5, 2)
    turned, solved = rotated(gradients, q_a, q_s), apply_inverse(v, q_a, q_s, values)
    for h in range(n):
        a, s = q_a[min(h, g_in - 1)], q_s[min(h, g_out - 1)]
        own = _gradients(x, dy, min(h, g_in - 1), min(h, g_out - 1))
        torch.testing.assert_close(gradients[:, h], own)
        torch.testing.assert_close(turned[:, h], torch.stack([a.T @ g @ s for g in own]))
        matrix = as_matrix(a, s, values[h])
        expected = torch.linalg.solve(matrix, v[h].flatten()).view(5, 2)
        torch.testing.assert_close(solved[h], expected)


def test_rows_of_a_block_with_one_owner_are_solved_one_by_one():
    q_a, q_s, values = fit(random(6, 4, 1, 5, seed=1), random(6, 4, 1, 2, seed=2))
    damped, rows = values + damping(values, C), random(4, 5, 2, seed=3)
    together = apply_inverse(rows, q_a, q_s, damped)
    assert together.shape == rows.shape
    for row, solved in zip(rows, together, strict=True):
        expected = torch.linalg.solve(as_matrix(q_a[0], q_s[0], damped[0]), row.flatten()).view_as(
            row
        )
        torch.testing.assert_close(solved, expected)


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


def test_damping_is_relative_to_each_owners_own_mean():
    values = torch.stack([torch.full((2, 2), 1.0), torch.full((2, 2), 10.0)])
    assert damping(values, 0.1).flatten().tolist() == pytest.approx([0.1, 1.0])


def test_an_owner_without_curvature_gets_a_direction_of_zero():
    """Where nothing is known, nothing is said; the others are as without it."""
    q_a, q_s = orthogonal(5, 1)[None], torch.stack([orthogonal(2, 2), orthogonal(2, 3)])
    values, v = torch.zeros(2, 5, 2).double(), random(2, 5, 2, seed=4)
    values[0] = random(5, 2, seed=5).square()
    solved = apply_inverse(v, q_a, q_s, values + damping(values, C))
    alone = apply_inverse(v[:1], q_a, q_s[:1], values[:1] + damping(values[:1], C))
    assert not solved[1].any()
    torch.testing.assert_close(solved[:1], alone)
    assert solved[0].isfinite().all()


@pytest.mark.parametrize("relative", [0, -0.1, float("nan")])
def test_damping_that_is_not_above_zero_is_refused(relative):
    with pytest.raises(ValueError, match=rf"damping={relative}; expected above 0"):
        damping(torch.ones(2, 2, 2), relative)


def test_eigenvectors_are_float64_and_ordered_with_the_moments():
    moment = second_moment_sum(random(5, 4, 2, 3).float())
    q = eigenvectors(moment)
    assert q.dtype == torch.float64
    diagonal = q.transpose(1, 2) @ moment.double() @ q
    off = diagonal - torch.diag_embed(diagonal.diagonal(dim1=1, dim2=2))
    assert off.abs().max() < 1e-5 * moment.abs().max()  # the moments came in float32
    assert kfac_math.eigenvectors(2 * moment.double()).abs().allclose(q.abs())


def explicit_factors(x, dy, factors):
    """A and S of each side's owners, by sums over sequences, owners and positions one by one."""
    (n, t, g_in, i), (g_out, j) = x.shape, dy.shape[2:]
    a, s = x.new_zeros(g_in, i, i), x.new_zeros(g_out, j, j)
    for b, owner in itertools.product(range(n), range(max(g_in, g_out))):
        at_in, at_out = min(owner, g_in - 1), min(owner, g_out - 1)
        xs, dys = x[b, :, at_in], dy[b, :, at_out]
        if factors == "weighted":
            for p in range(t):
                a[at_in] += dys[p] @ dys[p] * torch.outer(xs[p], xs[p])
                s[at_out] += xs[p] @ xs[p] * torch.outer(dys[p], dys[p])
        else:
            gradient = sum(torch.outer(xs[p], dys[p]) for p in range(t))
            a[at_in] += gradient @ gradient.T
            s[at_out] += gradient.T @ gradient
    return a, s


@pytest.mark.parametrize("factors", ["weighted", "sequence"])
@pytest.mark.parametrize(("g_in", "g_out"), SHARING)
def test_factors_are_the_explicit_sums(factors, g_in, g_out):
    x, dy = random(4, 6, g_in, 5, seed=1), random(4, 6, g_out, 2, seed=2)
    ours, explicit = factor_sums(x, dy, factors), explicit_factors(x, dy, factors)
    for mine, theirs in zip(ours, explicit, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_independent_factors_are_the_moments_of_each_side():
    x, dy = random(4, 6, 1, 5, seed=1), random(4, 6, 3, 2, seed=2)
    a, s = factor_sums(x, dy, "independent")
    assert torch.equal(a, second_moment_sum(x)) and torch.equal(s, second_moment_sum(dy))


def test_lambda_in_the_basis_of_sequences_has_their_moments_as_its_margins():
    """sum_j Lambda_ij is the eigenvalue a_i of A, and sum_i Lambda_ij is s_j of S."""
    x, dy = random(7, 6, 1, 5, seed=1), random(7, 6, 1, 3, seed=2)
    a, s = factor_sums(x, dy, "sequence")
    values = squared_projection_sum(x, dy, eigenvectors(a), eigenvectors(s))[0]
    torch.testing.assert_close(values.sum(1), torch.linalg.eigvalsh(a[0]))
    torch.testing.assert_close(values.sum(0), torch.linalg.eigvalsh(s[0]))


def test_weighted_factors_are_independent_ones_where_the_sizes_are_constant():
    x, dy = (torch.nn.functional.normalize(random(4, 6, 1, n, seed=n), dim=-1) for n in (5, 3))
    for mine, theirs in zip(
        factor_sums(x, dy, "weighted"), factor_sums(x, dy, "independent"), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


def test_one_token_is_as_good_as_a_sequence():
    x, dy = random(9, 1, 1, 5, seed=1), random(9, 1, 3, 2, seed=2)
    for mine, theirs in zip(
        factor_sums(x, dy, "weighted"), factor_sums(x, dy, "sequence"), strict=True
    ):
        torch.testing.assert_close(mine, theirs)
