"""The damped Gauss-Newton matrix of one unit's parameters, without EK-FAC's approximation.

    F = (1 / N) sum_b g_b g_b^T,    direction = (F + c mean(diag F) I)^-1 grad f

with g_b the gradient of the MEAN token loss of fitted sequence b with respect to the P parameters
of a block. With labels drawn from the model F estimates the Gauss-Newton matrix of that loss
divided by the number of tokens, as in `ekfac`; the damping is EK-FAC's as well, because
mean(Lambda) = mean(diag F) in any basis. So the two differ by nothing but EK-FAC's Kronecker-
factored eigenbasis, and where that basis is the right one they are equal.

A block may be one map of a unit or all of a unit's maps side by side, which then counts what
EK-FAC leaves out: the curvature between them.

Where P <= N, F is formed and factored, in P^3 / 3 operations. Else the same direction comes from
the N x N matrix of inner products of the gradients G [N, P] (the dual form, by Woodbury):

    (F + d I)^-1 v = (v - G^T (G G^T + N d I)^-1 G v) / d

With the parameters of a whole model only this form is possible. G G^T is then a sum over parts of
the parameters, whose gradients are in memory one after the other (`joint_inverse_times`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MOST = 16e9  # bytes that a matrix of several maps may take


def inverse_times(
    gradients_NP: Tensor, v_RP: Tensor, damping: float, metric_P: Tensor | None = None
) -> Tensor:
    """Returns (F + c mean(diag F) D / mean(D))^-1 v for each row of v, [R, P] float64.

    c is `damping`, and `gradients_NP` are the gradients of the N fitted sequences. D is the
    identity, or diagonal with `metric_P` > 0, such as the denominators of Adam. Takes the smaller
    of the two forms, and min(N, P)^2 + N P numbers of memory. Raises ValueError where c mean(diag
    F) is not above 0.
    """
    gradients, v = gradients_NP.double(), v_RP.double()
    n, p = gradients.shape
    added = _damping(gradients.square().sum() / (n * p), damping)
    root_P = torch.ones(p, dtype=v.dtype, device=v.device)
    if metric_P is not None:  # (F + d D)^-1 = r (r F r + d I)^-1 r with r = D^-1/2
        root_P = (metric_P.double().mean() / metric_P.double()).sqrt()
    gradients, v = gradients * root_P, v * root_P
    if p <= n:
        return root_P * solve(gradients.T @ gradients / n, v, added)
    return root_P * solve_dual(gradients, v, added)


def joint_inverse_times(
    gradients_of: Callable[[int], Tensor],
    n: int,
    v: Sequence[Tensor],
    metric: Sequence[Tensor] | None,
    damping: float,
) -> list[Tensor]:
    """Returns `inverse_times` of one vector v, float64, in which the parameters come in parts.

    `gradients_of(i)` gives the gradients [N, P_i] of n sequences in part i, of which v and the
    metric have [P_i]; it is asked for every part twice. Takes the dual form, with N^2 + N max(P_i)
    numbers of memory.
    """
    v = [part.double() for part in v]
    size = sum(len(part) for part in v)
    mean = 1.0 if metric is None else sum(float(part.double().sum()) for part in metric) / size
    roots = [
        torch.ones_like(part) if metric is None else (mean / metric[i].double()).sqrt()
        for i, part in enumerate(v)
    ]
    gram_NN = torch.zeros(n, n, dtype=torch.float64, device=v[0].device)
    inside_N = gram_NN.new_zeros(n)
    squares = 0.0
    for i, (root_P, v_P) in enumerate(zip(roots, v, strict=True)):
        own_NP = gradients_of(i).double()
        squares += own_NP.square().sum()
        own_NP *= root_P
        gram_NN += own_NP @ own_NP.T
        inside_N += own_NP @ (root_P * v_P)
    added = _damping(torch.as_tensor(squares / (n * size)), damping)
    inside_N = torch.cholesky_solve(inside_N[:, None], _factor(gram_NN, n * added))[:, 0]
    return [
        root_P * (root_P * v_P - (gradients_of(i).double() * root_P).T @ inside_N) / added
        for i, (root_P, v_P) in enumerate(zip(roots, v, strict=True))
    ]


def joint_bytes(n: int, largest: int) -> float:
    """Returns the bytes of `joint_inverse_times` with n sequences and a part of so many numbers."""
    return 8 * 2 * n * n + (4 + 2 * 8) * n * largest


def solve(fisher_PP: Tensor, v_RP: Tensor, added: float) -> Tensor:
    """Returns (F + d I)^-1 v for each row, by Cholesky; d = `added` is above 0.

    F is overwritten.
    """
    return torch.cholesky_solve(v_RP.T, _factor(fisher_PP, added)).T


def solve_dual(gradients_NP: Tensor, v_RP: Tensor, added: float) -> Tensor:
    """Returns the same as `solve` from the gradients themselves, without F."""
    n = len(gradients_NP)
    factor = _factor(gradients_NP @ gradients_NP.T, n * added)
    inside_NR = torch.cholesky_solve(gradients_NP @ v_RP.T, factor)
    return (v_RP - inside_NR.T @ gradients_NP) / added


def _damping(mean_diagonal: Tensor, relative: float) -> float:
    added = relative * mean_diagonal.item()
    if not added > 0:
        raise ValueError(
            f"damping={relative} times the mean curvature {mean_diagonal.item()} is not above 0; "
            "expected damping above 0, and a unit with a gradient"
        )
    return added


def _factor(matrix: Tensor, added: float) -> Tensor:
    """Returns the Cholesky factor of the matrix with `added` on its diagonal, overwriting it."""
    matrix.diagonal().add_(added)
    return torch.linalg.cholesky(matrix)
