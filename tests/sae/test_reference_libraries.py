"""Files that the libraries themselves write give the features that the libraries compute.

Needs sae-lens 6.54, eai-sparsify 1.3.3 and dictionary-learning 0.1.0, each for its own tests.
"""

import json

import pytest
import torch
from torch.testing import assert_close

from mda.sae import sparsify
from mda.sae.autoencoder import Sae
from mda.sae.hooks import GPT_NEOX, Hookpoint
from mda.sae.load import load_sae

N = 48
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def shake(module: torch.nn.Module) -> None:
    """No parameter is 0, none has a special norm."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("standard", {}),
        ("standard", {"apply_b_dec_to_input": False}),
        ("standard", {"normalize_activations": "layer_norm"}),
        ("standard", {"normalize_activations": "constant_norm_rescale"}),
        ("jumprelu", {}),
        ("gated", {}),
        ("topk", {"k": 8}),
        ("topk", {"k": 8, "rescale_acts_by_decoder_norm": True}),
    ],
)
def test_saelens(tmp_path, x, architecture, settings):
    sae_lens = pytest.importorskip("sae_lens", exc_type=ImportError)
    metadata = {"hook_name": "blocks.1.hook_resid_post", "sae_lens_version": "6.54.12"}
    cfg = {"architecture": architecture, "d_in": 16, "d_sae": N, "metadata": metadata, **settings}
    theirs = sae_lens.SAE.from_dict(cfg)
    shake(theirs)
    theirs.save_model(tmp_path)
    ours = load_sae(tmp_path)
    assert ours.hook == Hookpoint("resid_post", 1)
    with torch.no_grad():
        assert_close(ours.encode(x), theirs.encode(x), **CLOSE)
        assert_close(ours.reconstruct(x), theirs(x), **CLOSE)


def test_sparsify(tmp_path, x):
    library = pytest.importorskip("sparsify", exc_type=ImportError)
    theirs = library.SparseCoder(16, library.SparseCoderConfig(k=8, expansion_factor=3))
    shake(theirs)
    theirs.save_to_disk(tmp_path / "layers.1.attention")
    ours = load_sae(tmp_path / "layers.1.attention")
    assert ours.hook == Hookpoint("attn_out", 1)
    compare_with_sparsify(ours, theirs, x)


def test_sparsify_reads_what_is_saved_here(tmp_path, x):
    library = pytest.importorskip("sparsify", exc_type=ImportError)
    generator = torch.Generator().manual_seed(2)
    W, b, rows, centre = (torch.randn(*shape, generator=generator) for shape in
                          ((N, 16), (N,), (N, 16), (16,)))  # fmt: skip
    ours = Sae("topk", Hookpoint("mlp_out", 2), W, b, rows, centre, centred=True, k=5)
    sparsify.save(ours, tmp_path, GPT_NEOX)
    (theirs,) = library.SparseCoder.load_many(str(tmp_path), local=True).values()
    compare_with_sparsify(ours, theirs, x)


@torch.no_grad()
def compare_with_sparsify(ours: Sae, theirs, x) -> None:
    x = x.flatten(0, 1)
    values, indices, _ = theirs.encode(x)
    features = torch.zeros(len(x), ours.n_features).scatter(1, indices, values)
    assert_close(ours.encode(x), features, **CLOSE)
    assert_close(ours.reconstruct(x), theirs.decode(values, indices), **CLOSE)


@pytest.mark.parametrize("name", ["AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder",
                                  "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE",
                                  "JumpReluAutoEncoder"])  # fmt: skip
def test_dictionary_learning(tmp_path, x, name):
    library = pytest.importorskip("dictionary_learning.utils", exc_type=ImportError)
    more = {"k": 8} if "TopK" in name else {}
    more |= {"group_sizes": [N // 2, N // 2]} if name.startswith("Matryoshka") else {}
    theirs = getattr(library, name)(16, N, **more)
    shake(theirs)
    if "TopK" in name:
        theirs.threshold.fill_(0.7)
    folder = tmp_path / "mlp_out_layer2" / "10_48"
    folder.mkdir(parents=True)
    torch.save(theirs.state_dict(), folder / "ae.pt")
    cfg = {"trainer": {"dict_class": name, "k": 8}}
    (folder / "config.json").write_text(json.dumps(cfg))
    ours = load_sae(folder)
    assert ours.hook == Hookpoint("mlp_out", 2)
    loaded, _ = library.load_dictionary(str(folder), "cpu")
    x = x.flatten(0, 1)
    with torch.no_grad():
        assert_close(ours.encode(x), loaded.encode(x), **CLOSE)
        assert_close(ours.reconstruct(x), loaded.decode(loaded.encode(x)), **CLOSE)
