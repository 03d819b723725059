"""Training: a planted dictionary is found again, dead features revive, results repeat."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from mda.sae import sparsify
from mda.sae.hooks import GPT_NEOX, Hookpoint
from mda.sae.load import load_sae
from mda.sae.quality import quality
from mda.sae.train import Weights, geometric_median, train_topk_sae

D, N, K = 16, 24, 3
HOOK = Hookpoint("resid_post", 1)


def planted(seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations [n, D] that are K of N directions each, far from 0; and the directions."""
    directions = F.normalize(torch.randn(N, D, generator=torch.Generator().manual_seed(0)))
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(n, N, generator=generator).topk(K).indices
    sizes = 10 + 5 * torch.rand(n, K, generator=generator)
    features = torch.zeros(n, N).scatter(1, active, sizes)
    return features @ directions + torch.linspace(-30, 40, D), directions


def trained(x: torch.Tensor, **settings):
    settings = {"n_features": 2 * N, "k": K, "steps": 600, "seed": 0, "lr": 1e-2} | settings
    return train_topk_sae(x.split(256), hook=HOOK, **settings)


@pytest.fixture(scope="module")
def found():
    torch.set_num_threads(1)
    return trained(planted(1, 600 * 256)[0])


def test_a_planted_dictionary_is_found(found):
    sae, history = found
    fresh, directions = planted(2, 4096)
    cosines = directions @ F.normalize(sae.W_dec_FD).T
    assert (cosines.max(1).values > 0.95).float().mean() > 0.9
    reached = quality(sae, fresh.split(1000))
    assert reached.explained_variance > 0.95
    assert reached.l0 <= K
    assert history[-1].step == 600
    assert history[-1].explained_variance == pytest.approx(reached.explained_variance, abs=0.02)


def test_decoder_rows_have_norm_1_and_the_centre_is_that_of_the_activations(found):
    sae, _ = found
    assert_close(sae.W_dec_FD.norm(dim=1), torch.ones(2 * N))
    fresh, _ = planted(2, 4096)
    far = fresh.mean(0).norm()
    assert (sae.b_dec_D - fresh.mean(0)).norm() < 0.3 * far


def test_the_result_is_a_function_of_batches_and_seed(found):
    x, _ = planted(1, 600 * 256)
    one, history = trained(x, steps=20)
    two, again = trained(x, steps=20)
    assert one.fingerprint() == two.fingerprint()
    assert history == again
    assert trained(x, steps=20, seed=1)[0].fingerprint() != one.fingerprint()
    assert trained(x.flip(0), steps=20)[0].fingerprint() != one.fingerprint()


def test_units_make_no_difference():
    """Features and reconstruction of 1000 x are 1000 times those of x: the scale is folded back."""
    x, _ = planted(1, 100 * 256)
    one, _ = trained(x, steps=100)
    large, _ = trained(1024 * x, steps=100)  # a power of 2, so that rounding is the same
    assert_close(large.encode(1024 * x), 1024 * one.encode(x))
    assert_close(large.reconstruct(1024 * x), 1024 * one.reconstruct(x))


def test_the_loss_is_the_share_of_variance_that_is_left():
    """After one step with a learning rate of 0, the history's number is the quality's."""
    x, _ = planted(1, 256)
    sae, history = trained(x, steps=1, lr=0.0)
    reached = quality(sae, [x]).explained_variance
    assert history[0].explained_variance == pytest.approx(reached, abs=1e-5)
    assert reached < 0.9


def test_the_loss_is_the_formula_and_only_its_second_part_reaches_dead_features():
    x, _ = planted(3, 50)
    x = x - x.mean(0)
    weights = Weights.drawn(D, 3 * D, seed=4, device=x.device)
    dead = torch.arange(3 * D) < 12  # more than the D / 2 that are asked
    loss, explained, fired = weights.loss(x, K, dead, 1 / 32)
    W, b, rows, centre = (p.detach() for p in weights.parameters())
    total = error = aux = 0.0
    for one in x:
        pre = ((one - centre) @ W.T + b).clamp(min=0)
        chosen = pre.argsort(descending=True)[:K]
        left = one - centre - sum(pre[i] * rows[i] for i in chosen)
        asked = [i for i in pre.argsort(descending=True).tolist() if dead[i]][: D // 2]
        error += left.square().sum().item()
        aux += (left - sum(pre[i] * rows[i] for i in asked)).square().sum().item()
        total += (one - x.mean(0)).square().sum().item()
    assert loss.item() == pytest.approx((error + aux / 32) / total, rel=1e-5)
    assert explained.item() == pytest.approx(1 - error / total, rel=1e-5)
    silent = dead & ~fired  # never among the K largest
    assert silent.any()
    (gradient,) = torch.autograd.grad(loss, weights.W_dec_FD)
    assert (gradient[silent].norm(dim=1) > 0).all()
    (gradient,) = torch.autograd.grad(weights.loss(x, K, dead & False, 1 / 32)[0], weights.W_dec_FD)
    assert (gradient[silent] == 0).all()


def test_a_model_that_runs_without_gradients_may_give_the_batches():
    def batches():
        with torch.no_grad():
            yield from planted(1, 3 * 256)[0].split(256)

    sae, _ = train_topk_sae(batches(), hook=HOOK, n_features=N, k=K, steps=3, seed=0)
    assert not any(tensor.requires_grad for tensor in sae.tensors().values())


@pytest.mark.parametrize(
    ("batches", "says"),
    [
        ([], "no activations to train on"),
        ([torch.ones(8, D)], "all the same"),
        ([torch.randn(8, D)] * 4, "4 batches of activations for 5 steps"),
    ],
)
def test_too_little_to_train_on_is_refused(batches, says):
    with pytest.raises(ValueError, match=says):
        train_topk_sae(batches, hook=HOOK, n_features=N, k=K, steps=5, seed=0)


def test_the_geometric_median_has_the_least_sum_of_distances_and_ignores_outliers():
    x = torch.randn(200, D, generator=torch.Generator().manual_seed(3)).double() + 5
    x[:5] *= 1000
    median = geometric_median(x)
    assert (median - 5).norm() < 1 < (x.mean(0) - 5).norm()
    at = (x - median).norm(dim=1).sum()
    for direction in torch.eye(D).double():
        for step in (-0.05, 0.05):
            assert (x - median - step * direction).norm(dim=1).sum() > at


def test_quality_is_counted_by_hand_and_the_same_in_any_batches(found):
    sae, _ = found
    x, _ = planted(5, 300)
    f, back = sae.encode(x), sae.reconstruct(x)
    left = (x - back).double().square().sum() / (x - x.mean(0)).double().square().sum()
    reached = quality(sae, x.split(7))
    assert reached.explained_variance == pytest.approx(1 - left.item(), abs=1e-6)
    assert reached.l0 == (f > 0).sum().item() / 300
    assert reached.dead_share == pytest.approx((~(f > 0).any(0)).sum().item() / (2 * N))
    assert reached.tokens == 300
    whole = quality(sae, [x.view(3, 100, D)])
    assert whole.explained_variance == pytest.approx(reached.explained_variance, abs=1e-9)
    with pytest.raises(ValueError, match="no activations"):
        quality(sae, [])


def test_what_is_saved_is_loaded_bit_for_bit(found, tmp_path):
    sae, _ = found
    folder = sparsify.save(sae, tmp_path, GPT_NEOX)
    assert folder == tmp_path / "layers.1"
    assert sorted(path.name for path in folder.iterdir()) == ["cfg.json", "sae.safetensors"]
    assert json.loads((folder / "cfg.json").read_text())["normalize_decoder"] is True
    assert load_sae(folder).fingerprint() == sae.fingerprint()


@pytest.mark.parametrize(
    "changes", [{"kind": "relu", "k": None}, {"centred": False}, {"normalization": "layer_norm"}]
)
def test_what_the_layout_cannot_say_is_not_saved(found, tmp_path, changes):
    with pytest.raises(ValueError, match="centred top-k SAEs without normalization alone"):
        sparsify.save(replace(found[0], **changes), tmp_path, GPT_NEOX)
    assert not list(tmp_path.iterdir())
