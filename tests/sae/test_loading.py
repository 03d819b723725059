"""Each layout, written by hand: the features are the ones that its library computes.

An SAE is trained on a model's own activations in the conventions of its library (see layouts.py).
Loaded, it must give the same features and explain as much of the activations; every convention
that could be missed, missed on purpose, must cost explained variance.
"""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from layouts import (
    Written,
    before_version_6,
    dictionary_learning,
    explained_variance,
    saelens,
    sparsify,
)
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from mda.sae.hooks import Hookpoint
from mda.sae.load import load_sae
from mda.schema import ConfigError

AFTER_1 = Hookpoint("resid_post", 1)


def check(written: Written, x, loaded, kind: str) -> None:
    """Features and reconstruction are the layout's own, and every mistake would show."""
    assert (loaded.kind, loaded.hook) == (kind, AFTER_1)
    assert_close(loaded.encode(x), written.encode(x), rtol=1e-4, atol=1e-4)
    assert_close(loaded.reconstruct(x), written.reconstruct(x), rtol=1e-4, atol=1e-4)
    good = explained_variance(x, loaded.reconstruct(x))
    assert good > 0.8
    turned = loaded.W_dec_FD.T.reshape(loaded.W_dec_FD.shape)
    mistakes = {
        "no b_dec": replace(loaded, b_dec_D=torch.zeros_like(loaded.b_dec_D)),
        "b_dec on the wrong side": replace(loaded, centred=not loaded.centred),
        "transposed decoder": replace(loaded, W_dec_FD=turned),
        "transposed encoder": replace(
            loaded, W_enc_FD=loaded.W_enc_FD.T.reshape(loaded.W_enc_FD.shape)
        ),
    }
    if loaded.normalization != "none":
        mistakes["no normalization"] = replace(loaded, normalization="none")
    for mistake, wrong in mistakes.items():
        left = 1 - explained_variance(x, wrong.reconstruct(x))
        assert left > 2 * (1 - good), mistake


@pytest.mark.parametrize(
    ("architecture", "settings", "kind"),
    [
        ("standard", {}, "relu"),
        ("standard", {"centred": False}, "relu"),
        ("standard", {"normalize": "layer_norm"}, "relu"),
        ("standard", {"normalize": "constant_norm_rescale"}, "relu"),
        ("jumprelu", {"centred": False}, "jumprelu"),
        ("gated", {}, "gated"),
        ("topk", {}, "topk"),
        ("topk", {"rescale": True}, "topk"),
    ],
)
def test_saelens(tmp_path, x, architecture, settings, kind):
    written = saelens(tmp_path / "sae", x, architecture, **settings)
    check(written, x, load_sae(written.folder), kind)


@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_saelens_before_version_6(tmp_path, x, architecture):
    written = saelens(tmp_path / "sae", x, architecture)
    before_version_6(written.folder, sae_lens_version="3.12.1")
    check(
        written, x, load_sae(written.folder), {"standard": "relu"}.get(architecture, architecture)
    )
    before_version_6_again = json.loads((written.folder / "cfg.json").read_text())
    del before_version_6_again["sae_lens_version"]  # the oldest files have none
    (written.folder / "cfg.json").write_text(json.dumps(before_version_6_again))
    assert_close(load_sae(written.folder).encode(x), written.encode(x), rtol=1e-4, atol=1e-4)


def test_saelens_with_a_scale_that_was_not_folded_in(tmp_path, x):
    c = 16**0.5 / x.norm(dim=-1).mean().item()
    written = saelens(tmp_path / "sae", x, "standard", normalize="expected_average_only_in", c=c)
    said = "expected_average_only_in needs its factor; expected activation_scaler.json beside the"
    with pytest.raises(ConfigError, match=said) as refused:
        load_sae(written.folder)
    assert "input_scale" not in str(refused.value)  # no setting has that name
    scaler = written.folder / "activation_scaler.json"
    scaler.write_text(json.dumps({"scaling_factor": c}))
    check(written, x, load_sae(written.folder), "relu")
    good = explained_variance(x, load_sae(written.folder).reconstruct(x))
    scaler.write_text(json.dumps({"scaling_factor": 1.0}))
    unscaled = load_sae(written.folder)
    assert 1 - explained_variance(x, unscaled.reconstruct(x)) > 2 * (1 - good)


def test_saelens_of_old_says_the_scale_by_a_boolean(tmp_path, x):
    written = saelens(tmp_path / "sae", x, "standard", c=0.4)
    before_version_6(written.folder, normalize_activations=True)
    scaler = written.folder / "activation_scaler.json"
    scaler.write_text(json.dumps({"scaling_factor": 0.4}))
    check(written, x, load_sae(written.folder), "relu")


def test_sparsify(tmp_path, x):
    written = sparsify(tmp_path, x)
    check(written, x, load_sae(written.folder), "topk")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("AutoEncoder", "relu"),
        ("AutoEncoderNew", "relu"),
        ("GatedAutoEncoder", "gated"),
        ("AutoEncoderTopK", "topk"),
        ("BatchTopKSAE", "jumprelu"),
        ("MatryoshkaBatchTopKSAE", "jumprelu"),
        ("JumpReluAutoEncoder", "jumprelu"),
    ],
)
def test_dictionary_learning(tmp_path, x, name, kind):
    written = dictionary_learning(tmp_path, x, name)
    check(written, x, load_sae(written.folder), kind)


def test_features_of_a_dictionary_are_in_units_of_a_normalised_decoder(tmp_path, x):
    written = dictionary_learning(tmp_path, x, "AutoEncoder")
    raw = torch.load(written.folder / "ae.pt", weights_only=True)
    norms = raw["decoder.weight"].norm(dim=0)
    assert (norms - 1).abs().max() > 0.1
    loaded = load_sae(written.folder)
    assert_close(loaded.W_dec_FD.norm(dim=1), torch.ones(len(norms)))
    alone = torch.relu((x - raw["bias"]) @ raw["encoder.weight"].T + raw["encoder.bias"])
    assert_close(loaded.encode(x), alone * norms, rtol=1e-4, atol=1e-4)


def test_a_dictionary_of_pythia_s_says_its_class_by_its_tensors(tmp_path, x):
    written = dictionary_learning(tmp_path, x, "AutoEncoder")
    (written.folder / "config.json").write_text(json.dumps({"trainer": {"layer": 1}}))
    check(written, x, load_sae(written.folder), "relu")


@pytest.mark.parametrize(
    ("folder", "submodule", "hook"),
    [
        ("attn_out_layer3/10_48", None, Hookpoint("attn_out", 3)),
        ("mlp_out_layer0/10_48", None, Hookpoint("mlp_out", 0)),
        ("embed/10_48", None, Hookpoint("resid_pre", 0)),
        ("somewhere/trainer_0", "resid_post_layer_8", Hookpoint("resid_post", 8)),
        ("resid_post_layer_8/trainer_0", None, Hookpoint("resid_post", 8)),
    ],
)
def test_names_of_dictionaries_are_understood(tmp_path, x, folder, submodule, hook):
    written = dictionary_learning(tmp_path / "a", x, "AutoEncoder", steps=0)
    cfg = json.loads((written.folder / "config.json").read_text())
    cfg["trainer"]["submodule_name"] = submodule
    (written.folder / "config.json").write_text(json.dumps(cfg))
    there = tmp_path / folder
    there.parent.mkdir(parents=True)
    written.folder.rename(there)
    assert load_sae(there).hook == hook


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("blocks.0.hook_resid_pre", Hookpoint("resid_pre", 0)),
        ("blocks.11.hook_attn_out", Hookpoint("attn_out", 11)),
        ("blocks.2.hook_mlp_out", Hookpoint("mlp_out", 2)),
        ("model.layers.7", Hookpoint("resid_post", 7)),
        ("gpt_neox.layers.7.mlp", Hookpoint("mlp_out", 7)),
    ],
)
def test_hook_names_of_saelens_are_understood(tmp_path, x, name, hook):
    folder = saelens(tmp_path / "sae", x, "standard", steps=0).folder
    change(folder / "cfg.json", metadata={"hook_name": name, "sae_lens_version": "6.1.0"})
    assert load_sae(folder).hook == hook


def change(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def metadata(**changes: object) -> dict:
    usual = {"hook_name": "blocks.1.hook_resid_post", "sae_lens_version": "6.1.0"}
    return {"metadata": usual | changes}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architecture": "skip_transcoder"}, "architecture=skip_transcoder is invalid; expected "
                                              "standard, jumprelu, gated, topk"),
        ({"architecture": None}, "has no architecture"),
        ({"normalize_activations": "covariance_whitening"}, "covariance_whitening is invalid; "
                                                            "expected none, layer_norm"),
        ({"reshape_activations": "hook_z"}, "reshape_activations=hook_z is invalid"),
        (metadata(hook_name="blocks.1.attn.hook_z"), r"'blocks\.1\.attn\.hook_z' is not known"),
        (metadata(hook_name="blocks.1.hook_k"), r"'blocks\.1\.hook_k' is not known"),
        (metadata(hook_head_index=3), "hook_head_index=3 is invalid; expected null"),
        (
            metadata(model_from_pretrained_kwargs={"center_writing_weights": True}),
            "center_writing_weights=true is invalid; expected false",
        ),
        (metadata(sae_lens_version="new"), "sae_lens_version=new is invalid; expected a version"),
        ({**metadata(sae_lens_version="3.0.0"), "activation_fn_str": "tanh-relu"},
         "activation_fn=tanh-relu is invalid; expected relu, topk"),
        ({**metadata(sae_lens_version="3.0.0"), "activation_fn_kwargs": {"k": 4}},
         "activation_fn=null is invalid; expected relu or topk by its name, where"),
    ],
)  # fmt: skip
def test_what_saelens_has_and_this_has_not_is_refused_by_name(tmp_path, x, changes, says):
    folder = saelens(tmp_path / "sae", x, "standard", steps=0).folder
    change(folder / "cfg.json", **changes)
    with pytest.raises(ConfigError, match=says):
        load_sae(folder)


def test_a_scaling_factor_that_is_not_folded_in_is_refused(tmp_path, x):
    folder = saelens(tmp_path / "sae", x, "standard", steps=0).folder
    tensors = load_file(folder / "sae_weights.safetensors")
    ones = torch.ones(len(tensors["b_enc"]))
    save_file(tensors | {"scaling_factor": ones}, folder / "sae_weights.safetensors")
    load_sae(folder)
    save_file(tensors | {"scaling_factor": 2 * ones}, folder / "sae_weights.safetensors")
    with pytest.raises(ConfigError, match="scaling_factor is invalid; expected weights it is"):
        load_sae(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"transcode": True}, "transcode=true is invalid; expected false"),
        ({"skip_connection": True}, "skip_connection=true is invalid; expected false"),
        ({"activation": "groupmax"}, "activation=groupmax is invalid; expected topk"),
        ({"signed": True}, "signed=true is invalid; expected false"),
        ({"k": None}, "has no k; there: activation"),
        ({"k": 100}, "k=100; expected 1 to the 48 features"),
        ({"d_in": 48}, "d_in=48 is invalid; expected 16, as in sae.safetensors"),
    ],
)
def test_what_sparsify_has_and_this_has_not_is_refused_by_name(tmp_path, x, changes, says):
    folder = sparsify(tmp_path, x, steps=0).folder
    change(folder / "cfg.json", **changes)
    with pytest.raises(ConfigError, match=says):
        load_sae(folder)


def test_an_activation_that_is_not_known_is_refused(tmp_path, x):
    folder = sparsify(tmp_path, x, steps=0).folder
    folder = folder.rename(tmp_path / "layers.1.mlp.act")
    said = r"the hookpoint 'layers\.1\.mlp\.act' is not known; .* residual stream before a layer$"
    with pytest.raises(ConfigError, match=said):
        load_sae(folder)
    assert load_sae(folder.rename(tmp_path / "layers.1")).hook == AFTER_1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"trainer": {"dict_class": "CrossCoder"}}, "dict_class=CrossCoder is invalid; expected "),
        ({"trainer": {"dict_class": "AutoEncoderTopK"}}, "has no k; there: b_dec|has no k"),
        ({"buffer": {"io": "in"}}, "io=in is invalid; expected out"),
    ],
)
def test_what_a_dictionary_may_not_be_is_refused_by_name(tmp_path, x, changes, says):
    folder = dictionary_learning(tmp_path, x, "AutoEncoder", steps=0).folder
    change(folder / "config.json", **changes)
    with pytest.raises(ConfigError, match=says):
        load_sae(folder)


def test_a_transposed_decoder_is_refused(tmp_path, x):
    folder = sparsify(tmp_path, x, steps=0).folder
    tensors = load_file(folder / "sae.safetensors")
    tensors["W_dec"] = tensors["W_dec"].T.contiguous()
    save_file(tensors, folder / "sae.safetensors")
    with pytest.raises(ConfigError, match=r"W_dec_FD has shape \[16, 48\]; expected \[48, 16\]"):
        load_sae(folder)


@pytest.mark.parametrize("name", ["W_dec", "W_enc", "b_enc", "threshold"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused_but_for_a_threshold_without_end(
    tmp_path, x, name, value
):
    folder = saelens(tmp_path / "sae", x, "jumprelu", steps=0).folder
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors[name].view(-1)[5] = value
    save_file(tensors, folder / "sae_weights.safetensors")
    if (name, value) == ("threshold", torch.inf):
        assert load_sae(folder).threshold_F.isinf().sum() == 1
        return
    with pytest.raises(ConfigError, match=f"{name}_[FD]+ holds values that are not finite"):
        load_sae(folder)


class Payload:
    """Unpickled, it would write a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.write_text, (self.file, "run")


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path, x):
    folder = dictionary_learning(tmp_path, x, "AutoEncoder", steps=0).folder
    torch.save({"bias": Payload(tmp_path / "proof")}, folder / "ae.pt")
    with pytest.raises(ConfigError, match=r"ae\.pt: expected tensors by name and nothing else"):
        load_sae(folder)
    (folder / "ae.pt").write_bytes(pickle.dumps(Payload(tmp_path / "proof"), protocol=2))
    with pytest.raises(ConfigError, match=r"ae\.pt"):
        load_sae(folder)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("file", ["cfg.json", "sae.safetensors"])
def test_torn_files_are_refused(tmp_path, x, file):
    folder = sparsify(tmp_path, x, steps=0).folder
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=f"{file}: not readable"):
        load_sae(folder)


def test_a_folder_of_no_layout_is_refused_with_the_layouts_there_are(tmp_path, x):
    with pytest.raises(ConfigError, match="holds no SAE; expected a folder with ") as refused:
        load_sae(tmp_path)
    for files in ("cfg.json and sae_weights.safetensors", "cfg.json and sae.safetensors",
                  "config.json and ae.pt"):  # fmt: skip
        assert files in str(refused.value)
    with pytest.raises(ConfigError, match="format=torch is invalid; expected auto, saelens"):
        load_sae(tmp_path, "torch")
    folder = sparsify(tmp_path, x, steps=0).folder
    save_file({}, folder / "sae_weights.safetensors")
    with pytest.raises(ConfigError, match="holds saelens and sparsify"):
        load_sae(folder)
    assert load_sae(folder, "sparsify").kind == "topk"
