"""The fitted curvature of a model: invariances, the Gauss-Newton matrix, and files."""

import numpy as np
import pytest
import torch
from mda.estimator.sharding import shard
from mda.model.head_layout import attention, block_weight
from mda.unit.gradients import capture
from mda.unit.subspace import BLOCK_SITES, BlockId, Subspace, all_heads, block_gradients

from mda.estimator.ekfac import (
    Curvature,
    Labels,
    curvature,
    eigenbasis,
    fit_curvature,
    fit_subset,
    sum_moments,
    sum_squares,
)
from mda.estimator.score import make_directions, score_samples
from mda.unit.loss import label_uniforms

LAYERS = [0, 1]
EMPIRICAL = Labels("empirical")


def fit(model, table, ids=None, subspace=Subspace(), labels=Labels(), batch_size=4):  # noqa: B008
    ids = table.ids if ids is None else ids
    return fit_curvature(model, table.rows, ids, LAYERS, subspace, labels, batch_size)


def assert_same_curvature(a: Curvature, b: Curvature):
    assert a.eigenvalues.keys() == b.eigenvalues.keys()
    for at, values in a.eigenvalues.items():
        torch.testing.assert_close(values, b.eigenvalues[at])


@pytest.mark.parametrize("labels", [Labels(), EMPIRICAL])
def test_lambda_is_batch_size_invariant(toy, table, labels):
    """Sampled labels included: they belong to the sample, not to its place in a batch."""
    reference = fit(toy, table, labels=labels, batch_size=1)
    for batch_size in (2, 9):
        assert_same_curvature(fit(toy, table, labels=labels, batch_size=batch_size), reference)


@pytest.mark.parametrize("bias", [False, True])
def test_lambda_is_the_mean_square_of_rotated_sequence_gradients(toy, table, bias):
    subspace = Subspace(bias=bias)
    fitted = fit(toy, table, subspace=subspace, labels=EMPIRICAL)
    for at in subspace.ids(LAYERS):
        q_a, q_s = (fitted.eigenvectors[(at.layer, s)] for s in BLOCK_SITES[at.block])
        squares = []
        for row in table.tokens:
            layer = capture(toy, row[None], LAYERS).layers[at.layer]
            gradient = block_gradients(layer, at.block, bias)
            squares.append((q_a.transpose(1, 2) @ gradient @ q_s).square())
        torch.testing.assert_close(fitted.eigenvalues[at], torch.stack(squares).mean(0))


def test_shards_in_any_order_merge_to_the_whole(toy, table):
    whole = fit(toy, table)
    parts = [shard(table.ids, rank, 4) for rank in (2, 0, 3, 1)]
    assert sorted(np.concatenate(parts)) == sorted(table.ids)
    common = (LAYERS, Subspace(), Labels())
    moments = [sum_moments(toy, table.rows, ids, *common) for ids in parts]
    basis = eigenbasis({at: sum(m[at] for m in moments) for at in moments[0]})
    squares = [sum_squares(toy, table.rows, ids, *common, basis=basis) for ids in parts]
    merged = {at: sum(s[at] for s in squares) for at in squares[0]}
    assert_same_curvature(curvature(basis, merged, len(table.ids)), whole)


def test_same_seed_gives_bit_equal_curvature_and_scores(toy, table):
    toy.float()
    results = []
    for _ in range(2):
        fitted = fit(toy, table)
        results.append((fitted, score(toy, table, fitted)))
    for at, values in results[0][0].eigenvalues.items():
        assert torch.equal(values, results[1][0].eigenvalues[at])
    assert torch.equal(results[0][1], results[1][1])
    other = fit(toy, table, labels=Labels(seed=1))
    assert any(
        not torch.equal(v, other.eigenvalues[at]) for at, v in results[0][0].eigenvalues.items()
    )


def score(model, table, fitted, ids=None, batch_size=4, subspace=Subspace()):  # noqa: B008
    """Scores for a made-up probe gradient, [N, U]."""
    units = all_heads(2, 2)
    generator = torch.Generator().manual_seed(5)
    probe = {
        at: torch.randn(v.shape, generator=generator, dtype=v.dtype)
        for at, v in fitted.eigenvalues.items()
    }
    packed = make_directions(model, fitted.inverse_times(probe, 0.1), subspace, units)
    ids = table.ids if ids is None else ids
    return score_samples(model, table.rows, ids, packed, units, batch_size).values_NU


def test_scores_do_not_depend_on_the_batch_size(toy, table):
    fitted = fit(toy, table)
    reference = score(toy, table, fitted, batch_size=1)
    for batch_size in (2, 4, 9, 100):
        torch.testing.assert_close(score(toy, table, fitted, batch_size=batch_size), reference)


def test_scores_are_minus_the_inner_product_with_the_gradient(toy, table):
    subspace = Subspace(("v", "o"), bias=True)
    fitted = fit(toy, table, subspace=subspace)
    generator = torch.Generator().manual_seed(5)
    probe = {
        at: torch.randn(v.shape, generator=generator, dtype=v.dtype)
        for at, v in fitted.eigenvalues.items()
    }
    directions = fitted.inverse_times(probe, 0.1)
    ours = score(toy, table, fitted, subspace=subspace)
    for n, row in enumerate(table.tokens):
        layers = capture(toy, row[None], LAYERS).layers
        expected = torch.stack(
            [
                -sum(
                    (directions[BlockId(at, b)] * block_gradients(layers[at], b, True)).sum((1, 2))
                    for b in ("v", "o")
                )
                for at in LAYERS
            ]
        )
        torch.testing.assert_close(ours[n], expected.flatten())


def exact_gauss_newton(model, inputs_BT, at: BlockId, head: int):
    """GGN of the mean token loss, mean over sequences, of one head's block, [I J, I J].

    1 / T sum_t J_t^T (diag p - p p^T) J_t with J the logits' Jacobian.
    """
    module = attention(model, at.layer)
    weight = block_weight(module.query_key_value.weight, module.dense.weight, at.block, 2)[head]
    original = weight.detach().clone()
    columns = []
    with torch.no_grad():
        for i in range(original.numel()):  # the Jacobian column by column, central differences
            step = torch.zeros(original.numel(), dtype=torch.float64)
            step[i] = 1e-5
            plus = model_at(model, weight, original + step.view_as(original), inputs_BT)
            minus = model_at(model, weight, original - step.view_as(original), inputs_BT)
            columns.append((plus - minus) / 2e-5)
        p = model_at(model, weight, original, inputs_BT).softmax(-1)
    jacobian = torch.stack(columns, -1)  # [B, T, V, IJ]
    hessian = torch.diag_embed(p) - p[..., :, None] * p[..., None, :]
    ggn = torch.einsum("btvp,btvw,btwq->pq", jacobian, hessian, jacobian)
    return ggn / (inputs_BT.shape[0] * inputs_BT.shape[1])


def model_at(model, weight, value, inputs_BT):
    weight.copy_(value)
    return model(inputs_BT).logits


@pytest.mark.parametrize("block", BLOCK_SITES)
def test_sampled_labels_give_the_gauss_newton_matrix(toy, table, block):
    """Lambda is the GGN's diagonal in the basis, divided by T (the convention of the module)."""
    at, head, inputs, draws = BlockId(0, block), 1, table.tokens[:2, :-1], 4000
    exact = exact_gauss_newton(toy, inputs, at, head)
    labels = Labels(seed=3)
    copies = np.arange(draws)  # ids: the same two sequences again and again, other labels
    common = ([0], Subspace((block,)), labels, 200)

    def rows(ids):
        return table.tokens[np.asarray(ids) % 2]

    basis = eigenbasis(sum_moments(toy, rows, copies[:20], *common))
    values = sum_squares(toy, rows, copies, *common, basis=basis)[at][head] / draws
    q_a, q_s = (basis[(0, s)] for s in BLOCK_SITES[block])
    q = torch.kron(q_a[head % len(q_a)], q_s[head % len(q_s)])
    expected = (q.T @ exact @ q).diagonal().view_as(values) / inputs.shape[1]
    # squares of zero-mean sums of labels: relative error of their mean about sqrt(2 / draws)
    assert values.sum().item() == pytest.approx(expected.sum().item(), rel=4 * (2 / draws) ** 0.5)
    assert torch.corrcoef(torch.stack([values.flatten(), expected.flatten()]))[0, 1] > 0.99


def test_both_passes_see_the_same_labels(toy, table):
    uniforms = label_uniforms(0, table.ids, 8)
    first = capture(toy, table.tokens, LAYERS, uniforms_BT=uniforms)
    again = capture(toy, table.tokens[4:6], LAYERS, uniforms_BT=uniforms[4:6])
    torch.testing.assert_close(again.losses_B, first.losses_B[4:6])


def test_curvature_comes_back_from_its_file_bit_for_bit(toy, table, tmp_path):
    fitted = fit(toy, table, subspace=Subspace(bias=True))
    fitted.save(tmp_path / "curvature.safetensors")
    loaded = Curvature.load(tmp_path / "curvature.safetensors")
    assert loaded.n_sequences == 9
    for mine, theirs in (
        (fitted.eigenvectors, loaded.eigenvectors),
        (fitted.eigenvalues, loaded.eigenvalues),
    ):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_curvature_of_other_blocks_is_refused(toy, table):
    fitted = fit(toy, table, subspace=Subspace(("qk",)))
    with pytest.raises(ValueError, match=r"L0.v of shape .* fitted are \{'L0.qk'"):
        fitted.inverse_times({BlockId(0, "v"): torch.zeros(2, 12, 6)}, 0.1)
    with pytest.raises(ValueError, match=r"L0.qk of shape \[2, 13, 12\]"):  # with a bias
        fitted.inverse_times({BlockId(0, "qk"): torch.zeros(2, 13, 12)}, 0.1)


def test_fit_subset_is_seeded_ordered_and_without_repeats():
    ids = np.arange(100, 200)[::-1]
    subset = fit_subset(ids, 30, seed=1)
    assert len(set(subset)) == 30
    assert (np.diff(subset) < 0).all()  # in the stream's order, here descending
    assert np.array_equal(subset, fit_subset(ids, 30, seed=1))
    assert not np.array_equal(subset, fit_subset(ids, 30, seed=2))
    assert np.array_equal(fit_subset(ids, None, seed=1), ids)


def test_wrong_labels_are_named():
    with pytest.raises(ValueError, match="labels='guessed'; accepted: sampled, empirical"):
        Labels("guessed")
