"""The mathematics of EK-FAC: pure functions of tensors, for all owners of a block at once.

A linear map y_t = x_t W with weight W [I, J] has, for one sequence, the gradient G = sum_t x_t
dy_t^T, where dy_t is the gradient of the sequence's loss with respect to y_t.

Convention: inputs x are [B, T, G, I] and output gradients dy are [B, T, G', J] with B sequences, T
positions and G owners (heads, neurons). G or G' is 1 where they share the tensor. Tensors of the
map itself are [H, I, J], with H the larger of the two.

EK-FAC (George et al. 2018, arXiv 1806.03884; for language models Grosse et al. 2023, arXiv
2308.03296, section 2.3) approximates the second moment of vec(G) by

    H = (Q_A x Q_S) diag(Lambda) (Q_A x Q_S)^T,   Lambda_ij = mean_b [(Q_A^T G_b Q_S)_ij]^2

where Q_A and Q_S are the eigenvectors of two factors A and S. K-FAC would take Lambda_ij = a_i s_j
from the eigenvalues instead; EK-FAC's Lambda is the best there is in this basis in Frobenius norm.
The mean is over SEQUENCES: squares of batch-summed gradients would depend on the batch size.

Three choices of A and S (`estimator.factors`):

    independent   A = mean_bt x x^T            S = mean_bt dy dy^T
    weighted      A = mean_bt |dy|^2 x x^T     S = mean_bt |x|^2 dy dy^T
    sequence      A = mean_b G G^T             S = mean_b G^T G

`sequence` are the marginal second moments of the gradient itself, as in Shampoo (Gupta et al. 2018,
arXiv 1802.09568) with eigenvalue correction. `weighted` is the same without the products of
different positions, since G G^T = sum_ts (dy_t . dy_s) x_t x_s^T. `independent` are K-FAC's, which
follow from `weighted` where the size of dy and x are independent, and likewise x and dy. An
attention sink breaks that: the first position gathers most of the squared dy while its x is small,
so the leading columns of Q_S are the sink's, and Q_A hardly knows the direction of its input.

Where owners share an input, their gradients are summed: A is then one matrix for all of them. The
same holds for S of a shared output.
"""

from __future__ import annotations

import torch
from torch import Tensor


def factor_sums(x_BTGI: Tensor, dy_BTGJ: Tensor, factors: str) -> tuple[Tensor, Tensor]:
    """Returns the sums of A [G, I, I] and S [G', J, J] over sequences, in the inputs' precision.

    They equal the means up to a factor, which does not change the eigenvectors.
    """
    if factors == "sequence":
        return _gradient_moments(x_BTGI, dy_BTGJ)
    if factors == "weighted":
        size_x, size_dy = (s.square().sum(-1, keepdim=True) for s in (x_BTGI, dy_BTGJ))
        if x_BTGI.shape[2] == 1:
            size_dy = size_dy.sum(2, keepdim=True)
        if dy_BTGJ.shape[2] == 1:
            size_x = size_x.sum(2, keepdim=True)
        x_BTGI, dy_BTGJ = x_BTGI * size_dy.sqrt(), dy_BTGJ * size_x.sqrt()
    return second_moment_sum(x_BTGI), second_moment_sum(dy_BTGJ)


def _gradient_moments(x_BTGI: Tensor, dy_BTGJ: Tensor) -> tuple[Tensor, Tensor]:
    """Returns sum_b G G^T and sum_b G^T G, [G, I, I] and [G', J, J]."""
    g_BHIJ = sequence_gradients(x_BTGI, dy_BTGJ)
    columns_HIR = g_BHIJ.permute(1, 2, 0, 3).flatten(2)  # of all sequences side by side
    rows_HJR = g_BHIJ.permute(1, 3, 0, 2).flatten(2)
    if x_BTGI.shape[2] == 1:
        columns_HIR = columns_HIR.transpose(0, 1).flatten(1)[None]
    if dy_BTGJ.shape[2] == 1:
        rows_HJR = rows_HJR.transpose(0, 1).flatten(1)[None]
    return columns_HIR @ columns_HIR.transpose(1, 2), rows_HJR @ rows_HJR.transpose(1, 2)


def second_moment_sum(x_BTGI: Tensor) -> Tensor:
    """Returns sum_bt x x^T of each owner, [G, I, I], uncentred, in the input's precision."""
    x_GRI = x_BTGI.flatten(0, 1).transpose(0, 1)
    return x_GRI.transpose(1, 2) @ x_GRI


def eigenvectors(moment_GII: Tensor) -> Tensor:
    """Returns the eigenvectors of symmetric matrices as columns, [G, I, I], always in float64."""
    # eigh reads one triangle only, and rounding makes the two differ.
    moment = moment_GII.double()
    return torch.linalg.eigh((moment + moment.transpose(1, 2)) / 2).eigenvectors


def sequence_gradients(x_BTGI: Tensor, dy_BTGJ: Tensor) -> Tensor:
    """Returns G_b = sum_t x_t dy_t^T of every sequence and owner, [B, H, I, J]."""
    n_in, n_out = x_BTGI.shape[2:], dy_BTGJ.shape[2:]
    if n_in[0] > 1 and n_out[0] > 1:
        return torch.einsum("bthi,bthj->bhij", x_BTGI, dy_BTGJ)
    product = x_BTGI.flatten(2).transpose(1, 2) @ dy_BTGJ.flatten(2)  # [B, G I, G' J]
    if n_in[0] == 1:
        return product.view(-1, n_in[1], n_out[0], n_out[1]).transpose(1, 2)
    return product.view(-1, n_in[0], n_in[1], n_out[1])


def rotated(g_BHIJ: Tensor, q_a_GII: Tensor, q_s_GJJ: Tensor) -> Tensor:
    """Returns Q_A^T G Q_S of every sequence and owner, [B, H, I, J].

    A basis that all owners share is applied to all of them in one matrix product.
    """
    g = g_BHIJ @ (q_s_GJJ[0] if len(q_s_GJJ) == 1 else q_s_GJJ)
    if len(q_a_GII) == 1:
        wide = g.transpose(1, 2).flatten(2)  # [B, I, H J]
        return (q_a_GII[0].T @ wide).unflatten(2, (g.shape[1], -1)).transpose(1, 2)
    return q_a_GII.transpose(1, 2) @ g


def squared_projection_sum(
    x_BTGI: Tensor, dy_BTGJ: Tensor, q_a_GII: Tensor, q_s_GJJ: Tensor
) -> Tensor:
    """Returns sum_b (Q_A^T G_b Q_S)^2, elementwise square, [H, I, J].

    Divided by the number of sequences this is Lambda.
    """
    return rotated(sequence_gradients(x_BTGI, dy_BTGJ), q_a_GII, q_s_GJJ).square().sum(0)


def damping(lambda_HIJ: Tensor, relative: float) -> Tensor:
    """Returns c times the mean of each owner's Lambda, [H, 1, 1].

    The damping is relative, so the ranking of samples does not depend on the units of the loss. An
    owner without any gradient (a dead neuron) gets infinity, and so a direction and scores of zero.
    Raises ValueError for c that is not above 0.
    """
    if not relative > 0:
        raise ValueError(f"damping={relative}; expected above 0")
    mean = lambda_HIJ.mean((1, 2), keepdim=True)
    return torch.where(mean > 0, relative * mean, torch.inf)


def in_basis(metric_HIJ: Tensor, q_a_GII: Tensor, q_s_GJJ: Tensor) -> Tensor:
    """Returns the diagonal of a diagonal matrix in the eigenbasis over its mean, [H, I, J].

    sum_ab Q_A[a, i]^2 D_ab Q_S[b, j]^2 / mean(D): like EK-FAC's Lambda for the curvature, this is
    the best diagonal approximation of D in this basis. Its mean over i and j is 1.
    """
    metric = metric_HIJ / metric_HIJ.mean((1, 2), keepdim=True)
    return q_a_GII.square().transpose(1, 2) @ metric @ q_s_GJJ.square()


def apply_inverse(
    v_HIJ: Tensor, q_a_GII: Tensor, q_s_GJJ: Tensor, eigenvalues_HIJ: Tensor
) -> Tensor:
    """Returns H^-1 V = Q_A [(Q_A^T V Q_S) / eigenvalues] Q_S^T, for damped eigenvalues.

    For a block with one owner, V may have any number of rows [R, I, J].
    """
    inside = rotated(v_HIJ[None], q_a_GII, q_s_GJJ) / eigenvalues_HIJ
    return rotated(inside, q_a_GII.transpose(1, 2), q_s_GJJ.transpose(1, 2))[0]
