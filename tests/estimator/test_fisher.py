"""EK-FAC of whole models: against the Gauss-Newton matrix and the explicit Fisher matrix."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fitting import EMPIRICAL, basis_of, fit, random_like
from in_memory import Case
from plain_gradients import block_gradients, step

from mda.estimator.ekfac import (
    Curvature,
    Fit,
    Labels,
    eigenbasis,
    input_site,
    output_site,
    sum_moments,
    sum_squares,
)


def exact_gauss_newton(model, inputs_BT, block, owner):
    """GGN of the mean token loss, mean over sequences, of one owner's block, [I J, I J].

    1 / T sum_t J_t^T (diag p - p p^T) J_t with J the logits' Jacobian.
    """
    _, n_in, n_out = block.shape
    columns = []
    with torch.no_grad():
        for i in range(n_in * n_out):  # the Jacobian column by column, central differences
            delta = torch.zeros(n_in * n_out, dtype=torch.float64)
            delta[i] = 1e-5
            values = []
            for factor in (1, -2):
                step(model, block, owner, factor * delta.view(n_in, n_out))
                values.append(model(inputs_BT).logits)
            step(model, block, owner, delta.view(n_in, n_out))
            columns.append((values[0] - values[1]) / 2e-5)
        p = model(inputs_BT).logits.softmax(-1)
    jacobian = torch.stack(columns, -1)  # [B, T, V, IJ]
    hessian = torch.diag_embed(p) - p[..., :, None] * p[..., None, :]
    half = torch.einsum("btvw,btwq->btvq", hessian, jacobian)
    ggn = jacobian.flatten(0, 2).T @ half.flatten(0, 2)
    return ggn / (inputs_BT.shape[0] * inputs_BT.shape[1])


@pytest.mark.parametrize(
    ("family", "kind", "place", "owner"),
    [
        ("neox", "heads", 0, 1),
        ("neox", "heads", 1, 1),
        ("neox", "heads", 2, 1),
        ("neox", "neurons", 0, 17),
        ("neox", "neurons", 1, 17),
        ("neox", "mlp", 0, 0),
        ("neox", "mlp", 1, 0),
        ("llama", "heads", 0, 3),  # W_Q of head 3 and W_K of the second group
        ("llama", "heads", 1, 3),
        ("llama", "heads", 2, 3),
        ("llama", "neurons", 0, 11),  # gate and up together
    ],
)
def test_sampled_labels_give_the_gauss_newton_matrix(toy, llama, table, family, kind, place, owner):
    """Lambda is the GGN's diagonal in the basis, divided by T (the convention of the module)."""
    model = toy if family == "neox" else llama
    block, inputs, draws = Case.of(model, kind).blocks[place], table.tokens[:2, :-1], 4000
    exact = exact_gauss_newton(model, inputs, block, owner)
    copies = np.arange(draws)  # ids: the same two sequences again and again, other labels
    wanted = Fit([block], Labels(seed=3), 200)

    def rows(ids):
        return table.tokens[np.asarray(ids) % 2]

    basis = eigenbasis(sum_moments(model, rows, copies[:20], wanted))
    squares = sum_squares(model, rows, copies, wanted, basis)
    values = squares[block.name][owner] / draws
    q = torch.kron(*basis_of(Curvature(basis, {}), block, owner))
    expected = (q.T @ exact @ q).diagonal().view_as(values) / inputs.shape[1]
    # squares of zero-mean sums of labels: relative error of their mean about sqrt(2 / draws)
    assert values.sum().item() == pytest.approx(expected.sum().item(), rel=4 * (2 / draws) ** 0.5)
    assert torch.corrcoef(torch.stack([values.flatten(), expected.flatten()]))[0, 1] > 0.99


def explicit_fisher(case, table, block, owner):
    """mean_b vec(G_b) vec(G_b)^T of one owner, [I J, I J], from gradients by autograd."""
    rows = [block_gradients(case.model, [block], row)[block][owner] for row in table.tokens]
    g = torch.stack(rows).flatten(1)
    return g.T @ g / len(g)


@pytest.mark.parametrize("family", ["neox", "llama"])
@pytest.mark.parametrize(("kind", "owner"), [("mlp", 0), ("neurons", 13), ("heads", 1)])
def test_ekfac_is_closer_to_the_explicit_fisher_than_kfac(toy, llama, table, family, kind, owner):
    """And Lambda is the Fisher's diagonal in the basis: no other diagonal is closer."""
    case = Case.of(toy if family == "neox" else llama, kind)
    fitted = fit(case, table)
    moments = sum_moments(case.model, table.rows, table.ids, Fit(case.blocks, EMPIRICAL, 4))
    for block in case.blocks:
        fisher = explicit_fisher(case, table, block, owner)
        q_a, q_s = basis_of(fitted, block, owner)
        q, values = torch.kron(q_a, q_s), fitted.eigenvalues[block.name][owner]
        inside = q.T @ fisher @ q
        torch.testing.assert_close(inside.diagonal(), values.flatten())
        a, s = (moments[site(block)] for site in (input_site, output_site))
        a, s = (torch.linalg.eigvalsh(m[owner if len(m) > 1 else 0]) for m in (a, s))
        kfac = (a[:, None] * s).flatten()
        # generous to K-FAC: its scale is the best there is
        kfac = kfac * (kfac @ inside.diagonal()) / kfac.square().sum()
        ekfac_error = (inside - values.flatten().diag()).norm()
        assert ekfac_error < (inside - kfac.diag()).norm()


@pytest.mark.parametrize("family", ["neox", "llama"])
@pytest.mark.parametrize(("kind", "owner"), [("mlp", 0), ("neurons", 13)])
def test_one_token_is_the_explicit_damped_fisher(toy, llama, table, family, kind, owner):
    """G = x dy^T has rank one, the basis holds x and dy: the solution is exact."""
    case = Case.of(toy if family == "neox" else llama, kind)
    short = replace(table, corpus=replace(table.corpus, tokens=table.corpus.tokens[:, :2]),
                    ids=table.ids[:1])  # fmt: skip
    fitted = fit(case, short)
    probe = random_like(fitted, case.blocks)
    solved = fitted.inverse_times(probe, 0.1)
    for block in case.blocks:
        fisher = explicit_fisher(case, short, block, owner)
        damped = fisher + 0.1 * fisher.diagonal().mean() * torch.eye(len(fisher)).double()
        expected = torch.linalg.solve(damped, probe[block][owner].flatten())
        torch.testing.assert_close(solved[block][owner].flatten(), expected)
