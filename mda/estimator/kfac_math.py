"""The mathematics of EK-FAC: pure functions of tensors, for all heads of a layer at once.

A linear map y_t = x_t W with weight W [I, J] has, for one sequence, the gradient
G = sum_t x_t dy_t^T, where dy_t is the gradient of the sequence's loss with respect to y_t.

Convention: inputs x are [B, T, G, I] and output gradients dy are [B, T, G', J] with B sequences,
T positions and G heads. G or G' is 1 where the heads of the layer share the tensor. What belongs
to the map itself is [H, I, J], with H the larger of the two.

EK-FAC (George et al. 2018, arXiv 1806.03884; for language models Grosse et al. 2023,
arXiv 2308.03296, section 2.3) approximates the second moment of vec(G) by

    H = (Q_A x Q_S) diag(Lambda) (Q_A x Q_S)^T,   Lambda_ij = mean_b [(Q_A^T G_b Q_S)_ij]^2

where Q_A and Q_S are the eigenvectors of A = mean_bt x x^T and S = mean_bt dy dy^T. K-FAC would
take Lambda_ij = a_i s_j from the eigenvalues instead; EK-FAC's Lambda is the best there is in this
basis in Frobenius norm. The mean is over SEQUENCES: squares of batch-summed gradients would
depend on the batch size.
"""

from __future__ import annotations

import torch
from torch import Tensor


def second_moment_sum(x_BTGI: Tensor) -> Tensor:
    """sum_bt x x^T of each head, [G, I, I], uncentred, in the input's precision."""
    x_GRI = x_BTGI.flatten(0, 1).transpose(0, 1)
    return x_GRI.transpose(1, 2) @ x_GRI


def eigenvectors(moment_GII: Tensor) -> Tensor:
    """Eigenvectors of symmetric matrices, as columns, [G, I, I]; float64 whatever comes in."""
    moment = moment_GII.double()
    return torch.linalg.eigh((moment + moment.transpose(1, 2)) / 2).eigenvectors


def sequence_gradients(x_BTGI: Tensor, dy_BTGJ: Tensor) -> Tensor:
    """G_b = sum_t x_t dy_t^T of every sequence and head, [B, H, I, J]."""
    n_in, n_out = x_BTGI.shape[2:], dy_BTGJ.shape[2:]
    product = x_BTGI.flatten(2).transpose(1, 2) @ dy_BTGJ.flatten(2)  # [B, G I, G' J]
    n_heads = max(n_in[0], n_out[0])
    if n_in[0] == 1:
        return product.view(-1, n_in[1], n_heads, n_out[1]).transpose(1, 2)
    return product.view(-1, n_heads, n_in[1], n_out[1])


def squared_projection_sum(
    x_BTGI: Tensor, dy_BTGJ: Tensor, q_a_GII: Tensor, q_s_GJJ: Tensor
) -> Tensor:
    """sum_b (Q_A^T G_b Q_S)^2, elementwise square, [H, I, J].

    Divided by the number of sequences this is Lambda.
    """
    projected = q_a_GII.transpose(1, 2) @ (sequence_gradients(x_BTGI, dy_BTGJ) @ q_s_GJJ)
    return projected.square().sum(0)


def damping(lambda_HIJ: Tensor, relative: float) -> Tensor:
    """c times the mean of each head's Lambda, [H, 1, 1].

    Relative, so that a loss in other units leaves the ranking of samples as it is. Raises
    ValueError where it would be zero, because c is or because a head has no gradient at all.
    """
    added = relative * lambda_HIJ.mean((1, 2), keepdim=True)
    if not (added > 0).all():
        dead = (added.flatten() <= 0).nonzero().flatten().tolist()
        raise ValueError(
            f"damping={relative} times the mean curvature is not above 0 for heads {dead}; "
            "accepted: damping above 0, and heads with a gradient"
        )
    return added


def apply_inverse(
    v_HIJ: Tensor, q_a_GII: Tensor, q_s_GJJ: Tensor, eigenvalues_HIJ: Tensor
) -> Tensor:
    """H^-1 V = Q_A [(Q_A^T V Q_S) / eigenvalues] Q_S^T, the eigenvalues already damped."""
    rotated = q_a_GII.transpose(1, 2) @ v_HIJ @ q_s_GJJ
    return q_a_GII @ (rotated / eigenvalues_HIJ) @ q_s_GJJ.transpose(1, 2)


def apply(v_HIJ: Tensor, q_a_GII: Tensor, q_s_GJJ: Tensor, eigenvalues_HIJ: Tensor) -> Tensor:
    """H V = Q_A [(Q_A^T V Q_S) * eigenvalues] Q_S^T: undoes `apply_inverse`."""
    return apply_inverse(v_HIJ, q_a_GII, q_s_GJJ, 1 / eigenvalues_HIJ)
