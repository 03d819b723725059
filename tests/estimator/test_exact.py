"""The exact curvature of a block against a dense Fisher, the Gauss-Newton matrix, and EK-FAC."""

import itertools
import math

import pytest
import torch

from mda.estimator import kfac_math
from mda.estimator.exact import inverse_times, solve, solve_dual

C = 0.1


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(gradients, v, c):
    """One outer product after the other, the mean eigenvalue, and a general solver."""
    fisher = sum(torch.outer(g, g) for g in gradients) / len(gradients)
    added = c * torch.linalg.eigvalsh(fisher).mean()
    return torch.linalg.solve(fisher + added * torch.eye(len(fisher), dtype=fisher.dtype), v.T).T


@pytest.mark.parametrize("n", [3, 11, 12, 13, 60])
def test_is_the_dense_damped_fisher(n):
    """P = 12: the dual form below it, the formed one from there on."""
    gradients, v = random(n, 12, seed=1), random(4, 12, seed=2)
    torch.testing.assert_close(inverse_times(gradients, v, C), dense(gradients, v, C))


@pytest.mark.parametrize("n", [3, 60])
def test_damping_by_a_metric_is_the_dense_sum_and_its_scale_is_none_of_its_business(n):
    gradients, v, metric = random(n, 12, seed=1), random(4, 12, seed=2), random(12, seed=3).abs()
    fisher = sum(torch.outer(g, g) for g in gradients) / n
    added = C * fisher.diagonal().mean() * torch.diag(metric / metric.mean())
    found = inverse_times(gradients, v, C, 7 * metric)
    torch.testing.assert_close(found, torch.linalg.solve(fisher + added, v.T).T)


@pytest.mark.parametrize("n", [5, 40])
@pytest.mark.parametrize("added", [1e-3, 1e2])
def test_both_forms_agree(n, added):
    gradients, v = random(n, 20, seed=1), random(3, 20, seed=2)
    torch.testing.assert_close(
        solve(gradients.T @ gradients / n, v, added), solve_dual(gradients, v, added)
    )


@pytest.mark.parametrize("n", [7, 30])
def test_the_inverse_undoes_the_damped_fisher_and_leaves_its_arguments(n):
    gradients, v = random(n, 10, seed=1), random(2, 10, seed=2)
    before = gradients.clone(), v.clone()
    direction = inverse_times(gradients, v, C)
    fisher = gradients.T @ gradients / n
    damped = fisher + C * fisher.diagonal().mean() * torch.eye(10, dtype=torch.float64)
    torch.testing.assert_close(direction @ damped, v)
    assert torch.equal(gradients, before[0])
    assert torch.equal(v, before[1])


@pytest.mark.parametrize("scale", [1e-6, 1e3])
def test_the_scale_of_the_loss_changes_no_ranking(scale):
    gradients, v = random(8, 10, seed=1), random(2, 10, seed=2)
    small, large = inverse_times(gradients, v, C), inverse_times(scale * gradients, scale * v, C)
    torch.testing.assert_close(large * scale, small)


def test_with_drawn_labels_it_is_the_gauss_newton_matrix_over_the_tokens():
    """A softmax map of 2 tokens, 3 labels: every draw once, weighted by its probability."""
    n_tokens, weight, x = 2, random(4, 3, seed=1), random(5, 2, 4, seed=2)
    rows, gauss_newton = [], torch.zeros(12, 12, dtype=torch.float64)
    for x_TI in x:
        p_TV = (x_TI @ weight).softmax(-1)
        for labels in itertools.product(range(3), repeat=n_tokens):
            wanted = torch.eye(3, dtype=torch.float64)[list(labels)]
            gradient = x_TI.T @ (p_TV - wanted) / n_tokens  # of the mean loss, [I, V]
            probability = math.prod(p_TV[t, y].item() for t, y in enumerate(labels))
            rows.append(math.sqrt(probability * 3**n_tokens) * gradient.flatten())
        for x_I, p_V in zip(x_TI, p_TV, strict=True):
            jacobian = torch.kron(x_I[None], torch.eye(3, dtype=torch.float64))  # d logits / dW
            hessian = p_V.diag() - torch.outer(p_V, p_V)
            gauss_newton += jacobian.T @ hessian @ jacobian / n_tokens / len(x)
    fisher = gauss_newton / n_tokens
    damped = fisher + C * fisher.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    v = random(2, 12, seed=3)
    torch.testing.assert_close(
        inverse_times(torch.stack(rows), v, C), torch.linalg.solve(damped, v.T).T
    )


def orthogonal(n, seed):
    return torch.linalg.qr(random(n, n, seed=seed)).Q


def ekfac(x, dy, v_HIJ):
    q_a, q_s = (kfac_math.eigenvectors(kfac_math.second_moment_sum(s)) for s in (x, dy))
    values = kfac_math.squared_projection_sum(x, dy, q_a, q_s) / len(x)
    return kfac_math.apply_inverse(v_HIJ, q_a, q_s, values + kfac_math.damping(values, C))


def test_ekfac_is_exact_where_its_basis_is():
    """Every x with every dy, each family orthogonal: a Kronecker eigenbasis."""
    xs = orthogonal(4, 1) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    dys = orthogonal(3, 2) * torch.tensor([1.0, 0.5, 2.0])
    pairs = list(itertools.product(xs.T, dys.T))
    x = torch.stack([a for a, _ in pairs])[:, None, None]
    dy = torch.stack([s for _, s in pairs])[:, None, None]
    v = random(1, 4, 3, seed=3)
    gradients = kfac_math.sequence_gradients(x, dy)[:, 0].flatten(1)
    exact = inverse_times(gradients, v.flatten(1), C)
    torch.testing.assert_close(ekfac(x, dy, v).flatten(1), exact)


def test_ekfac_errs_where_its_basis_does():
    x, dy, v = random(9, 6, 1, 4, seed=1), random(9, 6, 1, 3, seed=2), random(1, 4, 3, seed=3)
    gradients = kfac_math.sequence_gradients(x, dy)[:, 0].flatten(1)
    exact = inverse_times(gradients, v.flatten(1), C)
    assert (ekfac(x, dy, v).flatten(1) - exact).norm() > 0.01 * exact.norm()


@pytest.mark.parametrize(("gradients", "c"), [(random(4, 3), 0.0), (torch.zeros(4, 3), C)])
def test_no_curvature_or_no_damping_is_refused(gradients, c):
    with pytest.raises(ValueError, match=f"damping={c} times the mean curvature"):
        inverse_times(gradients, random(1, 3), c)
