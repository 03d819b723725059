"""Every kind against its formula, position by position, and a few features against all."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from mda.sae import autoencoder
from mda.sae.autoencoder import Sae
from mda.sae.hooks import Hookpoint

D, N = 6, 20


def made(kind: str, **settings) -> Sae:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    own = {
        "relu": {},
        "jumprelu": {"threshold_F": draw(N).abs()},
        "topk": {"k": 4},
        "gated": {"r_mag_F": 0.3 * draw(N), "b_mag_F": draw(N)},
    }[kind]
    parts = {"W_enc_FD": draw(N, D), "b_enc_F": draw(N), "W_dec_FD": draw(N, D), "b_dec_D": draw(D)}
    settings = {"centred": True} | settings
    return Sae(kind, Hookpoint("resid_post", 1), **parts, **own, **settings)


KINDS = ["relu", "jumprelu", "topk", "gated"]
EVERY = [
    made(kind, centred=centred, normalization=normalization)
    for kind in KINDS
    for centred in (True, False)
    for normalization in ("none", "layer_norm", "constant_norm_rescale")
]


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(4)
    return 2 + torch.randn(3, 5, D, generator=generator, dtype=torch.float64)


def by_hand(sae: Sae, x: list[float]) -> tuple[list[float], list[float]]:
    """Features and reconstruction of one position, one number after the other."""
    mean, size = 0.0, 1.0
    if sae.normalization == "layer_norm":
        mean = sum(x) / D
        size = math.sqrt(sum((v - mean) ** 2 for v in x) / (D - 1))
        u = [(v - mean) / (size + 1e-5) for v in x]
    elif sae.normalization == "constant_norm_rescale":
        size = math.sqrt(sum(v * v for v in x)) / math.sqrt(D)
        u = [v / size for v in x]
    else:
        u = list(x)
    if sae.centred:
        u = [v - b for v, b in zip(u, sae.b_dec_D.tolist(), strict=True)]
    linear = [sum(w * v for w, v in zip(row, u, strict=True)) for row in sae.W_enc_FD.tolist()]
    pre = [a + b for a, b in zip(linear, sae.b_enc_F.tolist(), strict=True)]
    if sae.kind == "relu":
        f = [max(0.0, p) for p in pre]
    elif sae.kind == "jumprelu":
        f = [p if p > t else 0.0 for p, t in zip(pre, sae.threshold_F.tolist(), strict=True)]
    elif sae.kind == "topk":
        floor = sorted(pre)[-4]  # k
        f = [max(0.0, p) if p >= floor else 0.0 for p in pre]
    else:
        r, b = sae.r_mag_F.tolist(), sae.b_mag_F.tolist()
        f = [max(0.0, math.exp(r[i]) * linear[i] + b[i]) if pre[i] > 0 else 0.0 for i in range(N)]
    rows, bias = sae.W_dec_FD.tolist(), sae.b_dec_D.tolist()
    back = [sum(f[i] * rows[i][d] for i in range(N)) + bias[d] for d in range(D)]
    return f, [v * size + mean for v in back]


@pytest.mark.parametrize("sae", EVERY, ids=lambda s: f"{s.kind} {s.centred} {s.normalization}")
def test_features_and_reconstruction_are_those_of_the_formula(sae, x):
    f, back = sae.encode(x), sae.reconstruct(x)
    assert f.shape == (3, 5, N)
    for position in [(0, 0), (1, 3), (2, 4)]:
        features, reconstruction = by_hand(sae, x[position].tolist())
        assert_close(f[position], torch.tensor(features, dtype=torch.float64))
        assert_close(back[position], torch.tensor(reconstruction, dtype=torch.float64))


@pytest.mark.parametrize("sae", EVERY, ids=lambda s: f"{s.kind} {s.centred} {s.normalization}")
def test_a_few_features_are_those_among_all(sae, x, monkeypatch):
    monkeypatch.setattr(autoencoder, "_CHUNK", 4 * N)  # four positions at a time, not all fifteen
    ids = [7, 0, 19, 7]
    assert_close(sae.encode_some(x, ids), sae.encode(x)[..., ids])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_a_few_features_are_those_of_all(kind, x):
    sae, ids = made(kind), [3, 11, 5]
    weights = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(5)).double()
    x.requires_grad_()
    (some,) = torch.autograd.grad((sae.encode_some(x, ids) * weights).sum(), x)
    (every,) = torch.autograd.grad((sae.encode(x)[..., ids] * weights).sum(), x)
    assert every.norm() > 0
    assert_close(some, every)


@pytest.mark.parametrize("sae", EVERY, ids=lambda s: f"{s.kind} {s.centred} {s.normalization}")
def test_gradients_are_those_of_finite_differences(sae, x):
    x = x[0, :2].requires_grad_()
    assert torch.autograd.gradcheck(sae.encode, (x,), eps=1e-7, atol=1e-5)
    assert torch.autograd.gradcheck(lambda x: sae.encode_some(x, [1, 2, 8]), (x,), eps=1e-7,
                                    atol=1e-5)  # fmt: skip


def test_top_k_leaves_k_features_where_more_are_positive(x):
    sae = replace(made("topk"), b_enc_F=torch.full((N,), 50.0, dtype=torch.float64))
    assert ((sae.encode(x) > 0).sum(-1) == 4).all()


def test_ties_are_broken_alike_for_a_few_features_and_for_all(x):
    sae = made("topk")
    same = replace(sae, W_enc_FD=sae.W_enc_FD[:1].expand(N, D), b_enc_F=torch.ones(N).double())
    assert_close(same.encode_some(x, list(range(N))), same.encode(x))


def test_a_few_top_k_features_form_no_graph_over_all(x):
    sae = made("topk").to(dtype=torch.float32)
    saved: list[int] = []

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        sae.encode_some(x.float().requires_grad_(), [2]).sum()
    assert saved and max(saved) < 3 * 5 * N


def test_an_activation_of_another_precision_is_read_in_the_sae_s(x):
    sae = made("relu").to(dtype=torch.float32)
    assert sae.encode(x.bfloat16()).dtype == torch.float32
    assert_close(sae.encode(x.bfloat16()), sae.encode(x.bfloat16().float()))


def test_the_fingerprint_follows_everything_that_decides_the_features():
    sae = made("jumprelu")
    others = [
        replace(sae, hook=Hookpoint("resid_post", 2)),
        replace(sae, hook=Hookpoint("mlp_out", 1)),
        replace(sae, centred=False),
        replace(sae, normalization="layer_norm"),
        *[replace(sae, **{name: t + 1e-9}) for name, t in sae.tensors().items()],
    ]
    prints = [one.fingerprint() for one in (sae, *others)]
    assert len(set(prints)) == len(prints) == 10
    assert replace(sae).fingerprint() == prints[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "tanh"}, "kind 'tanh'; expected relu, jumprelu, topk, gated"),
        ({"normalization": "batch"}, "normalization 'batch'; expected none, layer_norm"),
        ({"k": None}, "a topk SAE takes k alone"),
        ({"threshold_F": torch.ones(N)}, "a topk SAE takes k alone"),
        ({"k": N + 1}, "k=21; expected 1 to the 20 features"),
        ({"W_dec_FD": torch.ones(D, N)}, r"W_dec_FD has shape \[6, 20\]; expected \[20, 6\]"),
        ({"b_dec_D": torch.ones(N)}, r"b_dec_D has shape \[20\]; expected \[6\]"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        replace(made("topk"), **changes)


def test_undoing_a_normalization_needs_the_activation(x):
    sae = made("relu", normalization="layer_norm")
    with pytest.raises(ValueError, match="undone with the encoded x only"):
        sae.decode(sae.encode(x))
