"""The fitted curvature of a model: invariances, the Gauss-Newton matrix, and files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fitting import EMPIRICAL, basis_of, fit, random_like
from in_memory import Case
from plain_gradients import block_gradients, pieces

from mda.estimator import kfac_math
from mda.estimator.ekfac import (
    Curvature,
    Fit,
    Labels,
    eigenbasis,
    fit_curvature,
    fit_subset,
    input_site,
    output_site,
    sum_moments,
    sum_squares,
)
from mda.estimator.score import score_samples
from mda.model.loss import label_uniforms
from mda.schema.estimator import FACTORS
from mda.unit.blocks import Directions
from mda.unit.capture import capture, modules_of


def assert_same_curvature(a: Curvature, b: Curvature):
    assert a.eigenvalues.keys() == b.eigenvalues.keys()
    for name, values in a.eigenvalues.items():
        torch.testing.assert_close(values, b.eigenvalues[name])


def score(case, table, fitted, batch_size=4):
    """Scores for a made-up gradient of the measurement, [N, U]."""
    blocks = fitted.inverse_times(random_like(fitted, case.blocks), 0.1)
    directions = Directions.of(case.units, blocks)
    return score_samples(case.model, table.rows, table.ids, directions, batch_size).values_NU


@pytest.mark.parametrize("labels", [Labels(), EMPIRICAL])
def test_lambda_is_batch_size_invariant(case, table, labels):
    """Sampled labels included: they belong to the sample, not to its place in a batch."""
    reference = fit(case, table, labels, batch_size=1)
    for batch_size in (2, 9):
        assert_same_curvature(fit(case, table, labels, batch_size), reference)


def mean_squares(case, table, fitted, labels_NT=None):
    """mean_b [(Q_A^T G_b Q_S)_ij]^2 of every owner, gradient by gradient, by plain autograd."""
    squares = {block: torch.zeros_like(fitted.eigenvalues[block.name]) for block in case.blocks}
    for n, row in enumerate(table.tokens):
        labels = None if labels_NT is None else labels_NT[n]
        for block, gradients in block_gradients(case.model, case.blocks, row, labels).items():
            for owner, gradient in enumerate(gradients):
                q_a, q_s = basis_of(fitted, block, owner)
                squares[block][owner] += (q_a.T @ gradient @ q_s).square() / len(table.ids)
    return squares


@pytest.mark.parametrize("factors", FACTORS)
def test_lambda_is_the_mean_square_of_rotated_sequence_gradients(case, table, factors):
    fitted = fit(case, table, factors=factors)
    for block, expected in mean_squares(case, table, fitted).items():
        torch.testing.assert_close(fitted.eigenvalues[block.name], expected)


def test_independent_factors_are_moments_of_what_is_captured_bit_for_bit(case, table):
    fitted = fit(case, table, batch_size=len(table.ids))
    captured = capture(case.model, table.tokens, modules_of(case.blocks))
    for block in case.blocks:
        sides = captured.x(block), captured.dy(block)
        for mine, side in zip(fitted.basis(block), sides, strict=True):
            assert torch.equal(
                mine, kfac_math.eigenvectors(kfac_math.second_moment_sum(side).double())
            )


@pytest.mark.parametrize("factors", FACTORS[1:])
def test_a_basis_of_gradients_is_that_of_plain_autograd(case, table, factors):
    """A and S of sequences whose gradients come from autograd; all of a layer's owners share one.

    Of rows of one token, `weighted` is the same; qk has no gradient there.
    """
    tokens = table.tokens[:, :2] if factors == "weighted" else table.tokens
    model, blocks = case.model, case.blocks
    rows = dict(zip(table.ids.tolist(), tokens, strict=True))
    fitted = fit_curvature(
        model, lambda ids: torch.stack([rows[i] for i in ids.tolist()]), table.ids,
        Fit(blocks, EMPIRICAL, 4, factors=factors),
    )  # fmt: skip
    per_row = [block_gradients(model, blocks, row) for row in tokens]
    for block in blocks:
        gradients = torch.stack([found[block] for found in per_row])  # [B, H, I, J]
        sides = gradients, gradients.transpose(2, 3)
        for q_GII, side in zip(fitted.basis(block), sides, strict=True):
            moments = torch.einsum("bhij,bhkj->hik", side, side)
            if len(q_GII) == 1:
                moments = moments.sum(0, keepdim=True)
            turned = q_GII.transpose(1, 2) @ moments @ q_GII
            off = turned - torch.diag_embed(turned.diagonal(dim1=1, dim2=2))
            assert off.abs().max() <= 1e-9 * turned.abs().max()
            values = turned.diagonal(dim1=1, dim2=2)
            assert (values.diff(dim=1) >= -1e-9 * turned.abs().max()).all()


def test_lambda_without_biases(toy, table):
    case = Case.of(toy, "heads", bias=False)
    assert not any(block.bias for block in case.blocks)
    fitted = fit(case, table)
    for block, expected in mean_squares(case, table, fitted).items():
        torch.testing.assert_close(fitted.eigenvalues[block.name], expected)


def plain_labels(model, table, seed):
    """Labels [N, T] drawn from the model by inverse CDF, without this project's loss."""
    uniforms = label_uniforms(seed, table.ids, 8)
    with torch.no_grad():
        cdf = model(table.tokens[:, :-1]).logits.softmax(-1).cumsum(-1)
    return (cdf <= uniforms[..., None]).sum(-1)


def test_both_passes_see_the_same_sampled_labels(case, table):
    """Pass 1's bases diagonalise the moments under some labels, pass 2's Lambda is theirs too.

    The labels are drawn here from seed, sample id and position; one batch of pass 2 is not one of
    pass 1, so that they cannot depend on a batch.
    """
    labels_NT = plain_labels(case.model, table, seed=3)
    assert (labels_NT != table.tokens[:, 1:]).any()
    samples, wanted = (case.model, table.rows, table.ids), Fit(case.blocks, Labels(seed=3), 2)
    moments = sum_moments(*samples, wanted)
    basis = eigenbasis(moments)
    squares = sum_squares(*samples, replace(wanted, batch_size=9), basis)
    values = {name: total / len(table.ids) for name, total in squares.items()}
    fitted = Curvature(basis, values)
    expected = mean_squares(case, table, fitted, labels_NT)
    for block in case.blocks:
        torch.testing.assert_close(values[block.name], expected[block])
        paths = [linear for linear, _, _ in pieces(case.model, block)]
        gradients = output_gradients(case.model, paths, table.tokens[:, :-1], labels_NT)
        for owner in range(block.owners):
            q_s = basis_of(fitted, block, owner)[1]
            own = torch.cat(
                [gradients[path][..., rows] for path, rows, _ in pieces(case.model, block, owner)],
                -1,
            ).flatten(0, 1)
            rotated = q_s.T @ own.T @ own @ q_s
            off = rotated - rotated.diagonal().diag()
            assert off.abs().max() < 1e-9 * rotated.abs().max()


def output_gradients(model, paths, inputs_BT, labels_BT):
    """Gradients of the sum of the sequences' mean losses in the outputs of some Linears."""
    outputs = {}

    def keep(path):
        return lambda _module, _args, output: outputs.update({path: output})

    handles = [model.get_submodule(p).register_forward_hook(keep(p)) for p in dict.fromkeys(paths)]
    logits = model(inputs_BT).logits
    loss = F.cross_entropy(logits.flatten(0, 1), labels_BT.flatten(), reduction="sum")
    found = torch.autograd.grad(loss / labels_BT.shape[1], list(outputs.values()))
    for handle in handles:
        handle.remove()
    return dict(zip(outputs, found, strict=True))


def test_blocks_that_read_or_write_the_same_share_a_basis(toy, llama, table):
    """All neurons of a layer read the same residual stream: one basis, fitted once."""
    for model, d_in in ((toy, 13), (llama, 17)):
        neurons, heads = Case.of(model, "neurons"), Case.of(model, "heads")
        fitted = fit(neurons, table)
        q_a, _ = fitted.basis(neurons.blocks[0])
        _, q_s = fitted.basis(neurons.blocks[1])
        assert q_a.shape == (1, d_in, d_in) and q_s.shape == (1, d_in - 1, d_in - 1)
        qk, v, o = heads.blocks[:3]
        assert input_site(qk) == input_site(v)
        sites = {input_site(b) for b in heads.blocks} | {output_site(b) for b in heads.blocks}
        assert fit(heads, table).eigenvectors.keys() == sites
        assert len(sites) == 2 * 5  # for each layer: x, z, and the outputs of qk, v and o
        assert input_site(qk) != input_site(o)


def test_shards_in_any_order_merge_to_the_whole(case, table):
    seen = []

    def shards(name, sums):
        seen.append(name)
        found = [sums(ids) for ids in np.array_split(table.ids, 4)]
        return {key: sum(found[i][key] for i in (2, 0, 3, 1)) for key in found[0]}

    merged = fit(case, table, Labels(), shards=shards)
    assert seen == ["moments", "squares"]
    assert_same_curvature(merged, fit(case, table, Labels()))


def test_same_seed_gives_bit_equal_curvature_and_scores(case, table):
    case.model.float()
    results = []
    for _ in range(2):
        fitted = fit(case, table, Labels())
        results.append((fitted, score(case, table, fitted)))
    for name, values in results[0][0].eigenvalues.items():
        assert torch.equal(values, results[1][0].eigenvalues[name])
    assert torch.equal(results[0][1], results[1][1])
    other = fit(case, table, Labels(seed=1))
    assert any(
        not torch.equal(v, other.eigenvalues[name]) for name, v in results[0][0].eigenvalues.items()
    )


def test_scores_do_not_depend_on_the_batch_size(case, table):
    fitted = fit(case, table)
    reference = score(case, table, fitted, batch_size=1)
    for batch_size in (2, 4, 9, 100):
        torch.testing.assert_close(score(case, table, fitted, batch_size), reference)


def test_scores_are_minus_the_inner_product_with_the_gradient(case, table):
    fitted = fit(case, table)
    directions = fitted.inverse_times(random_like(fitted, case.blocks), 0.1)
    ours = score(case, table, fitted)
    assert ours.shape == (9, len(case.units))
    for n, row in enumerate(table.tokens):
        gradients = block_gradients(case.model, case.blocks, row)
        expected = torch.stack(
            [
                -sum((directions[b][h] * gradients[b][h]).sum() for b, h in unit.parts)
                for unit in case.units
            ]
        )
        torch.testing.assert_close(ours[n], expected)


def test_units_that_share_a_module_have_a_direction_each(toy, table):
    """Several rows on blocks with one owner, as of SAE features: each is a unit scored alone."""
    case = Case.of(toy, "mlp")
    blocks = case.blocks[:2]  # of the first layer
    fitted = fit(replace(case, blocks=blocks), table)
    rows = [random_like(fitted, blocks, seed) for seed in range(3)]
    together = {b: torch.cat([r[b] for r in rows]) for b in blocks}
    units = [
        replace(case.units[0], name=f"F{i}", parts=tuple(p._replace(row=i) for p in parts))
        for i, parts in enumerate([case.units[0].parts] * 3)
    ]
    solved = fitted.inverse_times(together, 0.1)
    ours = score_samples(toy, table.rows, table.ids, Directions.of(units, solved)).values_NU
    for i, alone in enumerate(rows):
        directions = Directions.of(case.units[:1], fitted.inverse_times(alone, 0.1))
        expected = score_samples(toy, table.rows, table.ids, directions).values_NU
        torch.testing.assert_close(ours[:, [i]], expected)


def test_an_owner_without_curvature_gets_a_direction_of_zero(toy, llama, table):
    """A neuron that nothing reads, and a head whose output goes nowhere: no NaN anywhere."""
    down = toy.gpt_neox.layers[0].mlp.dense_4h_to_h.weight
    o_proj = llama.model.layers[0].self_attn.o_proj.weight
    with torch.no_grad():
        down[:, 5] = 0
        o_proj[:, 8:12] = 0  # head 2, which shares W_K and W_V with head 3
    neurons, heads = Case.of(toy, "neurons"), Case.of(llama, "heads")
    fitted = fit(neurons, table)
    solved = fitted.inverse_times(random_like(fitted, neurons.blocks), 0.1)
    into, out = neurons.blocks[:2]
    assert not solved[into][5].any() and solved[out][5].all()
    assert solved[into][4].all() and solved[into][6].all()
    directions = Directions.of(neurons.units, {into: solved[into]})
    scores = score_samples(toy, table.rows, table.ids, directions).values_NU
    assert scores.isfinite().all()
    assert not scores[:, 5].any() and scores[:, [4, 6]].all()

    fitted = fit(heads, table, Labels())
    for block, solution in fitted.inverse_times(random_like(fitted, heads.blocks), 0.1).items():
        assert solution.isfinite().all()
        if block.name == "L0.o":
            assert solution[2].all()
    assert score(heads, table, fitted).isfinite().all()


def test_a_labels_draw_does_not_depend_on_the_batch(toy, table):
    uniforms, modules = label_uniforms(0, table.ids, 8), modules_of(Case.of(toy, "heads").blocks)
    first = capture(toy, table.tokens, modules, uniforms_BT=uniforms)
    again = capture(toy, table.tokens[4:6], modules, uniforms_BT=uniforms[4:6])
    torch.testing.assert_close(again.losses_B, first.losses_B[4:6])


def test_curvature_comes_back_from_its_file_bit_for_bit(case, table, tmp_path):
    fitted = fit(case, table)
    fitted.save(tmp_path / "curvature.safetensors")
    loaded = Curvature.load(tmp_path / "curvature.safetensors")
    for mine, theirs in (
        (fitted.eigenvectors, loaded.eigenvectors),
        (fitted.eigenvalues, loaded.eigenvalues),
    ):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    torch.testing.assert_close(score(case, table, loaded), score(case, table, fitted))


def test_curvature_of_other_blocks_is_refused(toy, table):
    heads, neurons = Case.of(toy, "heads", bias=False), Case.of(toy, "neurons")
    qk, v, _ = heads.blocks[:3]
    fitted = fit(replace(heads, blocks=[qk]), table)
    with pytest.raises(ValueError, match=r"L0.v of shape .* fitted are \{'L0.qk'"):
        fitted.inverse_times({v: torch.zeros(2, 12, 6)}, 0.1)
    with pytest.raises(ValueError, match=r"L0.qk of shape \[2, 13, 12\]"):  # with a bias
        fitted.inverse_times({replace(qk, bias=True): torch.zeros(2, 13, 12)}, 0.1)
    for n_rows in (1, 3):  # for two heads
        with pytest.raises(ValueError, match=rf"L0.qk of shape \[{n_rows}, 12, 12\]"):
            fitted.inverse_times({qk: torch.zeros(n_rows, 12, 12)}, 0.1)
    with pytest.raises(ValueError, match=r"L0.neurons.in of shape"):
        fitted.inverse_times({neurons.blocks[0]: torch.zeros(24, 13, 1)}, 0.1)
    for damping in (0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=rf"damping={damping}; expected above 0"):
            fitted.inverse_times({qk: torch.zeros(2, 12, 12)}, damping)


def test_fit_subset_is_seeded_ordered_and_without_repeats():
    ids = np.arange(100, 200)[::-1]
    subset = fit_subset(ids, 30, seed=1)
    assert len(set(subset)) == 30
    assert (np.diff(subset) < 0).all()  # in the stream's order, here descending
    assert np.array_equal(subset, fit_subset(ids, 30, seed=1))
    assert not np.array_equal(subset, fit_subset(ids, 30, seed=2))
    assert np.array_equal(fit_subset(ids, None, seed=1), ids)


def test_wrong_labels_are_named():
    with pytest.raises(ValueError, match="labels='guessed'; expected sampled, empirical"):
        Labels("guessed")


def test_no_curvature_is_made_of_batch_sums(toy, table):
    """Lambda of one batch of nine is not the square of the nine's summed gradient."""
    case = Case.of(toy, "mlp")
    fitted, block = fit(case, table, batch_size=9), case.blocks[0]
    total = sum(block_gradients(toy, [block], row)[block] for row in table.tokens) / 9
    of_sum = kfac_math.rotated(total[None], *fitted.basis(block))[0].square()
    assert (fitted.eigenvalues[block.name] - of_sum).norm() > 0.1 * of_sum.norm()
